"""Tests of groups of patients and copies."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_manifests import manifest_of, with_columns

from drgrade.data.splits.split import groups_of

names = st.sampled_from(["a", "b", "c", "d", None])
photographs = st.lists(st.tuples(names, names), min_size=1, max_size=12)


def table(pairs):
    manifest = manifest_of([[0]] * len(pairs))
    return with_columns(manifest, patient_id=[p for p, _ in pairs], duplicate=[d for _, d in pairs])


def naive_components(pairs):
    """Naive reference: the smallest row reached from each photograph through patients and copies."""
    labels = list(range(len(pairs)))
    for _ in pairs:
        for i, (patient, copies) in enumerate(pairs):
            for j, (other, others) in enumerate(pairs):
                if (patient is not None and patient == other) or (copies is not None and copies == others):
                    labels[i] = labels[j] = min(labels[i], labels[j])
    return labels


def partition(labels):
    return {frozenset(i for i, label in enumerate(labels) if label == each) for each in labels}


@settings(max_examples=100, deadline=None)
@given(photographs)
def test_groups_are_the_connected_components(pairs):
    assert partition(groups_of(table(pairs)).tolist()) == partition(naive_components(pairs))


@settings(max_examples=100, deadline=None)
@given(photographs, st.randoms(use_true_random=False))
def test_group_names_do_not_depend_on_the_order_of_rows(pairs, shuffler):
    manifest = table(pairs)
    order = list(range(len(pairs)))
    shuffler.shuffle(order)
    shuffled = manifest.iloc[order]
    expected = dict(zip(manifest["image_id"], groups_of(manifest), strict=True))
    assert dict(zip(shuffled["image_id"], groups_of(shuffled), strict=True)) == expected


@settings(max_examples=50, deadline=None)
@given(photographs)
def test_groups_without_copies_keep_their_names(pairs):
    manifest = table(pairs)
    plain = groups_of(manifest.drop(columns="duplicate")).tolist()
    alone = groups_of(with_columns(manifest, duplicate=[str(i) for i in range(len(pairs))])).tolist()
    assert alone == plain
    expected = [f"patient:{p}" if p else f"image:i{row:04d}" for row, (p, _) in enumerate(pairs)]
    assert plain == expected


def test_two_eyes_of_a_patient_and_photographs_of_unknown_patients():
    manifest = manifest_of([[0, 1], [2], [3]])
    manifest.loc[2:, "patient_id"] = pd.NA
    assert groups_of(manifest).tolist() == ["patient:p0", "patient:p0", "image:i0002", "image:i0003"]


def test_patient_and_photograph_of_one_name_are_different_groups():
    manifest = manifest_of([[0], [1]]).assign(image_id=["x", "y"], patient_id=["y", pd.NA])
    assert groups_of(manifest).nunique() == 2


@pytest.mark.parametrize(
    ("patients", "copies", "expected"),
    [
        (["b", "a", "c"], ["x", "x", None], ["patient:a", "patient:a", "patient:c"]),
        ([None, None, "c"], ["x", "x", None], ["image:i0000", "image:i0000", "patient:c"]),
        ([None, "z", "c"], ["x", "x", None], ["patient:z", "patient:z", "patient:c"]),
        (["b", "b", "a"], ["x", "y", "y"], ["patient:a"] * 3),
    ],
)
def test_joined_group_is_named_after_its_first_member(patients, copies, expected):
    assert groups_of(table(list(zip(patients, copies, strict=True)))).tolist() == expected
