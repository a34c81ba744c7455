"""Tests of the shortcut probe."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from drgrade.auditing.shortcut import FEATURES, grades_by_rank, kappa, probe, probe_findings, shuffle_groups
from drgrade.settings import AuditThresholds

FAST = AuditThresholds(permutations=19, resamples=200, folds=2)


def manifest_of(number=240, seed=0, per_patient=1, **columns):
    """Photographs of one camera whose other columns are random."""
    rng = np.random.default_rng(seed)
    table = {
        "image_id": [f"i{row:04d}" for row in range(number)],
        "patient_id": [f"p{row // per_patient}" for row in range(number)],
        "dataset": "made_up",
        "grade": rng.integers(0, 5, number),
        "width": 2000,
        "height": 1500,
        "file_size": rng.integers(200_000, 900_000, number),
        "border": rng.uniform(0.2, 0.4, number),
        "brightness": rng.uniform(30, 90, number),
    }
    return pd.DataFrame(table | columns).astype({"grade": "Int64", "patient_id": "string"})


def test_camera_correlated_with_the_grade_is_a_shortcut():
    rng = np.random.default_rng(1)
    grade = rng.integers(0, 5, 240)
    wide = np.array([1000, 2000, 3000, 3500, 4000])[grade]
    found = probe(manifest_of(grade=grade, width=wide, height=wide * 3 // 4), FAST)
    assert found.qwk > 0.9
    assert found.low > 0.85
    assert found.p_value == pytest.approx(1 / 20)
    assert found.single["width"] > 0.9
    assert abs(found.single["brightness"]) < 0.25
    assert max(found.importance, key=found.importance.get) == "width"
    (finding,) = probe_findings([found], AuditThresholds())
    assert finding.finding == "shortcut"
    assert "without the retina" in finding.detail


def test_random_grades_give_chance_level():
    result = probe(manifest_of(), AuditThresholds(permutations=40, resamples=200, folds=2))
    assert result.low < 0 < result.high
    assert result.p_value > 0.05
    assert "not more than chance" in result.sentence
    assert list(probe_findings([result], AuditThresholds())) == []
    assert abs(result.chance) < 0.04  # standard deviation: 0.09 of a repeat, so 0.014 of the mean
    assert 0 < result.chance_high < 0.3


@pytest.fixture
def twelve_patients():
    """20 photographs of each patient with one grade and one brightness per patient."""
    rng = np.random.default_rng(3)
    grade = np.repeat(rng.permutation([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]), 20)
    brightness = np.repeat(rng.permutation(np.arange(30.0, 90.0, 5.0)), 20)
    return manifest_of(grade=grade, brightness=brightness, file_size=1, border=0.3, per_patient=20)


def test_photographs_of_a_patient_stay_in_one_fold(twelve_patients):
    assert probe(twelve_patients, FAST).qwk < 0.3
    apart = twelve_patients.assign(patient_id=pd.array(twelve_patients["image_id"], dtype="string"))
    assert probe(apart, FAST).qwk > 0.8


def test_copies_stay_in_one_fold(twelve_patients):
    apart = twelve_patients.assign(patient_id=pd.NA, duplicate=twelve_patients["patient_id"])
    assert probe(apart, FAST).qwk < 0.3


def test_constant_features_give_qwk_0():
    found = probe(manifest_of(file_size=1, border=0.3, brightness=50.0), AuditThresholds())
    assert found.constant == FEATURES
    assert found.qwk == 0
    assert found.p_value == 1
    assert set(found.single.values()) == set(found.importance.values()) == {0.0}


def test_probe_is_reproducible():
    assert probe(manifest_of(100), FAST) == probe(manifest_of(100), FAST)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (manifest_of(40, grade=[0, 4] * 20), "there are 40"),
        (manifest_of(grade=2), "two grades"),
        (manifest_of(per_patient=120), "2 groups for 2 folds"),
        (manifest_of(grade=pd.NA), "there are 0"),
    ],
)
def test_too_few_photographs_skip_the_probe(manifest, reason):
    found = probe(manifest, FAST)
    assert reason in found.skipped
    assert "no shortcut probe" in found.sentence
    assert list(probe_findings([found], AuditThresholds())) == []


def test_rare_grades_are_left_out_and_named():
    grade = np.array([4] * 5 + [0, 1] * 100)
    found = probe(manifest_of(205, grade=grade), FAST)
    assert (found.left_out, found.photographs) == ((4,), 200)


def test_large_data_set_is_sampled():
    found = probe(
        manifest_of(600), AuditThresholds(permutations=19, resamples=100, folds=2, probe_photographs=150)
    )
    assert found.photographs == 150


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3)), min_size=2, max_size=40))
def test_kappa_agrees_with_scikit_learn(rows):
    grades, predicted, weights = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(grades) | set(predicted)) < 2:
        assert kappa(grades, predicted) == 0
        return
    expected = cohen_kappa_score(
        grades, predicted, weights="quadratic", labels=range(5), sample_weight=weights
    )
    assert kappa(grades, predicted, weights.astype(float)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=50), st.integers(0, 9))
def test_shuffling_moves_the_grades_of_whole_groups(rows, seed):
    groups = np.unique([group for group, _ in rows], return_inverse=True)[1]
    grades = np.array([grade for _, grade in rows])
    shuffled = shuffle_groups(grades, groups, np.random.default_rng(seed))

    def contents(values):
        return sorted(tuple(values[groups == group]) for group in range(groups.max() + 1))

    assert contents(shuffled) == contents(grades)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
)
def test_grades_follow_the_ranks_of_scores(scores, training):
    grades = grades_by_rank(np.array(scores, float), np.array(training))
    order = np.argsort(scores, kind="stable")
    assert (np.diff(grades[order]) >= 0).all()
    for score in set(scores):
        assert len(set(grades[np.array(scores) == score])) == 1
    assert set(grades) <= set(range(min(training), max(training) + 1))


def test_distinct_scores_get_the_training_grades_frequencies():
    training = np.repeat([0, 1, 2, 3, 4], [50, 10, 20, 15, 5])
    grades = grades_by_rank(np.random.default_rng(0).permutation(100).astype(float), training)
    assert np.bincount(grades).tolist() == [50, 10, 20, 15, 5]
