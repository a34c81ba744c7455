"""Tests of folds, validation, label fractions and hashes."""

import io
import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from split_manifests import counts, demo_manifest, ids, manifest_of, singletons, split_table, try_split

from drgrade.data.sources.idrid import IDRiD
from drgrade.data.splits import spec as draw
from drgrade.data.splits.spec import SUBSETS, SplitSpec, proportional_order
from drgrade.data.splits.split import groups_of, split_hash
from drgrade.errors import ConfigError, DataError

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
DEMO_HASH = "64983ca8f049515507be8c24547fbe6b6a8292e0f71f84b7c05a0e20cb3a4c8f"
APTOS = {0: 1805, 1: 370, 2: 999, 3: 193, 4: 295}

quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


@pytest.fixture
def coarse(monkeypatch):
    """Use a tenth of the resolution, which still divides every fraction, for more examples."""
    monkeypatch.setattr(draw, "STEPS", 400)


def idrid_manifest():
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    root = Path(os.environ.get("DRGRADE_TEST_DATA", default)) / "idrid"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    return IDRiD(root).read().manifest


def labels_used(split, spec):
    """Return the subsets of the label fraction: with val_within_fraction it includes validation."""
    return ids(split, "train", "val") if spec.val_within_fraction else ids(split, "train")


grades = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4])
group = st.lists(st.one_of(grades, grades, grades, st.none()), min_size=1, max_size=3)
manifests = st.lists(group, min_size=15, max_size=60).map(manifest_of)
graded_group = st.lists(grades, min_size=1, max_size=3)
graded_manifests = st.lists(graded_group, min_size=15, max_size=60).map(manifest_of)
single_manifests = st.lists(grades, min_size=15, max_size=150).map(lambda g: manifest_of([[x] for x in g]))
specs = st.fixed_dictionaries(
    {
        "fold": st.integers(0, 2),
        "folds": st.integers(3, 5),
        "val_fraction": st.sampled_from([0.0, 0.05, 0.15, 0.3]),
        "val_within_fraction": st.booleans(),
        "seed": st.integers(0, 2**32),
        "label_seed": st.sampled_from([0, 1, 2**32]),
    }
)


# Fractions


@quick
@given(manifests, specs, st.sampled_from(list(combinations(FRACTIONS, 2))))
def test_label_fractions_are_nested(coarse, manifest, spec, fractions):
    smaller, larger = (try_split(manifest, **spec, label_fraction=fraction) for fraction in fractions)
    assume(smaller is not None and larger is not None)
    chosen = SplitSpec(**spec)
    assert labels_used(smaller, chosen) <= labels_used(larger, chosen)
    assert ids(smaller, "test") == ids(larger, "test")
    if not chosen.val_within_fraction:
        assert ids(smaller, "val") == ids(larger, "val")
        assert ids(smaller, "excluded") == ids(larger, "excluded")
    if fractions[1] == 1:
        graded_unlabelled = larger[(larger["subset"] == "unlabelled") & larger["grade"].notna()]
        assert graded_unlabelled.empty


@quick
@given(single_manifests, specs, st.sampled_from(FRACTIONS))
def test_grades_of_a_fraction_are_proportional(coarse, manifest, spec, fraction):
    """For single photographs: the nearest whole number, at least one of each grade."""
    split = try_split(manifest, **spec, label_fraction=fraction)
    assume(split is not None)
    side = counts(split, "train", "val", "unlabelled")
    val, train = counts(split, "val"), counts(split, "train")
    whole, used = (side, val + train) if spec["val_within_fraction"] else (side - val, train)
    assert (np.abs(used - np.maximum(fraction * whole, whole > 0)) <= 0.5 + 1e-9).all()
    drawn_from = used if spec["val_within_fraction"] else side
    assert (np.abs(val - spec["val_fraction"] * drawn_from) <= 0.5 + 1e-9).all()


@pytest.mark.parametrize("fraction", [0.01, 0.033, 0.1, 1 / 3, 0.37, 0.9])
@pytest.mark.parametrize("within", [False, True])
def test_any_fraction_is_exact_for_single_photographs(fraction, within):
    split = split_table(
        singletons(APTOS), SplitSpec(label_fraction=fraction, val_fraction=0.05, val_within_fraction=within)
    )
    side, val, train = (
        counts(split, "train", "val", "unlabelled"),
        counts(split, "val"),
        counts(split, "train"),
    )
    used, whole = (train + val, side) if within else (train, side - val)
    assert (np.abs(used - np.maximum(fraction * whole, 1)) <= 0.75).all()


@pytest.mark.parametrize("fold", range(5))
def test_pairs_of_eyes_stay_within_one_on_the_demo_plan(fold):
    for fraction in FRACTIONS:
        split = split_table(demo_manifest(), SplitSpec(fold=fold, label_fraction=fraction))
        whole = counts(split, "train", "unlabelled")
        assert (np.abs(counts(split, "train") - fraction * whole) <= 1 + 1e-9).all()
        assert (np.abs(counts(split, "val") - 0.05 * (whole + counts(split, "val"))) <= 1 + 1e-9).all()


@quick
@given(graded_manifests, st.integers(0, 100))
def test_every_prefix_is_proportional_up_to_the_largest_group(coarse, manifest, seed):
    pairs = list(zip(groups_of(manifest), manifest["grade"].astype(int), strict=True))
    times = proportional_order(pairs, [seed])
    total = np.bincount([grade for _, grade in pairs], minlength=5)
    for t in np.linspace(0, 1, 41):
        prefix = np.bincount([grade for name, grade in pairs if times[name] <= t + 1e-9], minlength=5)
        assert (np.abs(prefix - t * total) <= 3 + 1).all()


@quick
@given(
    many=st.integers(60, 120),
    size=st.integers(1, 2),
    rare=st.lists(
        st.sampled_from([[3], [4], [3, 3], [4, 4], [3, 4], [0, 4], [4, 4, 4]]), min_size=1, max_size=2
    ),
    seed=st.integers(0, 50),
)
def test_rare_grade_is_in_the_smallest_fraction(coarse, many, size, rare, seed):
    manifest = manifest_of([[0] * size] * many + [[2] * size] * (many // 2) + rare)
    for within in (False, True):
        spec = SplitSpec(label_fraction=0.05, val_fraction=0.3, val_within_fraction=within, seed=seed)
        split = split_table(manifest, spec)
        side = counts(split, "train", "unlabelled", *(["val"] if within else []))
        used = counts(split, "train", *(["val"] if within else []))
        assert ((used > 0) == (side > 0)).all()
        assert (used <= np.maximum(0.05 * side + 2, 3)).all()  # its group may have two


# Folds and groups


@quick
@given(manifests, st.integers(2, 5), st.integers(0, 1000))
def test_folds_partition_the_graded_photographs(coarse, manifest, folds, seed):
    found = [try_split(manifest, fold=k, folds=folds, val_fraction=0.0, seed=seed) for k in range(folds)]
    assume(all(split is not None for split in found))
    tested = [image for split in found for image in ids(split, "test")]
    assert sorted(tested) == sorted(manifest.loc[manifest["grade"].notna(), "image_id"])


@quick
@given(single_manifests, st.integers(2, 5), st.integers(0, 1000))
def test_test_folds_are_proportional_within_one(coarse, manifest, folds, seed):
    for fold in range(folds):
        split = try_split(manifest, fold=fold, folds=folds, val_fraction=0.0, seed=seed)
        assume(split is not None)
        # 400 steps do not divide by 3: the error grows by up to 1/400 of the photographs of a grade.
        assert (np.abs(counts(split, "test") - counts(split) / folds) <= 1 + counts(split) / 400).all()


@pytest.mark.parametrize("fold", range(5))
def test_aptos_folds_are_proportional_within_one(fold):
    split = split_table(singletons(APTOS), SplitSpec(fold=fold))
    assert (np.abs(counts(split, "test") - counts(split) / 5) <= 1).all()


@quick
@given(manifests, specs, st.sampled_from(FRACTIONS), st.booleans())
def test_no_group_is_on_two_sides(coarse, manifest, spec, fraction, published):
    if published:
        manifest = manifest.assign(split=np.where(np.arange(len(manifest)) % 7 == 0, "test", "train"))
        spec = {**spec, "fold": "published"}
    split = try_split(manifest, **spec, label_fraction=fraction)
    assume(split is not None)
    assert set(split["subset"]) <= set(SUBSETS)
    assert split["image_id"].tolist() == manifest["image_id"].tolist()
    graded = split["grade"].notna()
    assert graded[split["subset"].isin(["train", "val", "test"])].all()
    sides = split.assign(
        side=split["subset"].map({"train": "train", "unlabelled": "train", "val": "val", "test": "test"})
    )
    assert sides.dropna(subset="side").groupby("group")["side"].nunique().max() == 1
    training_side = split[graded & split["subset"].isin(["train", "unlabelled"])]
    assert training_side.groupby("group")["subset"].nunique().max() == 1
    excluded = split[split["subset"] == "excluded"]
    held_out = set(split.loc[split["subset"].isin(["val", "test"]), "group"])
    if not published:
        assert not excluded["grade"].notna().any()
        assert set(excluded["group"]) <= held_out
    assert held_out.isdisjoint(split.loc[split["subset"].isin(["train", "unlabelled"]), "group"])


# Dependencies of a split


@quick
@given(manifests, specs, st.randoms(use_true_random=False), st.booleans())
def test_order_of_rows_does_not_matter(coarse, manifest, spec, shuffler, reset):
    split = try_split(manifest, **spec, label_fraction=0.25)
    assume(split is not None)
    order = list(range(len(manifest)))
    shuffler.shuffle(order)
    shuffled = manifest.iloc[order].reset_index(drop=True) if reset else manifest.iloc[order]
    again = split_table(shuffled, SplitSpec(**spec, label_fraction=0.25))
    assert again["image_id"].tolist() == shuffled["image_id"].tolist()
    pd.testing.assert_frame_equal(again.sort_values("image_id", ignore_index=True), split)
    assert split_hash(again) == split_hash(split)


def test_repeated_index_values_do_not_change_the_split():
    manifest = demo_manifest(60)
    expected = split_table(manifest, SplitSpec())
    pd.testing.assert_frame_equal(split_table(manifest.set_index(np.zeros(60, int)), SplitSpec()), expected)


def test_split_is_the_same_in_another_process():
    manifest = demo_manifest(60)
    code = (
        "import sys, pandas as pd\n"
        "from drgrade.data.splits.spec import SplitSpec\n"
        "from drgrade.data.splits.split import make_split, split_hash\n"
        "manifest = pd.read_csv(sys.stdin)\n"
        "print(split_hash(make_split(manifest, SplitSpec(label_fraction=0.1)).table))\n"
    )
    expected = split_hash(split_table(manifest, SplitSpec(label_fraction=0.1)))
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=manifest.to_csv(index=False),
        env={**os.environ, "PYTHONHASHSEED": "1"},  # that of this process is random, or 0
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == expected


def test_training_seed_does_not_change_the_split():
    """The global generators are not used."""
    manifest, hashes = demo_manifest(60), set()
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        hashes.add(split_hash(split_table(manifest, SplitSpec(label_fraction=0.25))))
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        assert before == after
    assert len(hashes) == 1


def test_split_seed_changes_the_split():
    manifest = demo_manifest(120)
    tests = [frozenset(ids(split_table(manifest, SplitSpec(seed=seed)), "test")) for seed in range(4)]
    assert len(set(tests)) == 4


@quick
@given(manifests, specs, st.sampled_from(FRACTIONS))
def test_label_seed_changes_neither_test_fold_nor_validation(coarse, manifest, spec, fraction):
    first, second = (
        try_split(
            manifest, **{**spec, "val_within_fraction": False, "label_seed": seed}, label_fraction=fraction
        )
        for seed in (0, 3)
    )
    assume(first is not None and second is not None)
    for subset in ("test", "val", "excluded"):
        assert ids(first, subset) == ids(second, subset)
    if fraction == 1:
        assert split_hash(first) == split_hash(second)


@pytest.mark.parametrize("settings", [{"label_fraction": 0.1}, {"shots": 3}])
def test_label_seeds_draw_other_labels_in_the_same_proportions(settings):
    manifest = demo_manifest(300)
    splits = [split_table(manifest, SplitSpec(label_seed=seed, **settings)) for seed in range(4)]
    assert len({frozenset(ids(split, "train")) for split in splits}) == 4
    for split in splits:
        assert np.abs(counts(split, "train") - counts(splits[0], "train")).max() <= 2


def test_split_does_not_depend_on_names():
    """Neighbours in the list are tested together as often as others."""
    split = split_table(singletons({0: 1000}), SplitSpec())
    tested = (split["subset"] == "test").to_numpy()
    together = (tested[1:] & tested[:-1]).sum()
    assert 20 < together < 60  # 40 expected


def test_split_of_the_demo_has_the_recorded_hash():
    """The hash is recorded because published results name it."""
    split = split_table(demo_manifest(), SplitSpec(fold=2, label_fraction=0.1, val_fraction=0.15))
    assert split_hash(split) == DEMO_HASH


def test_empty_optional_columns_do_not_change_the_split():
    manifest = demo_manifest(60)
    more = manifest.assign(dataset="demo", role="labelled", duplicate=pd.NA)
    assert split_hash(split_table(more, SplitSpec())) == split_hash(split_table(manifest, SplitSpec()))


# Validation within the fraction


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
def test_validation_can_be_drawn_from_the_label_fraction(fraction):
    manifest = demo_manifest()
    common = {"label_fraction": fraction, "val_fraction": 0.2}
    before = split_table(manifest, SplitSpec(**common))
    within = split_table(manifest, SplitSpec(**common, val_within_fraction=True))
    side = counts(within, "train", "val", "unlabelled").sum()
    used = counts(within, "train", "val").sum()
    assert used == pytest.approx(fraction * side, abs=5)
    assert counts(within, "val").sum() == pytest.approx(0.2 * used, abs=5)
    assert counts(before, "val").sum() == pytest.approx(0.2 * side, abs=5)
    assert ids(within, "test") == ids(before, "test")


def test_val_fraction_0_gives_no_validation():
    split = split_table(demo_manifest(60), SplitSpec(val_fraction=0.0))
    assert set(split["subset"]) == {"train", "test"}


# The published test set


def published(groups, test):
    """Return a manifest whose published test set has the given rows."""
    size = sum(len(grades) for grades in groups)
    return manifest_of(groups, ["test" if row in test else "train" for row in range(size)])


def test_published_test_set_is_used():
    manifest = published([[g % 5] for g in range(100)], set(range(70, 100)))
    for fraction in (0.1, 1.0):
        split = split_table(manifest, SplitSpec(fold="published", val_fraction=0.15, label_fraction=fraction))
        assert split["subset"].tolist()[70:] == ["test"] * 30
        assert not ids(split, "test") & set(manifest["image_id"][:70])


def test_ungraded_photographs_of_tested_patients_are_excluded():
    manifest = published([[g % 5, None] for g in range(40)], set(range(60, 80)))
    split = split_table(manifest, SplitSpec(fold="published", val_fraction=0.0))
    assert split["subset"].tolist() == ["train", "unlabelled"] * 30 + ["test", "excluded"] * 10


def test_published_test_set_is_not_enlarged_by_other_photographs_of_its_patients():
    """The other eye of a test patient, published as training data, is excluded."""
    manifest = published([[g % 5, g % 5] for g in range(40)], set(range(60, 80, 2)))
    split = split_table(manifest, SplitSpec(fold="published", val_fraction=0.0))
    assert split["subset"].tolist() == ["train", "train"] * 30 + ["test", "excluded"] * 10


def test_published_split_may_be_missing_for_some_photographs():
    manifest = published([[g % 5] for g in range(50)], set(range(40, 50)))
    manifest.loc[:9, "split"] = pd.NA
    split = split_table(manifest, SplitSpec(fold="published", val_fraction=0.0))
    assert split["subset"].tolist() == ["train"] * 40 + ["test"] * 10


# Hash


def test_hash_changes_with_every_value():
    split = split_table(demo_manifest(60), SplitSpec(label_fraction=0.25)).astype({"grade": "Int64"})
    changed = [split]
    changes = {"image_id": "other", "group": "other", "grade": 3, "subset": "val"}
    for column, value in (*changes.items(), ("grade", pd.NA)):
        other = split.copy()
        row = int(np.flatnonzero((split[column] != value).fillna(True))[0])
        other.loc[row, column] = value
        changed.append(other)
    changed += [split.iloc[1:], pd.concat([split, split.iloc[:1]])]
    assert len({split_hash(each) for each in changed}) == len(changed)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c"],
        ["001", "002", "10"],
        ["NA", "nan", "None"],
        ["1.50", "1e3", "true"],
        ["ä b", "c,d", 'e"f'],
    ],
)
def test_hash_survives_csv(names):
    split = pd.DataFrame(
        {
            "image_id": names,
            "group": [f"image:{name}" for name in names],
            "grade": pd.array([0, None, 4], dtype="Int64"),
            "subset": ["train", "unlabelled", "test"],
        }
    )
    text = io.StringIO(split.to_csv(index=False))
    read = pd.read_csv(
        text, dtype={"image_id": str, "group": str}, keep_default_na=False, na_values={"grade": [""]}
    )
    assert split_hash(read) == split_hash(split)


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_fraction": 0.0}, r"label_fraction=0.0 is not in \(0, 1\]"),
        ({"label_fraction": 10}, r"label_fraction=10 is not in \(0, 1\]; 10 % is label_fraction=0.1"),
        ({"label_fraction": -0.1}, "label_fraction=-0.1"),
        ({"label_fraction": float("nan")}, "label_fraction=nan"),
        ({"val_fraction": 1.0}, r"protocol.val_fraction=1.0 is not in \[0, 1\)"),
        ({"val_fraction": -0.05}, "protocol.val_fraction=-0.05"),
        ({"folds": 1}, "folds=1: .*at least 2"),
        ({"fold": 5}, "fold=5 is not in 0..4"),
        ({"fold": -1}, "fold=-1 is not in 0..4"),
        ({"fold": 0.5}, "fold=0.5 is not in 0..4"),
        ({"fold": 2, "folds": 2}, "fold=2 is not in 0..1"),
        ({"fold": "first"}, "fold='first' is neither a number nor 'published'"),
        ({"seed": -1}, "split.seed=-1"),
        ({"label_seed": -1}, "split.label_seed=-1"),
        ({"seed": 0.5}, "split.seed=0.5"),
        ({"disagreeing": "first"}, "split.disagreeing='first' is not one of drop, keep_one, majority"),
    ],
)
def test_invalid_specifications_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SplitSpec(**settings)


def test_published_fold_ignores_the_number_of_folds():
    assert SplitSpec(fold="published", folds=2).fold == "published"


@pytest.mark.parametrize(
    ("manifest", "settings", "message"),
    [
        (manifest_of([[None]] * 20), {}, "no photograph has a grade"),
        (manifest_of([[0]] * 20), {"fold": "published"}, "no published test set; use fold=0"),
        (manifest_of([[0]]), {"fold": 1}, "fold=1 of folds=5 has no test photograph; use fewer folds"),
        (manifest_of([[0]] * 6), {"val_fraction": 0.05}, "protocol.val_fraction=0.05 leaves no validation"),
        (
            manifest_of([[0]] * 6, ["test"] * 6),
            {"fold": "published"},
            "fold=published leaves no photograph with a grade to train on",
        ),
        (
            manifest_of([[0]] * 10, ["train"] * 9 + ["test"]).assign(
                grade=pd.array([0] * 9 + [None], dtype="Int64")
            ),
            {"fold": "published", "val_fraction": 0.0},
            "no photograph of the published test set has a grade",
        ),
    ],
)
def test_impossible_splits_are_refused_with_a_reason(manifest, settings, message):
    with pytest.raises(DataError, match=message):
        split_table(manifest, SplitSpec(**settings))


# Real labels


@pytest.mark.parametrize("fold", ["published", 0, 3])
def test_idrid_is_split_in_proportion(fold):
    manifest = idrid_manifest()
    previous: set[str] = set()
    for fraction in FRACTIONS:
        split = split_table(manifest, SplitSpec(fold=fold, label_fraction=fraction, val_fraction=0.15))
        train, val = counts(split, "train"), counts(split, "val")
        whole = counts(split, "train", "unlabelled")
        assert (np.abs(train - np.maximum(fraction * whole, 1)) <= 0.5).all()
        assert (np.abs(val - 0.15 * (whole + val)) <= 0.5).all()
        assert previous <= ids(split, "train")
        previous = ids(split, "train")
    if fold == "published":
        assert counts(split, "test").tolist() == [34, 5, 32, 19, 13]
        assert ids(split, "test") == set(manifest.loc[manifest["split"] == "test", "image_id"])
        assert counts(split, "train", "val").tolist() == [134, 20, 136, 74, 49]
    else:
        assert (np.abs(counts(split, "test") - counts(split) / 5) <= 1).all()
