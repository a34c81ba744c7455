"""Tests of splits with rare grades."""

from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from split_manifests import counts, ids, manifest_of, split_table, try_split

from drgrade.data.splits import spec as draw
from drgrade.data.splits.spec import SplitSpec, fold_requirement, keep_rare_grades, validation_requirement
from drgrade.data.splits.split import groups_of, make_split

quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(draw, "STEPS", 400)


grade = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4])
same_grade = st.tuples(grade, st.integers(1, 3)).map(lambda pair: [pair[0]] * pair[1])
mixed = st.lists(grade, min_size=1, max_size=3)
mixed_manifests = st.lists(mixed, min_size=15, max_size=50).map(manifest_of)
tiny_groups = st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=6)


def groups_with(manifest):
    """Return the number of groups that contain each grade, (5,)."""
    graded = manifest[manifest["grade"].notna()].assign(group=groups_of(manifest))
    found = graded.groupby("grade")["group"].nunique()
    return np.array([found.get(grade, 0) for grade in range(5)])


def kinds_of(groups):
    return draw.collect_kinds(
        ((f"g{number}", grade, "") for number, grades in enumerate(groups) for grade in grades), [0]
    )


def missing_from_folds(groups, folds, number):
    """Return the number of missing grades over all folds, given the fold of each group."""
    lost = 0
    for grade in set().union(*groups):
        holding = [fold for grades, fold in zip(groups, folds, strict=True) if grade in grades]
        lost += min(len(holding), number) - len(set(holding))
    return lost


# Test folds


@quick
@given(st.lists(same_grade, min_size=10, max_size=50).map(manifest_of), st.integers(2, 5), st.integers(0, 99))
def test_grade_in_enough_groups_is_in_every_test_fold(manifest, folds, seed):
    """Groups have one grade. A rarer grade is in as many folds as it has groups."""
    splits = [try_split(manifest, fold=k, folds=folds, val_fraction=0.0, seed=seed) for k in range(folds)]
    assume(all(split is not None for split in splits))
    in_folds = sum((counts(split, "test") > 0).astype(int) for split in splits)
    assert in_folds.tolist() == np.minimum(groups_with(manifest), folds).tolist()


@settings(max_examples=60, deadline=None)
@given(tiny_groups, st.integers(2, 3), st.randoms(use_true_random=False))
def test_no_assignment_to_folds_keeps_more_grades(groups, number, random):
    """Compare with the best of all assignments, for groups of several grades and any start."""
    start = {f"g{i}": random.randrange(number) for i in range(len(groups))}
    kinds = kinds_of(groups)
    found = keep_rare_grades(start, kinds, fold_requirement(kinds, number))
    best = min(
        missing_from_folds(groups, folds, number) for folds in product(range(number), repeat=len(groups))
    )
    assert missing_from_folds(groups, [found[f"g{i}"] for i in range(len(groups))], number) == best


def test_incompatible_grades_are_covered_as_far_as_possible():
    """Three grades, each in two of three groups: with two folds one grade has both groups in one."""
    kinds = kinds_of([{0, 1}, {0, 2}, {1, 2}])
    found = keep_rare_grades({"g0": 0, "g1": 0, "g2": 0}, kinds, fold_requirement(kinds, 2))
    assert missing_from_folds([{0, 1}, {0, 2}, {1, 2}], [found[f"g{i}"] for i in range(3)], 2) == 1


@quick
@given(mixed_manifests, st.integers(2, 4), st.integers(0, 99))
def test_folds_with_exchanged_groups_still_partition_the_photographs(manifest, folds, seed):
    splits = [try_split(manifest, fold=k, folds=folds, val_fraction=0.0, seed=seed) for k in range(folds)]
    assume(all(split is not None for split in splits))
    tested = [image for split in splits for image in ids(split, "test")]
    assert sorted(tested) == manifest["image_id"].tolist()
    for split in splits:
        assert split.groupby("group")["subset"].nunique().max() == 1


def test_complete_parts_are_unchanged():
    groups = [{0}, {0, 1}, {1}, {0}]
    kinds, start = kinds_of(groups), {"g0": 0, "g1": 1, "g2": 0, "g3": 1}
    assert keep_rare_grades(start, kinds, fold_requirement(kinds, 2)) == start


# Training and validation


@quick
@given(
    mixed_manifests,
    st.sampled_from([0.0, 0.05, 0.15, 0.3, 0.9]),
    st.sampled_from([0.05, 0.25, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_grade_of_the_training_side_is_trained_on(manifest, val_fraction, fraction, within, seed):
    spec = {"val_fraction": val_fraction, "label_fraction": fraction, "val_within_fraction": within}
    split = try_split(manifest, **spec, seed=seed)
    assume(split is not None)
    side = counts(split, "train", "unlabelled", "val") > 0
    assert (counts(split, "train")[side] > 0).all()


@quick
@given(
    st.lists(same_grade, min_size=15, max_size=50).map(manifest_of),
    st.sampled_from([0.05, 0.15, 0.3, 0.9]),
    st.integers(0, 99),
)
def test_grade_with_enough_groups_is_in_validation(manifest, val_fraction, seed):
    split = try_split(manifest, val_fraction=val_fraction, seed=seed)
    assume(split is not None)
    side = manifest[split["subset"].isin(["train", "val"])]
    enough = (groups_with(side) >= 2) & (val_fraction * groups_with(side) > 0.5 + 1e-6)
    assert (counts(split, "val")[enough] > 0).all()
    assert (counts(split, "train")[groups_with(side) > 0] > 0).all()


@settings(max_examples=60, deadline=None)
@given(tiny_groups, st.sampled_from([0.2, 0.4, 0.6]), st.randoms(use_true_random=False))
def test_no_other_validation_set_keeps_more_grades(groups, fraction, random):
    """All grades must be in training, then as many as possible in validation."""
    start = {f"g{i}": random.randrange(2) for i in range(len(groups))}
    kinds = kinds_of(groups)
    sizes = {grade: sum(grade in grades for grades in groups) for grade in set().union(*groups)}

    def kept(parts):
        held = [set().union(*[g for g, p in zip(groups, parts, strict=True) if p == part]) for part in (0, 1)]
        wanted = {grade for grade, size in sizes.items() if size >= 2 and fraction * size > 0.5 + 1e-9}
        return len(held[0]), len(held[1] & wanted)

    found = keep_rare_grades(start, kinds, validation_requirement(kinds, fraction))
    best = max(kept(parts) for parts in product(range(2), repeat=len(groups)))
    assert kept([found[f"g{i}"] for i in range(len(groups))]) == best


def test_only_photograph_of_a_grade_is_in_training():
    split = split_table(manifest_of([[0]] * 40 + [[4]]), SplitSpec(fold=1, val_fraction=0.9))
    assert split["subset"].iloc[40] in ("train", "test")


def test_remarks_name_the_grades_missing_from_a_subset():
    found = make_split(manifest_of([[0]] * 40 + [[1]] * 10 + [[4]]), SplitSpec(val_fraction=0.1))
    texts = [remark.text for remark in found.remarks]
    lacking = {
        subset: {grade for grade in (0, 1, 4) if not counts(found.table, subset)[grade]}
        for subset in ("train", "val", "test")
    }
    assert 4 in lacking["val"]
    for subset, grades in lacking.items():
        expected = f"no {subset} photograph has grade {', '.join(map(str, sorted(grades)))}"
        assert (expected in texts) == bool(grades)
        assert found.counts.get(f"{subset}_grades_missing", 0) == len(grades)


# Several data sets


@pytest.mark.parametrize("pairs", [False, True])
def test_every_data_set_is_spread_over_folds_validation_and_fractions(pairs):
    """Each grade of each data set is proportional within one image, or two for patients with two."""
    rng = np.random.default_rng(0)
    datasets = [name for name, patients in {"a": 60, "b": 30, "c": 10}.items() for _ in range(patients)]
    for seed in range(6):
        first = rng.choice(5, len(datasets), p=[0.5, 0.1, 0.25, 0.05, 0.1])
        eyes = [[grade, np.clip(grade + rng.integers(-1, 2), 0, 4)][: 1 + pairs] for grade in first]
        manifest = manifest_of(eyes).assign(dataset=np.repeat(datasets, 1 + pairs))
        spec = SplitSpec(fold=3, label_fraction=0.1 * (1 + seed), val_fraction=0.2)
        split = split_table(manifest, spec)
        rest = split[split["subset"] != "test"]
        draws = [
            (split, "test", 1 / spec.folds),
            (rest, "val", spec.val_fraction),
            (rest[rest["subset"] != "val"], "train", spec.label_fraction),
        ]
        for whole, subset, share in draws:
            for part in [whole, *(whole[manifest["dataset"][whole.index] == name] for name in "abc")]:
                assert (np.abs(counts(part, subset) - share * counts(part)) <= 1.2 + pairs * 0.8).all()
