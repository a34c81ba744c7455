"""Metrics of a resample equal those of the drawn photographs."""

import numpy as np
import pytest
import torch

from drgrade.metrics.functional import grading_metrics
from drgrade.stats.bootstrap import METRICS, TestFold, draws, resample_metrics


def drawn(seed, count=60, groups=25, grades=(0, 1, 2, 3, 4)):
    rng = np.random.default_rng(seed)
    truth = rng.choice(grades, count)
    logits = rng.normal(size=(count, 5)) + np.eye(5)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    group = np.unique(rng.integers(0, groups, count), return_inverse=True)[1]
    fold = TestFold(
        "evaluation", np.arange(count).astype(str), group.astype(np.int64), truth.astype(np.int64)
    )
    return fold, probabilities.argmax(axis=1), probabilities


def reference(fold, predicted, probabilities, counts):
    rows = np.repeat(np.arange(len(fold.grades)), counts[fold.groups].astype(int))
    parts = [torch.from_numpy(each[rows]) for each in (probabilities, predicted, fold.grades)]
    return grading_metrics(*parts)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_a_resample_equal_those_of_its_photographs(seed):
    fold, predicted, probabilities = drawn(seed)
    found = resample_metrics(fold, predicted, probabilities, 20, seed)
    (counts,) = draws(fold, 20, seed)
    for number, row in enumerate(counts):
        expected = reference(fold, predicted, probabilities, row)
        for name in METRICS:
            assert found[name][number] == pytest.approx(expected[name], abs=1e-12), name


def test_undefined_metrics_of_a_resample_are_nan():
    fold, predicted, probabilities = drawn(0, grades=(0,))
    found = resample_metrics(fold, predicted, probabilities, 20, 0)
    for name in ("auroc", "referable_auroc", "referable_sensitivity"):
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["referable_specificity"]).all()


def test_predictions_of_one_set_share_the_draws():
    """Paired differences require equal draws."""
    fold, predicted, probabilities = drawn(1)
    first = resample_metrics(fold, predicted, probabilities, 50, 0)
    other = resample_metrics(fold, np.zeros_like(predicted), probabilities, 50, 0)
    np.testing.assert_array_equal(first["nll"], other["nll"])
    assert (first["qwk"] != other["qwk"]).any()
