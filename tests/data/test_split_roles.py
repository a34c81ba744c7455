"""Tests of disagreeing copies, published test sets, unlabelled and external data sets."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from split_manifests import (
    counts,
    ids,
    manifest_of,
    manifests_of_all_kinds,
    split_table,
    try_split,
    with_columns,
)

from drgrade.data.splits import spec as draw
from drgrade.data.splits.spec import SUBSETS, SplitSpec
from drgrade.data.splits.split import has_grades, make_split, split_hash, split_sides
from drgrade.errors import DataError


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(draw, "STEPS", 400)


def crowd(first, copies=None, split=None, role=None, patient=None):
    """Return a manifest of photographs with the grades ``first``, then 80 of grades 0-4 without relatives."""
    manifest = manifest_of([[grade] for grade in first] + [[row % 5] for row in range(80)])
    given_columns = {"duplicate": copies, "split": split, "role": role, "patient_id": patient}
    columns = {
        name: [*values, *[None] * (len(manifest) - len(values))]
        for name, values in given_columns.items()
        if values is not None
    }
    return with_columns(manifest, **columns)


def texts(manifest, **spec):
    return [remark.text for remark in make_split(manifest, SplitSpec(**spec)).remarks]


# Copies that disagree


@pytest.mark.parametrize(
    ("how", "grades", "expected"),
    [
        ("drop", [1, 2], [None, None]),
        ("drop", [1, 2, 2], [None] * 3),
        ("drop", [2, 2, 2], [2, 2, 2]),
        ("drop", [2, None, 2], [2, None, 2]),
        ("drop", [2, None, 3], [None] * 3),
        ("keep_one", [2, 1], [2, None]),
        ("keep_one", [None, 3, 1], [None, 3, None]),
        ("keep_one", [2, 2, 1], [2, None, None]),
        ("majority", [1, 2], [None, None]),
        ("majority", [1, 2, 2], [2, 2, 2]),
        ("majority", [1, None, 2, 2], [2, None, 2, 2]),
        ("majority", [1, 1, 2, 2], [None] * 4),
        ("majority", [0, 1, 1, 2], [None] * 4),
    ],
)
def test_disagreeing_copies_are_settled(how, grades, expected):
    manifest = crowd(grades, copies=["x"] * len(grades))
    split = split_table(manifest, SplitSpec(disagreeing=how))
    found = [None if pd.isna(grade) else int(grade) for grade in split["grade"][: len(grades)]]
    assert found == expected
    assert split["grade"][len(grades) :].tolist() == manifest["grade"][len(grades) :].tolist()


@pytest.mark.parametrize("how", ["drop", "keep_one", "majority"])
def test_kept_copy_does_not_depend_on_the_order_of_rows(how):
    manifest = crowd([3, 1, 1, 2, 4], copies=["x", "x", "x", "y", "y"])
    shuffled = manifest.sample(frac=1, random_state=1)
    spec = SplitSpec(disagreeing=how)
    assert split_hash(split_table(shuffled, spec)) == split_hash(split_table(manifest, spec))


def test_photographs_without_usable_grade_are_unlabelled_or_excluded():
    manifest = crowd([1, 2, 1], copies=["x", "x", None], patient=["p", "q", "q"])
    seen = set()
    for fold in range(5):
        split = split_table(manifest, SplitSpec(fold=fold))
        lost, third = split["subset"][:2].tolist(), split["subset"][2]
        assert lost == ["unlabelled"] * 2 if third in ("train", "unlabelled") else ["excluded"] * 2
        seen.add(third)
    assert {"train", "test"} <= seen
    message = [text for text in texts(manifest) if "graded differently" in text]
    assert message == [
        "graded differently: 2 photographs in 1 cluster of copies (i0000, i0001); "
        "split.disagreeing=drop: none of their grades is used"
    ]


def test_eyes_of_a_patient_may_have_different_grades():
    split = split_table(crowd([0, 4], patient=["p", "p"]), SplitSpec())
    assert split["grade"][:2].tolist() == [0, 4]
    assert "disagreeing_copies" not in make_split(crowd([0, 4], patient=["p", "p"]), SplitSpec()).counts


@pytest.mark.parametrize("how", ["drop", "keep_one", "majority"])
def test_published_test_set_keeps_its_grades(how):
    manifest = crowd(
        [1, 2, 2, 3, 3, 4], ["x", "x", "x", "y", "y", "y"], ["test", "train", "train", *["test"] * 3]
    )
    split = split_table(manifest, SplitSpec(fold="published", disagreeing=how))
    assert split["subset"][:6].tolist() == ["test", "excluded", "excluded", "test", "test", "test"]
    assert split["grade"][[0, 3, 4, 5]].tolist() == [1, 3, 3, 4]


# Copies in the published test set


def test_relatives_of_the_published_test_set_leave_the_training_side():
    manifest = crowd(
        [1, 1, 2, 3],
        copies=["x", "x", None, None],
        split=["test", "train", "train", "train"],
        patient=["p", "q", "p", "r"],
    )
    found = make_split(manifest, SplitSpec(fold="published"))
    assert found.table["subset"][:3].tolist() == ["test", "excluded", "excluded"]
    assert found.table["subset"][3] in ("train", "val")
    assert {"copies_of_test": 1, "patients_of_test": 1}.items() <= found.counts.items()
    message = [remark.text for remark in found.remarks]
    begin = "removed from the training side: 1 photograph"
    assert f"{begin} with copies in the published test set (i0001)" in message
    assert f"{begin} of patients in the published test set (i0002)" in message


def test_published_test_set_of_one_of_several_data_sets_is_used():
    manifest = crowd([0, 1, 2], split=["test"] * 3).assign(dataset=["a"] * 43 + ["b"] * 40)
    split = split_table(manifest, SplitSpec(fold="published", val_fraction=0.1))
    assert ids(split, "test") == {"i0000", "i0001", "i0002"}
    assert set(split["subset"][3:]) == {"train", "val"}


# Unlabelled data sets


def test_grades_of_an_unlabelled_data_set_are_not_used():
    manifest = crowd([0, 1, 2, 4], role=["unlabelled"] * 4)
    for fold in range(5):
        split = split_table(manifest, SplitSpec(fold=fold, label_fraction=0.5))
        assert split["subset"][:4].tolist() == ["unlabelled"] * 4
        assert split["grade"][:4].isna().all()
    alone = split_table(manifest.iloc[4:], SplitSpec(fold=4, label_fraction=0.5))
    pd.testing.assert_frame_equal(split.iloc[4:].reset_index(drop=True), alone)


def test_unlabelled_copies_of_held_out_photographs_are_excluded():
    """Row k of the unlabelled data set is a copy of labelled row k."""
    copies = [f"c{row}" for row in range(80)]
    manifest = crowd([row % 5 for row in range(80)], copies=copies * 2, role=["unlabelled"] * 80)
    found = make_split(manifest, SplitSpec(val_fraction=0.2))
    split = found.table
    held_out = split["subset"][80:].isin(["val", "test"]).to_numpy()
    assert 0 < held_out.sum() < 80
    assert split["subset"][:80].tolist() == np.where(held_out, "excluded", "unlabelled").tolist()
    assert found.counts["pool_excluded"] == held_out.sum()


@pytest.mark.parametrize("fold", [0, "published"])
def test_published_test_set_of_an_unlabelled_data_set_is_excluded(fold):
    manifest = crowd(
        [None] * 3 + [1],
        copies=["x", None, "x", None],
        split=["test", "train", "train", "test"],
        role=["unlabelled"] * 3 + ["labelled"],
    )
    split = split_table(manifest, SplitSpec(fold=fold))
    assert split["subset"][:3].tolist() == ["excluded", "unlabelled", "excluded"]


def test_test_set_of_an_unlabelled_data_set_is_not_tested_on():
    manifest = crowd([1], split=["test"], role=["unlabelled"])
    with pytest.raises(DataError, match="no published test set; use fold=0"):
        split_table(manifest, SplitSpec(fold="published"))


# External data sets


def test_external_data_set_is_only_tested_on():
    manifest = crowd([0, 1, None], role=["external"] * 3, split=["train", "test", "train"])
    for fold in (*range(5), "published"):
        table = manifest.assign(split=np.where(manifest["role"].isna(), "test", manifest["split"]))
        table.loc[10:, "split"] = pd.NA
        split = split_table(table, SplitSpec(fold=fold))
        assert split["subset"][:3].tolist() == ["external", "external", "excluded"]
        assert "external" not in set(split["subset"][3:])


def test_relatives_of_external_photographs_leave_the_training_side():
    manifest = crowd(
        [2, 2, 2, 3, 3],
        copies=["x", "x", "x", None, None],
        role=["external", "labelled", "unlabelled", "labelled", "external"],
        patient=["e", "p", "u", "p", "f"],
    )
    excluded = 0
    for fold in range(5):
        found = make_split(manifest, SplitSpec(fold=fold))
        subset = found.table["subset"]
        assert subset[[0, 2, 4]].tolist() == ["external", "excluded", "external"]
        assert subset[1] == subset[3]
        assert subset[1] in ("excluded", "test")
        if subset[1] == "excluded":
            excluded += 1
            assert {"copies_of_external": 1, "patients_of_external": 1}.items() <= found.counts.items()
        assert found.counts["pool_excluded"] == 1
    assert excluded == 4  # in the fifth fold they are tested on


def test_external_photographs_do_not_change_the_grades_of_copies():
    manifest = crowd([2, 3], copies=["x", "x"], role=["external", "labelled"])
    found = set()
    for fold in range(5):
        split = split_table(manifest, SplitSpec(fold=fold))
        assert split["grade"].tolist()[:2] == [2, 3]
        assert split["subset"][0] == "external"
        found.add(split["subset"][1])
    assert found == {"excluded", "test"}, "removed from the training side; in its test fold both are tests"


def test_external_photographs_do_not_change_the_split():
    plain = crowd([1, 2])
    more = with_columns(plain, role=["external"] * 2 + [None] * 80)
    for fold in range(5):
        rest = split_table(plain.iloc[2:], SplitSpec(fold=fold))
        found = split_table(more, SplitSpec(fold=fold)).iloc[2:].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, rest)


@pytest.mark.parametrize("grade", [1, 2])
@pytest.mark.parametrize("patient", [None, "a first"])
def test_external_copy_does_not_change_the_test_fold(grade, patient):
    """The copy may have the same grade or another one, and any patient."""
    more = crowd([1, grade], copies=["x", "x"], role=["labelled", "external"], patient=[None, patient])
    external = more["image_id"][1]
    plain = more[more["image_id"] != external].assign(duplicate=None)
    for fold in range(5):
        before = split_table(plain, SplitSpec(fold=fold)).set_index("image_id")
        after = split_table(more, SplitSpec(fold=fold)).set_index("image_id").drop(external)
        assert (before["subset"] == "test").equals(after["subset"] == "test")
        assert before["grade"].equals(after["grade"])
        assert set(after.index[after["subset"] == "excluded"]) <= {more["image_id"][0]}


def test_unlabelled_copy_does_not_rename_a_group():
    manifest = crowd([1, 1], copies=["x", "x"], role=["labelled", "unlabelled"], patient=[None, "a first"])
    groups = split_table(manifest, SplitSpec())["group"]
    assert groups[0] == groups[1] == f"image:{manifest['image_id'][0]}"


def test_external_data_set_without_grades_is_refused():
    manifest = crowd([None, None], role=["external"] * 2).assign(dataset=["far", "far"] + ["near"] * 80)
    with pytest.raises(DataError, match=r"data\.external: far has no photograph with a grade"):
        split_table(manifest, SplitSpec())


def test_ungraded_published_test_set_may_be_pre_trained_on():
    manifest = crowd([None, 1, None], role=["unlabelled"] * 3, split=["test", "train", "test"])
    assert split_table(manifest, SplitSpec())["subset"][:3].tolist() == ["unlabelled"] * 3
    graded = crowd([2, 1, None], role=["unlabelled"] * 3, split=["test", "train", "test"])
    assert split_table(graded, SplitSpec())["subset"][:3].tolist() == ["excluded", "unlabelled", "excluded"]


def test_unknown_role_is_refused():
    with pytest.raises(DataError, match='role "tested" of a photograph is not one of labelled, unlabelled'):
        split_table(crowd([1], role=["tested"]), SplitSpec())


# All rules together


@settings(max_examples=25, deadline=None)
@given(
    manifests_of_all_kinds,
    st.sampled_from([0, 1, "published"]),
    st.sampled_from(["drop", "keep_one", "majority"]),
    st.sampled_from([0.25, 1.0]),
    st.randoms(use_true_random=False),
)
def test_invariants_of_random_splits(manifest, fold, how, fraction, shuffler):
    spec = {"fold": fold, "folds": 3, "disagreeing": how, "label_fraction": fraction, "val_fraction": 0.2}
    split = try_split(manifest, **spec)
    assume(split is not None)
    role, subset = manifest["role"].fillna("labelled"), split["subset"]
    assert set(subset) <= set(SUBSETS)
    assert split["grade"][subset.isin(["train", "val", "test", "external"])].notna().all()
    assert set(subset[role == "external"]) <= {"external", "excluded"}
    assert set(subset[role == "unlabelled"]) <= {"unlabelled", "excluded"}
    assert "external" not in set(subset[role == "labelled"])
    side = subset.map({"train": 0, "unlabelled": 0, "val": 1, "test": 2, "external": 2})
    assert side.groupby(split["group"]).nunique().max() <= 1
    if fold == "published":
        published = (role == "labelled") & (manifest["split"] == "test")
        assert set(split["image_id"][published & manifest["grade"].notna()]) == ids(split, "test")
        assert split["grade"][subset == "test"].equals(manifest["grade"][subset == "test"])
    trained = split[subset.isin(["train", "val"])]
    by_cluster = trained.groupby(manifest["duplicate"])["grade"]
    assert (by_cluster.min() == by_cluster.max()).all()
    rows = list(range(len(manifest)))
    shuffler.shuffle(rows)
    assert split_hash(split_table(manifest.iloc[rows], SplitSpec(**spec))) == split_hash(split)


# Without grades


def test_photographs_without_grades_have_sides():
    manifest = crowd(
        [None] * 6,
        copies=["x", "x", None, None, "y", "y"],
        split=["test", "train", None, "test", None, None],
        role=["labelled", "unlabelled", "external", "unlabelled", "external", "labelled"],
    ).iloc[:6]
    split = split_sides(manifest, SplitSpec(fold="published")).table
    assert split["subset"].tolist() == [*["excluded"] * 3, "unlabelled", *["excluded"] * 2]
    split = split_sides(manifest, SplitSpec(fold=0)).table
    assert split["subset"].tolist() == [
        "unlabelled",
        "unlabelled",
        "excluded",
        "unlabelled",
        *["excluded"] * 2,
    ]


def test_unlabelled_data_set_alone_can_be_pre_trained_on():
    manifest = crowd([], role=["unlabelled"] * 80)
    assert not has_grades(manifest)
    assert set(split_sides(manifest, SplitSpec(fold="published")).table["subset"]) == {"unlabelled"}
    with pytest.raises(DataError, match="no photograph has a grade"):
        split_table(manifest, SplitSpec())


def test_only_grades_of_labelled_photographs_count_as_grades():
    assert has_grades(crowd([1]))
    assert not has_grades(crowd([1, None], role=["external", "labelled"]).iloc[:2])


def test_remark_counts_groups_of_several_patients():
    manifest = crowd([1, 1, 1], copies=["x", "x", None], patient=["p", "q", "q"])
    found = make_split(manifest, SplitSpec())
    assert found.counts["joined_groups"] == 1
    assert any("(patient:p); the largest has 3 photographs" in remark.text for remark in found.remarks)
    assert counts(found.table).sum() == 83
