import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from sklearn.metrics import confusion_matrix as reference_confusion

from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def kappa(predicted, grades, num_grades=5):
    return quadratic_weighted_kappa(
        confusion_matrix(torch.as_tensor(predicted), torch.as_tensor(grades), num_grades)
    ).item()


@pytest.mark.parametrize(("size", "num_grades"), list(itertools.product([2, 7, 50, 1000], [2, 3, 5])))
@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9])
def test_kappa_and_confusion_equal_scikit_learns(size, num_grades, agreement):
    rng = np.random.default_rng([size, num_grades, int(10 * agreement)])
    for _ in range(5):
        grades = rng.integers(0, num_grades, size)
        predicted = np.where(rng.random(size) < agreement, grades, rng.integers(0, num_grades, size))
        labels = list(range(num_grades))
        ours = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(grades), num_grades)
        assert ours.tolist() == reference_confusion(grades, predicted, labels=labels).tolist()
        if len({*grades, *predicted}) > 1:
            want = cohen_kappa_score(grades, predicted, labels=labels, weights="quadratic")
            assert kappa(predicted, grades, num_grades) == pytest.approx(want, abs=1e-9)


def test_kappa_is_a_float64_scalar_and_confusion_int64():
    confusion = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert (confusion.dtype, tuple(confusion.shape)) == (torch.int64, (5, 5))
    assert confusion[2, 1] == 1  # rows are the truth
    result = quadratic_weighted_kappa(confusion)
    assert (result.dtype, result.ndim) == (torch.float64, 0)


@settings(deadline=None, max_examples=100)
@given(pairs)
def test_kappa_is_symmetric_bounded_and_blind_to_order(cells):
    predicted, grades = zip(*cells, strict=True)
    value = kappa(predicted, grades)
    assert -1 <= value <= 1
    assert kappa(grades, predicted) == value
    assert kappa(predicted[::-1], grades[::-1]) == value


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4), min_size=2).filter(lambda grades: len(set(grades)) > 1))
def test_kappa_of_perfect_agreement_is_one(grades):
    assert kappa(grades, grades) == 1


@settings(deadline=None, max_examples=50)
@given(pairs, st.integers(2, 9))
def test_kappa_does_not_change_when_every_photograph_is_repeated(cells, times):
    predicted, grades = zip(*cells, strict=True)
    assert kappa(predicted * times, grades * times) == pytest.approx(kappa(predicted, grades), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_kappa_does_not_change_when_the_scale_is_turned_round(cells):
    predicted, grades = zip(*cells, strict=True)
    turned = kappa([4 - p for p in predicted], [4 - g for g in grades])
    assert turned == pytest.approx(kappa(predicted, grades), abs=1e-12)


def test_kappa_of_opposite_gradings_is_minus_one():
    assert kappa([4, 0], [0, 4]) == -1


@pytest.mark.parametrize(
    ("predicted", "grades", "warns"),
    [
        ([2, 2, 2], [2, 2, 2], True),
        ([], [], True),
        ([1, 1, 1], [0, 1, 2], False),
        ([0, 1, 2], [1, 1, 1], False),
    ],
)
def test_kappa_without_variation_is_zero(predicted, grades, warns, caplog):
    empty = {"dtype": torch.int64}
    assert kappa(torch.tensor(predicted, **empty), torch.tensor(grades, **empty)) == 0
    assert len(caplog.records) == int(warns)


@pytest.mark.parametrize(("predicted", "grades"), [([5], [0]), ([0], [-1]), ([0, 1], [0])])
def test_values_that_are_no_grades_are_refused(predicted, grades):
    with pytest.raises(ValueError, match="grades"):
        confusion_matrix(torch.tensor(predicted), torch.tensor(grades))
