"""Tests of few-shot labels."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from split_manifests import counts, demo_manifest, ids, manifest_of, singletons, split_table, try_split

from drgrade.data.splits import spec as draw
from drgrade.data.splits.spec import SplitSpec, shot_groups
from drgrade.data.splits.split import make_split, split_hash
from drgrade.errors import ConfigError

quick = settings(max_examples=25, deadline=None)
grades = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4])
groups = st.lists(st.lists(grades, min_size=1, max_size=3), min_size=1, max_size=40)
seeds = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(draw, "STEPS", 400)


def pairs_of(contents):
    return [(f"g{number:03d}", grade) for number, found in enumerate(contents) for grade in found]


def tally(pairs, chosen):
    return np.bincount([grade for group, grade in pairs if group in chosen], minlength=5)


@quick
@given(st.lists(grades, min_size=1, max_size=80), st.integers(1, 12), seeds)
def test_single_photographs_give_exactly_the_shots_or_all(found, shots, seed):
    pairs = pairs_of([[grade] for grade in found])
    there = np.bincount(found, minlength=5)
    assert tally(pairs, shot_groups(pairs, shots, [seed])).tolist() == np.minimum(there, shots).tolist()


@quick
@given(groups, seeds)
def test_shots_are_nested(contents, seed):
    pairs = pairs_of(contents)
    chosen = [shot_groups(pairs, shots, [seed]) for shots in range(1, 8)]
    assert all(fewer <= more for fewer, more in pairwise(chosen))


@quick
@given(groups, st.integers(1, 6), seeds)
def test_every_chosen_group_is_needed(contents, shots, seed):
    pairs = pairs_of(contents)
    chosen = shot_groups(pairs, shots, [seed])
    goal = np.minimum(tally(pairs, {group for group, _ in pairs}), shots)
    assert (tally(pairs, chosen) >= goal).all()
    assert len(chosen) <= goal.sum()


@quick
@given(groups, st.integers(1, 6), seeds, st.randoms(use_true_random=False))
def test_order_of_photographs_does_not_matter(contents, shots, seed, random):
    pairs = pairs_of(contents)
    shuffled = random.sample(pairs, len(pairs))
    assert shot_groups(pairs, shots, [seed]) == shot_groups(shuffled, shots, [seed])


def test_seed_changes_the_chosen_groups():
    pairs = pairs_of([[grade] for grade in range(5) for _ in range(50)])
    assert shot_groups(pairs, 5, [0]) != shot_groups(pairs, 5, [1])


def test_pairs_and_single_photographs_give_exactly_the_shots():
    pairs = pairs_of([[0, 0], [0, 0], [0], [1, 1], [1, 1]])
    assert tally(pairs, shot_groups(pairs, 1, [0])).tolist()[:2] == [1, 2]
    assert tally(pairs, shot_groups(pairs, 3, [0])).tolist()[:2] == [3, 4]


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_shots_do_not_change_test_fold_and_validation(shots):
    manifest = demo_manifest()
    whole = split_table(manifest, SplitSpec(fold=1, val_fraction=0.15))
    few = split_table(manifest, SplitSpec(fold=1, val_fraction=0.15, shots=shots))
    for subset in ("test", "val", "excluded"):
        assert ids(few, subset) == ids(whole, subset)
    assert ids(few, "train") < ids(whole, "train")
    assert ids(few, "train", "unlabelled") == ids(whole, "train", "unlabelled")
    side = few[few["subset"].isin(["train", "unlabelled"])]
    assert side[side["grade"].notna()].groupby("group")["subset"].nunique().max() == 1
    assert (counts(few, "train") >= shots).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(grades, min_size=1, max_size=2), min_size=15, max_size=60),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_splits_are_nested_in_shots(contents, shots, fold):
    manifest = manifest_of(contents)
    common = {"fold": fold, "folds": 3, "val_fraction": 0.2}
    fewer, more = (try_split(manifest, **common, shots=each) for each in (shots, shots + 1))
    assume(fewer is not None and more is not None)
    assert ids(fewer, "train") <= ids(more, "train")
    assert (split_hash(fewer) == split_hash(more)) == (ids(fewer, "train") == ids(more, "train"))


def test_grade_with_few_photographs_gives_all_with_a_remark():
    split = make_split(
        singletons({0: 40, 1: 40, 4: 5}), SplitSpec(fold=0, folds=5, val_fraction=0.0, shots=10)
    )
    assert counts(split.table, "train").tolist() == [10, 10, 0, 0, 4]
    assert split.counts["shots_lacking"] == 1
    assert "grade 4: 4" in next(each.text for each in split.remarks if each.name == "shots_lacking")


def test_photographs_beyond_the_shots_are_counted():
    manifest = manifest_of([[grade, grade] for grade in (0, 1) for _ in range(20)])
    split = make_split(manifest, SplitSpec(fold=0, folds=5, val_fraction=0.0, shots=3))
    assert counts(split.table, "train").tolist() == [4, 4, 0, 0, 0]
    assert split.counts["shots_beyond"] == 2
    assert "shots_lacking" not in split.counts


def test_shots_of_several_data_sets_come_from_all_of_them():
    manifest = singletons({0: 200, 1: 200}).assign(
        dataset=pd.array([("a", "b")[row % 2] for row in range(400)], dtype="string")
    )
    split = split_table(manifest, SplitSpec(fold=0, val_fraction=0.0, shots=40))
    of_a = manifest["dataset"][(split["subset"] == "train").to_numpy()].eq("a").mean()
    assert 0.3 < of_a < 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "at least 1"),
        ({"shots": 2.5}, "whole number"),
        ({"shots": True}, "whole number"),
        ({"shots": 5, "label_fraction": 0.1}, "label_fraction"),
        ({"shots": 5, "val_within_fraction": True}, "val_within_fraction"),
    ],
)
def test_invalid_shots_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SplitSpec(**settings)
