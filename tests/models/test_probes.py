"""Probes equal independent references, and a fitted one is restored from its state dict."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import nn

from drgrade.errors import ConfigError
from drgrade.models.heads import CornHead, CumulativeHead, RegressionHead, SoftmaxHead
from drgrade.models.probes import (
    FittedHead,
    KnnProbe,
    LinearProbe,
    MajorityProbe,
    PrototypeProbe,
    knn_shares,
)

HEADS = [CumulativeHead, CornHead, SoftmaxHead, RegressionHead]
D = 12


def drawn(count, seed=0, shift=3.0):
    """Draw features of different scales, one of them constant, that are correlated with the grade."""
    generator = torch.Generator().manual_seed(seed)
    grades = torch.randint(0, 5, (count,), generator=generator)
    features = torch.randn(count, D, generator=generator)
    features[:, 0] += grades
    features[:, 1] -= 0.5 * grades
    features *= torch.logspace(-2, 2, D)
    features[:, -1] = 0.25
    return features + shift, grades


def linear(head=SoftmaxHead, **settings):
    return LinearProbe(D, partial(head), **settings)


ALL = [
    *(pytest.param(partial(linear, head), id=head.__name__) for head in HEADS),
    *(
        pytest.param(partial(probe, D), id=probe.__name__)
        for probe in (KnnProbe, PrototypeProbe, MajorityProbe)
    ),
]


# All probes


@pytest.mark.parametrize("make", ALL)
def test_a_fitted_probe_behaves_like_a_head(make):
    probe = make()
    features, grades = drawn(80)
    probe.fit(features, grades)
    logits = probe(features)
    probabilities = probe.probabilities(logits)
    assert probabilities.shape == (80, 5)
    assert probabilities.dtype == torch.float32
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(80))
    assert probe.predict(logits).min() >= 0
    assert probe.predict(logits).max() <= 4
    assert math.isfinite(probe.loss(logits, grades).item())


@pytest.mark.parametrize("make", ALL)
def test_the_state_dict_holds_everything_fitted(make):
    probe, other = make(), make()
    features, grades = drawn(70)
    probe.fit(features, grades)
    whole, copy = nn.Sequential(probe), nn.Sequential(other)
    copy.load_state_dict(whole.state_dict(), strict=True)
    seen = drawn(9, seed=5)[0]
    assert torch.equal(probe(seen), other(seen))
    assert isinstance(probe, FittedHead)


def test_neighbours_of_another_feature_length_are_not_loaded():
    probe = KnnProbe(D)
    probe.fit(*drawn(10))
    with pytest.raises(RuntimeError, match="bank"):
        KnnProbe(D + 1).load_state_dict(probe.state_dict())


@pytest.mark.parametrize("make", ALL)
def test_autocast_does_not_change_a_probe(make):
    probe = make()
    probe.fit(*drawn(60))
    seen = drawn(9, seed=5)[0]
    with torch.autocast("cpu", torch.bfloat16):
        under = probe(seen)
    assert torch.equal(under, probe(seen))


@pytest.mark.parametrize("make", ALL)
def test_grades_without_labelled_photographs_have_a_finite_loss(make):
    features, grades = drawn(40)
    kept = grades != 3
    probe = make()
    probe.fit(features[kept], grades[kept])
    assert math.isfinite(probe.loss(probe(features), grades).item())


@pytest.mark.parametrize("make", ALL)
def test_one_labelled_photograph_is_enough(make):
    features, grades = drawn(20)
    probe = make()
    probe.fit(features[:1], grades[:1])
    assert (probe.predict(probe(features)) == grades[0]).all()


# The linear probe


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 10.0])
def test_the_softmax_probe_is_logistic_regression(penalty):
    features, grades = drawn(150)
    probe = linear(penalty=penalty)
    assert probe.fit(features, grades) == {"penalty": penalty}
    wide = features.double().numpy()
    varying = wide.std(axis=0) > 0
    standard = (wide - wide.mean(axis=0)) / np.where(varying, wide.std(axis=0), 1)
    reference = LogisticRegression(C=1 / (penalty * len(grades)), tol=1e-8, max_iter=10_000)
    reference.fit(standard, grades.numpy())
    found = probe.probabilities(probe(features)).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(standard), atol=1e-3)


@pytest.mark.parametrize("penalty", [1e-5, 1e-4])
def test_the_softmax_probe_is_logistic_regression_with_separable_classes_and_small_penalties(penalty):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(100, 60, generator=generator)
    grades = (features[:30, 0] > 0).long() + 2 * (torch.rand(30, generator=generator) > 0.5)
    probe = LinearProbe(60, SoftmaxHead, penalty=penalty)
    probe.fit(features[:30], grades)
    mean, deviation = features[:30].mean(dim=0), features[:30].std(dim=0, correction=0)
    standard = ((features - mean) / deviation).double().numpy()
    reference = LogisticRegression(C=1 / (penalty * 30), tol=1e-10, max_iter=10_000)
    reference.fit(standard[:30], grades.numpy())
    found = probe.probabilities(probe(features)).detach().numpy()[:, reference.classes_]
    np.testing.assert_allclose(found, reference.predict_proba(standard), atol=0.03)


@pytest.mark.parametrize("head", HEADS)
def test_no_step_from_the_fitted_layer_lowers_the_objective(head):
    """The objective is written out with unstandardised features and each head's own loss."""
    features, grades = drawn(120)
    probe = linear(head, penalty=0.1)
    probe.fit(features, grades)
    deviation = features.double().std(dim=0, correction=0)
    layer = next(each for each in probe.modules() if isinstance(each, nn.Linear))

    def objective(weight, bias):
        logits = features.double() @ weight.T + bias
        return float(probe.loss(logits, grades)) + 0.05 * float((weight * deviation).square().sum())

    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    best = objective(weight, bias)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        step = torch.randn(weight.shape, generator=generator, dtype=torch.float64)[:, :-1] * 0.02
        moved = weight.clone()
        moved[:, :-1] += step / deviation[:-1]
        shift = -(moved - weight) @ features.double().mean(dim=0)
        assert objective(moved, bias + shift) > best - 1e-6


@pytest.mark.parametrize("made", [CornHead, SoftmaxHead])
def test_class_weights_of_the_head_are_used(made):
    features, grades = drawn(200)
    rare = torch.cat(((grades == 0).nonzero()[:, 0], (grades == 4).nonzero()[:6, 0]))
    plain, weighted = (
        LinearProbe(D, made, penalty=0.1),
        LinearProbe(D, partial(made, weighting="balanced"), penalty=0.1),
    )
    for probe in (plain, weighted):
        probe.fit(features[rare], grades[rare])
    called = [int((probe.predict(probe(features)) == 4).sum()) for probe in (plain, weighted)]
    assert called[1] > called[0]


def test_thresholds_are_fitted_on_validation_photographs_only():
    features, grades = drawn(60)
    val_features, val_grades = drawn(80, seed=1)
    probe = LinearProbe(D, partial(RegressionHead, thresholds="fitted"), penalty=0.1)
    probe.fit(features, grades, (val_features, val_grades))
    logits = probe(val_features).detach()
    reference = RegressionHead(D, hidden=0, thresholds="fitted")
    reference.fit_thresholds(logits, val_grades)
    assert torch.equal(probe.head.thresholds, reference.thresholds)
    assert torch.equal(probe.predict(logits), reference.predict(logits))
    assert not torch.equal(probe.predict(logits), probe.predict_unfitted(logits))
    with pytest.raises(ConfigError, match=r"head\.thresholds"):
        probe.fit(features, grades)


def test_constant_features_have_no_influence():
    features, grades = drawn(60)
    probe = linear(penalty=0.1)
    probe.fit(features, grades)
    before = probe(features)
    features[:, -1] += 100
    assert torch.equal(probe(features), before)


def test_the_penalty_is_selected_by_validation_kappa():
    features, grades = drawn(60)
    val_features, val_grades = drawn(60, seed=1)
    grid = (1e-4, 1e-2, 1.0, 30.0)
    probe = linear(penalties=grid)
    chosen = probe.fit(features, grades, (val_features, val_grades))["penalty"]
    scores = {}
    for penalty in grid:
        one = linear(penalty=penalty)
        one.fit(features, grades)
        predicted = one.predict(one(val_features))
        scores[penalty] = cohen_kappa_score(val_grades, predicted, weights="quadratic")
    assert scores[chosen] == pytest.approx(max(scores.values()))
    assert len(set(scores.values())) > 1
    again = linear(penalty=chosen)
    again.fit(features, grades)
    torch.testing.assert_close(probe(val_features), again(val_features), atol=0.05, rtol=0.01)


def test_without_validation_the_middle_penalty_is_taken():
    assert linear().fit(*drawn(40)) == {"penalty": 0.01}
    assert linear(penalties=(5.0, 1.0, 3.0)).fit(*drawn(40)) == {"penalty": 3.0}


def test_of_equally_good_penalties_the_largest_is_taken():
    features, grades = drawn(60)
    one = torch.zeros(1, dtype=torch.int64)
    probe = linear(penalties=(1e-3, 1e-2, 1e-1))
    assert probe.fit(features, grades, (features[:1], one)) == {"penalty": 1e-1}


def test_a_hidden_layer_is_never_built():
    probe = LinearProbe(D, partial(SoftmaxHead, hidden=64))
    assert sum(each.numel() for each in probe.parameters()) == (D + 1) * 5


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": -1.0},
        {"penalties": ()},
        {"penalty": math.nan},
        {"penalty": math.inf},
        {"penalty": "low"},
        {"penalties": (1, True)},
    ],
)
def test_invalid_penalties_are_refused(settings):
    with pytest.raises(ConfigError, match="penalty"):
        linear(**settings)


# Nearest neighbours


def naive_knn(bank, grades, seen, k, temperature):
    found = []
    for row in seen:
        similarity = [
            sum(a * b for a, b in zip(row, each, strict=True)) / math.hypot(*row) / math.hypot(*each)
            for each in bank
        ]
        votes = [0.0] * 5
        for place in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[grades[place]] += math.exp(similarity[place] / temperature)
        found.append([vote / sum(votes) for vote in votes])
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([0.07, 1.0]), st.integers(0, 1000))
def test_neighbours_vote_as_in_a_naive_loop(count, k, temperature, seed):
    features, grades = drawn(count, seed, shift=0.0)
    features = features / torch.logspace(-2, 2, D)
    seen = torch.randn(4, D, generator=torch.Generator().manual_seed(seed + 1))
    probe = KnnProbe(D, k=k, temperature=temperature)
    assert probe.fit(features, grades) == {"k": min(k, count)}
    expected = naive_knn(features.double().tolist(), grades.tolist(), seen.double().tolist(), k, temperature)
    np.testing.assert_allclose(probe.probabilities(probe(seen)).numpy(), expected, atol=2e-4)


def test_neighbours_equal_scikit_learns():
    features, grades = drawn(200, shift=0.0)
    seen = drawn(50, seed=3, shift=0.0)[0]
    probe = KnnProbe(D, k=7)
    probe.fit(features, grades)
    reference = KNeighborsClassifier(7, metric="cosine", weights=lambda apart: np.exp((1 - apart) / 0.07))
    reference.fit(features.double().numpy(), grades.numpy())
    expected = reference.predict_proba(seen.double().numpy())
    np.testing.assert_allclose(probe.probabilities(probe(seen)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 2.5}, {"k": True}, {"temperature": 0.0}])
def test_invalid_neighbour_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        KnnProbe(D, **settings)


# Prototypes


def test_prototypes_are_the_nearest_centroids():
    features, grades = drawn(120)
    probe = PrototypeProbe(D)
    probe.fit(features, grades)
    seen = drawn(60, seed=2)[0]
    reference = NearestCentroid().fit(features.double().numpy(), grades.numpy())
    expected = reference.predict(seen.double().numpy())
    assert probe.predict(probe(seen)).tolist() == expected.tolist()


def test_prototype_probabilities_are_a_softmax_of_scaled_squared_distances():
    features, grades = drawn(60)
    seen = drawn(9, seed=2)[0]
    probe = PrototypeProbe(D)
    probe.fit(features, grades)
    means = torch.stack([features[grades == grade].mean(dim=0) for grade in range(5)])
    unit = (features - features.mean(dim=0)).square().sum(dim=1).mean()
    expected = torch.softmax(-torch.cdist(seen, means).square() / unit, dim=1)
    torch.testing.assert_close(probe.probabilities(probe(seen)), expected, atol=1e-4, rtol=1e-4)
    other = PrototypeProbe(D)
    other.fit(1000 * features, grades)
    torch.testing.assert_close(other(1000 * seen), probe(seen), atol=1e-4, rtol=1e-4)


def test_a_grade_without_a_prototype_is_never_predicted():
    features, grades = drawn(60)
    kept = grades != 2
    probe = PrototypeProbe(D)
    probe.fit(features[kept], grades[kept])
    assert 2 not in probe.predict(probe(features))


# The majority


def test_the_majority_probe_predicts_the_most_frequent_grade_with_the_frequencies():
    grades = torch.tensor([2, 0, 2, 4, 2, 0])
    probe = MajorityProbe(D)
    probe.fit(torch.zeros(6, 0), grades)
    logits = probe(torch.zeros(3, 0))
    assert probe.predict(logits).tolist() == [2, 2, 2]
    shares = torch.tensor([2 / 6, 0, 3 / 6, 0, 1 / 6]).expand(3, -1)
    torch.testing.assert_close(probe.probabilities(logits), shares)
    assert probe.loss(logits, torch.tensor([2, 2, 0])).item() == pytest.approx(
        float(F.nll_loss(shares.log(), torch.tensor([2, 2, 0])))
    )
    assert not probe.needs_features


def example(count=40, bank=60, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, width, generator=generator),
        torch.randn(bank, width, generator=generator),
        torch.randint(0, 5, (bank,), generator=generator),
    )


@pytest.mark.parametrize("neighbours", [1, 5, 60])
def test_knn_shares_equal_scikit_learns(neighbours):
    features, bank, grades = example()
    grades[:5] = torch.arange(5)
    reference = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = reference.fit(bank.numpy(), grades.numpy()).predict_proba(features.numpy())
    votes = knn_shares(features, bank, grades, neighbours)
    np.testing.assert_allclose(votes.numpy(), expected, atol=1e-4)
    torch.testing.assert_close(votes.sum(dim=1), torch.ones(40))


def test_a_photograph_is_its_own_nearest_neighbour_whatever_its_length():
    _, bank, grades = example()
    assert torch.equal(knn_shares(bank * 3, bank, grades, 1).argmax(dim=1), grades)
