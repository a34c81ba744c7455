"""The vectorised bootstrap agrees with naive loops and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

import drgrade.metrics.functional as functional
from drgrade.stats import bootstrap
from drgrade.stats.bootstrap import TestFold, aurocs, confusions, draws, interval, kappas, resample

GRADES = arrays.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 4))


def make_fold(count: int, seed: int = 0, name: str = "0") -> tuple[TestFold, np.ndarray, np.ndarray]:
    """Make a fold of ``count`` photographs in groups of one to three, and two runs."""
    rng = np.random.default_rng(seed)
    _, groups = np.unique(rng.integers(0, count // 2, count), return_inverse=True)
    grades = rng.integers(0, 5, count)
    right = rng.random((2, count)) < 0.6
    predicted = np.where(right, grades, rng.integers(0, 5, (2, count)))
    probabilities = rng.dirichlet(np.ones(5), (2, count)).round(1)  # rounded: there are ties
    return TestFold(name, np.arange(count).astype(str), groups, grades), predicted, probabilities


@given(GRADES, st.integers(0, 2**32 - 1))
def test_kappa_and_confusion_equal_scikit_learn_and_the_metrics(grades, seed):
    predicted = np.random.default_rng(seed).integers(0, 5, len(grades))
    confusion = confusions(predicted, grades)
    assert np.array_equal(confusion, confusion_matrix(grades, predicted, labels=range(5)))
    kappa = float(kappas(confusion))
    assert kappa == float(functional.quadratic_weighted_kappa(torch.from_numpy(confusion)))
    if len({*grades, *predicted}) > 1:
        expected = cohen_kappa_score(grades, predicted, labels=range(5), weights="quadratic")
        assert kappa == pytest.approx(expected, abs=1e-12)


def test_kappa_of_a_single_grade_is_0():
    assert kappas(confusions(np.full(4, 2), np.full(4, 2))) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 8))
def test_weighted_auroc_equals_scikit_learn(seed, count, levels):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, count) / levels, rng.random(count) < 0.4
    weights = rng.integers(0, 3, (count, 5)).astype(float)
    for found, weight in zip(aurocs(scores, positive, weights), weights.T, strict=True):
        both = weight[positive].sum() * weight[~positive].sum() > 0
        expected = roc_auc_score(positive, scores, sample_weight=weight) if both else 0.5
        assert found == pytest.approx(expected, abs=1e-12)


def test_unweighted_auroc_equals_the_metrics():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 50) / 9, rng.random(50) < 0.4
    expected = functional.auroc(torch.from_numpy(scores), torch.from_numpy(positive))
    assert aurocs(scores, positive, np.ones((50, 1)))[0] == expected


def test_every_resample_equals_metrics_of_repeated_photographs():
    fold, predicted, probabilities = make_fold(40)
    found = resample(fold, predicted, probabilities, 50, seed=3)
    (counts,) = draws(fold, 50, seed=3)
    for b, drawn in enumerate(counts.astype(int)):
        groups = np.repeat(np.arange(fold.num_groups), drawn)
        rows = np.concatenate([np.flatnonzero(fold.groups == group) for group in groups])
        grades = fold.grades[rows]
        assert found.totals[b].tolist() == [(grades == grade).sum() for grade in range(5)]
        for run in range(2):
            called = predicted[run, rows]
            kappa = cohen_kappa_score(grades, called, labels=range(5), weights="quadratic")
            assert found.qwk[run, b] == pytest.approx(kappa, abs=1e-12)
            auroc = roc_auc_score(grades >= 2, probabilities[run, rows, 2:].sum(axis=1).round(12))
            assert found.auroc[run, b] == pytest.approx(auroc, abs=1e-12)
            hits = [((grades == grade) & (called == grade)).sum() for grade in range(5)]
            assert found.hits[run, b].tolist() == hits


def test_draws_sample_groups_with_replacement_uniformly():
    fold, *_ = make_fold(30)
    counts = np.concatenate(list(draws(fold, 4000, seed=0)))
    assert (counts.sum(axis=1) == fold.num_groups).all()
    # Drawn with replacement, a group's count is binomial: mean 1, variance 1 - 1/G.
    assert counts.mean(axis=0) == pytest.approx(np.ones(fold.num_groups), abs=0.08)
    assert counts.var() == pytest.approx(1 - 1 / fold.num_groups, abs=0.03)


def test_draws_depend_only_on_fold_and_seed(monkeypatch):
    fold, predicted, probabilities = make_fold(30)
    whole = np.concatenate(list(draws(fold, 100, seed=1)))
    monkeypatch.setattr(bootstrap, "_CHUNK", 300)
    parts = list(draws(fold, 100, seed=1))
    assert len(parts) == 10
    assert np.array_equal(np.concatenate(parts), whole)
    other = TestFold("1", fold.image_ids, fold.groups, fold.grades)
    assert not np.array_equal(np.concatenate(list(draws(other, 100, seed=1))), whole)
    assert not np.array_equal(np.concatenate(list(draws(fold, 100, seed=2))), whole)
    in_parts = resample(fold, predicted, probabilities, 100, seed=1)
    monkeypatch.undo()
    at_once = resample(fold, predicted, probabilities, 100, seed=1)
    for name in ("qwk", "auroc", "hits", "totals"):
        assert np.array_equal(getattr(in_parts, name), getattr(at_once, name))


def test_resamples_of_a_run_do_not_depend_on_other_runs():
    fold, predicted, probabilities = make_fold(30)
    both = resample(fold, predicted, probabilities, 60, seed=0)
    alone = resample(fold, predicted[1:], probabilities[1:], 60, seed=0)
    assert np.array_equal(both.qwk[1], alone.qwk[0])
    assert np.array_equal(both.auroc[1], alone.auroc[0])


def test_interval_uses_percentiles_of_defined_samples():
    samples = np.arange(1001.0)
    assert (interval(samples).low, interval(samples).high) == (25, 975)
    assert interval(np.r_[samples, np.nan]) == interval(samples)
    assert np.isnan(interval(np.full(3, np.nan)).low)


def test_intervals_have_the_nominal_coverage():
    """Correct with probability 0.7, else off by one; pairs of photographs share their error."""
    rng = np.random.default_rng(5)

    def sample(groups: int) -> tuple[np.ndarray, np.ndarray]:
        grades = np.repeat(rng.integers(0, 5, groups), 2)
        wrong = np.repeat(rng.random(groups) < 0.3, 2)
        return grades, np.where(wrong, np.where(grades == 4, 3, grades + 1), grades)

    grades, predicted = sample(200_000)
    truth = float(kappas(confusions(predicted, grades)))
    covered = 0
    for _ in range(200):
        grades, predicted = sample(60)
        fold = TestFold("0", np.arange(120).astype(str), np.repeat(np.arange(60), 2), grades)
        ends = interval(resample(fold, predicted[None], np.full((1, 120, 5), 0.2), 400, seed=0).qwk[0])
        covered += ends.low <= truth <= ends.high
    assert 0.88 <= covered / 200 <= 0.99
