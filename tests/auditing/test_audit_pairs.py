"""Tests of the findings of pairs of copies."""

import pandas as pd
import pytest

from drgrade.auditing.checks import pair_findings, pair_table
from drgrade.auditing.findings import finding_table

FIRST = {
    "image_id": "a",
    "path": "a.jpg",
    "grade": 2,
    "patient_id": "p",
    "eye": "left",
    "dataset": "one",
    "split": "train",
    "role": "labelled",
}


def findings_of(second=None, first=None, **duplicate):
    """Return the findings of a pair, given its differences from :data:`FIRST` and from a near-duplicate."""
    rows = [FIRST | (first or {}), FIRST | {"image_id": "b", "path": "b.jpg"} | (second or {})]
    manifest = pd.DataFrame(rows).astype({"grade": "Int64"})
    pair = {"first": 0, "second": 1, "kind": "near", "similarity": 0.9, "mirrored": False, "turned": 0}
    return finding_table(pair_findings(pair_table(manifest, pd.DataFrame([pair | duplicate]))))


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({}, {"near_duplicate"}),
        ({"grade": 3}, {"near_duplicate", "conflicting_grades"}),
        ({"grade": None}, {"near_duplicate"}),
        ({"split": "test"}, {"near_duplicate", "across_splits"}),
        ({"split": "val"}, {"near_duplicate", "train_val_copies"}),
        ({"split": None}, {"near_duplicate"}),
        ({"patient_id": "q"}, {"near_duplicate", "across_patients"}),
        ({"patient_id": None}, {"near_duplicate"}),
        ({"grade": 0, "split": "test"}, {"near_duplicate", "conflicting_grades", "across_splits"}),
        ({"dataset": "two", "patient_id": "two/p", "split": "test"}, {"near_duplicate", "across_datasets"}),
        ({"dataset": "two", "grade": 1}, {"near_duplicate", "across_datasets", "conflicting_grades"}),
    ],
)
def test_findings_of_a_pair_follow_from_its_differences(second, expected):
    assert set(findings_of(second)["finding"]) == expected
    # The order of the two does not matter.
    assert set(findings_of(first=second)["finding"]) == expected


def test_copies_in_published_val_and_test_cross_the_test_set():
    found = findings_of(first={"split": "val"}, second={"split": "test"})
    assert set(found["finding"]) == {"near_duplicate", "across_splits"}


def test_copies_in_published_train_and_val_are_a_warning():
    found = findings_of(second={"split": "val"})
    assert set(found["severity"]) == {"warning"}
    (detail,) = found.loc[found["finding"] == "train_val_copies", "detail"]
    assert detail == "train and val"


def test_detail_names_two_eyes_of_a_copy():
    (detail,) = findings_of({"eye": "right"}, kind="identical")["detail"]
    assert detail == "filed as left and as right eye"


def test_detail_names_mirrored_and_turned_copies():
    (detail,) = findings_of(mirrored=True, turned=90)["detail"]
    assert detail == "mirrored, turned by 90 degrees"


def test_pairs_are_sorted_by_errors_and_similarity():
    grades = [0, 0, 0, 0, 0, 1]
    names = list("abcdef")
    rows = [FIRST | {"image_id": name, "grade": grade} for name, grade in zip(names, grades, strict=True)]
    manifest = pd.DataFrame(rows).astype({"grade": "Int64"})
    duplicates = pd.DataFrame(
        [(0, 1, "near", 0.8), (1, 2, "near", 0.95), (3, 4, "identical", 1.0), (4, 5, "near", 0.85)],
        columns=["first", "second", "kind", "similarity"],
    ).assign(mirrored=False, turned=0)
    table = pair_table(manifest, duplicates)
    assert (table["image_id"] + table["other_image_id"]).tolist() == ["ef", "de", "bc", "ab"]
    shuffled = pair_table(manifest, duplicates.iloc[[2, 0, 3, 1]])
    pd.testing.assert_frame_equal(table, shuffled)


def test_no_duplicates_give_an_empty_table():
    manifest = pd.DataFrame([FIRST]).astype({"grade": "Int64"})
    none = pd.DataFrame(columns=["first", "second", "kind", "similarity", "mirrored", "turned"])
    table = pair_table(manifest, none.astype({"first": "int64", "second": "int64"}))
    assert table.empty
    assert finding_table(pair_findings(table)).empty
