import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from drgrade.metrics.functional import effective_rank, feature_std


def noise(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_isotropic_features_have_a_spread_of_one():
    assert feature_std(noise(4000, 64)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("count", [2, 7, 50])
def test_collapsed_features_have_neither_spread_nor_rank(count):
    collapsed = noise(1, 16).expand(count, 16)
    assert feature_std(collapsed) == pytest.approx(0, abs=1e-9)
    assert effective_rank(collapsed) == 0


def test_the_length_of_features_does_not_count():
    features = noise(30, 8)
    lengths = torch.linspace(0.1, 9, 30)[:, None]
    assert feature_std(features * lengths) == pytest.approx(feature_std(features))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_features_of_few_directions_have_that_rank_at_most(rank):
    features = noise(200, rank).double() @ noise(rank, 32, seed=1).double()
    assert 1 - 1e-9 <= effective_rank(features) <= rank + 1e-6


def test_equal_singular_values_give_the_number_of_directions():
    turned, _ = torch.linalg.qr(noise(64, 5).double() - noise(64, 5).double().mean(dim=0))
    assert effective_rank(turned + 3.0) == pytest.approx(5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(1, 12), st.integers(0, 1000))
def test_the_effective_rank_is_scipys_entropy_of_numpys_singular_values(count, width, seed):
    features = np.random.default_rng(seed).normal(size=(count, width))
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    expected = np.exp(entropy(values))
    assert effective_rank(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-9 <= expected <= min(count, width) + 1e-9


@pytest.mark.parametrize("count", [0, 1])
def test_one_photograph_or_none_has_no_spread(count):
    assert feature_std(noise(count, 4)) == 0
    assert effective_rank(noise(count, 4)) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_no_figure(broken):
    features = noise(5, 4)
    features[2, 1] = broken
    assert np.isnan(effective_rank(features))
    assert np.isnan(feature_std(features))
