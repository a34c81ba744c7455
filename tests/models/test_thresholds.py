"""Fitted thresholds against exhaustive search and scikit-learn's kappa."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from drgrade.errors import ConfigError
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.heads import RegressionHead, SoftmaxHead
from drgrade.models.thresholds import best_thresholds, rounding_thresholds


def read(values, thresholds):
    return (values[:, None] >= thresholds).sum(dim=1)


def kappa(values, grades, thresholds):
    return float(quadratic_weighted_kappa(confusion_matrix(read(values, thresholds), grades)))


def best_of_all(values, grades):
    """Return the highest kappa over all positions of four thresholds between the values."""
    distinct = torch.unique(values)
    places = [*distinct.tolist(), float(distinct[-1]) + 1]
    return max(
        kappa(values, grades, torch.tensor(chosen)) for chosen in combinations_with_replacement(places, 4)
    )


samples = st.lists(
    st.tuples(st.sampled_from([-0.5, 0.1, 0.4, 0.9, 1.1, 1.5, 2.2, 3.0, 4.4]), st.integers(0, 4)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(samples)
def test_no_other_thresholds_give_a_higher_kappa(pairs):
    values, grades = torch.tensor([v for v, _ in pairs]), torch.tensor([g for _, g in pairs])
    found = best_thresholds(values, grades, 5)
    assert bool((found[1:] >= found[:-1]).all())
    assert kappa(values, grades, found) == pytest.approx(best_of_all(values, grades), abs=1e-12)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(values)))
    assert torch.equal(found, best_thresholds(values[shuffled], grades[shuffled], 5))


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_of_many_photographs_beat_rounding_and_a_coordinate_search(seed):
    generator = torch.Generator().manual_seed(seed)
    grades = torch.multinomial(torch.tensor([0.7, 0.07, 0.15, 0.05, 0.03]), 600, True, generator=generator)
    values = 0.6 * grades + 0.3 + 0.5 * torch.randn(600, generator=generator)  # shrunk to the mean
    found = best_thresholds(values, grades, 5)
    best = kappa(values, grades, found)
    assert best == pytest.approx(
        cohen_kappa_score(grades, read(values, found), weights="quadratic"), abs=1e-12
    )
    assert best > kappa(values, grades, rounding_thresholds(5)) + 0.05
    grid = torch.linspace(-0.5, 4, 46)
    searched = rounding_thresholds(5)
    for _ in range(3):
        for k in range(4):
            tried = [torch.cat((searched[:k], each[None], searched[k + 1 :])) for each in grid]
            searched = max(tried, key=lambda each: kappa(values, grades, each.sort().values)).sort().values
    assert best >= kappa(values, grades, searched)


def test_ten_thousand_photographs_do_not_overflow():
    values, grades = torch.rand(10_000) * 4, torch.arange(10_000) % 5
    found = best_thresholds(values, grades, 5)
    assert kappa(values, grades, found) >= kappa(values, grades, rounding_thresholds(5))


def test_without_gain_the_thresholds_round():
    exact = torch.tensor([0.1, 0.9, 2.2, 2.9, 4.0])
    assert torch.equal(best_thresholds(exact, torch.arange(5), 5), rounding_thresholds(5))
    assert torch.equal(best_thresholds(exact, torch.full((5,), 2), 5), rounding_thresholds(5))


def test_thresholds_are_midpoints():
    values = torch.tensor([0.0, 0.2, 0.4, 1.0, 1.2])
    found = best_thresholds(values, torch.tensor([0, 1, 2, 3, 4]), 5)
    assert found.tolist() == pytest.approx([0.1, 0.3, 0.7, 1.1])


def test_neighbouring_floats_are_separated():
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    values, grades = torch.tensor([low, low, high, high]), torch.tensor([0, 0, 4, 4])
    assert read(values, best_thresholds(values, grades, 5)).tolist() == [0, 0, 4, 4]


def test_the_head_predicts_with_fitted_thresholds_and_validates_with_rounding():
    head = RegressionHead(4, hidden=0, thresholds="fitted")
    values, grades = torch.tensor([[0.0], [0.2], [0.4], [1.0], [1.2]]), torch.arange(5)
    assert torch.equal(head.predict(values), head.predict_unfitted(values))
    before = head.probabilities(values)
    head.fit_thresholds(values, grades)
    assert head.predict(values).tolist() == [0, 1, 2, 3, 4]
    assert head.predict_unfitted(values).tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(head.probabilities(values), before)
    other = RegressionHead(4, hidden=0, thresholds="fitted")
    other.load_state_dict(head.state_dict())
    assert other.predict(values).tolist() == [0, 1, 2, 3, 4]


def test_thresholds_are_fitted_by_the_regression_head_on_request_only():
    assert not RegressionHead(4).fits_thresholds
    assert not SoftmaxHead(4).fits_thresholds
    assert "thresholds" not in RegressionHead(4).state_dict()
    for head in (RegressionHead(4), SoftmaxHead(4)):
        with pytest.raises(ConfigError, match=r"nothing to fit|no thresholds"):
            head.fit_thresholds(torch.zeros(2, 1), torch.arange(2))
    with pytest.raises(ConfigError, match=r"head\.thresholds=third is neither half nor fitted"):
        RegressionHead(4, thresholds="third")
