"""The torchmetrics classes in one process and in two: bit-identical, and equal to scikit-learn."""

import math

import numpy as np
import pytest
import torch
from ranks import on_two_ranks
from sklearn.metrics import accuracy_score, cohen_kappa_score

from drgrade.metrics.distributed import EpochMean, GradingMetrics
from drgrade.metrics.functional import grading_metrics

# (photographs, how many of them the first process gets, repeats as a distributed sampler adds them)
CASES = [(37, 20, 0), (50, 25, 0), (41, 21, 1), (64, 1, 3), (30, 0, 0), (30, 30, 0), (200, 120, 7), (2, 1, 0)]


def data(case):
    """Return index, probabilities, predictions and grades of a case, in shuffled order."""
    size = CASES[case][0]
    generator = torch.Generator().manual_seed(case)
    grades = torch.randint(0, 5, (size,), generator=generator)
    logits = torch.randn(size, 5, generator=generator) + torch.eye(5)[grades]
    probabilities = logits.softmax(dim=1)
    index = torch.randperm(size, generator=generator)
    return index, probabilities[index], probabilities.argmax(dim=1)[index], grades[index]


def share(case, rank):
    """Return the rows of one of two processes."""
    size, first, repeats = CASES[case]
    rows = torch.arange(size)
    rows = rows[:first] if rank == 0 else torch.cat((rows[first:], rows[:repeats]))
    return [column[rows] for column in data(case)]


def feed(metric, columns, batch=7):
    for rows in zip(*(column.split(batch) for column in columns), strict=True):
        metric.update(*rows)


def results_of(rank):
    results = []
    for case in range(len(CASES)):
        metric = GradingMetrics()
        columns = share(case, rank)
        if len(columns[0]):
            feed(metric, columns)
        found = metric.predictions()
        values = metric.compute()
        local = len(metric.index)  # gathering must leave a process with its own share
        metric.reset()
        results.append(
            (
                values,
                found.index,
                found.probabilities,
                found.grades,
                local,
                len(columns[0]),
                len(metric.index),
            )
        )
    return results


def alone(case):
    metric = GradingMetrics()
    feed(metric, data(case))
    return metric


@pytest.fixture(scope="module")
def two_processes():
    return on_two_ranks(results_of)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_one_process_equals_scikit_learn(case):
    _, _, predicted, grades = data(case)
    values = alone(case).compute()
    labels = list(range(5))
    assert values["accuracy"] == pytest.approx(accuracy_score(grades, predicted), abs=1e-6)
    want = cohen_kappa_score(grades, predicted, weights="quadratic", labels=labels)
    assert values["qwk"] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_equal_one_to_the_last_bit(case, two_processes):
    metric = alone(case)
    want, found = metric.compute(), metric.predictions()
    for rank in range(2):
        values, index, probabilities, grades, local, own, after_reset = two_processes[rank][case]
        assert values == want
        assert torch.equal(index, torch.arange(CASES[case][0]))
        assert torch.equal(probabilities, found.probabilities)
        assert torch.equal(grades, found.grades)
        assert (local, after_reset) == (own, 0)


def test_batches_and_order_do_not_matter():
    columns = data(6)
    want = alone(6).compute()
    for batch in (1, 64, 1000):
        metric = GradingMetrics()
        feed(metric, [column.flip(0) for column in columns], batch)
        assert metric.compute() == want


def test_repeated_photographs_count_once():
    index, probabilities, predicted, grades = data(0)
    metric = GradingMetrics()
    for _ in range(3):
        metric.update(index, probabilities, predicted, grades)
    order = index.argsort()
    assert metric.compute() == grading_metrics(probabilities[order], predicted[order], grades[order])
    assert metric.predictions().index.tolist() == list(range(37))


def test_half_precision_probabilities_are_accepted():
    index, probabilities, predicted, grades = data(0)
    metric = GradingMetrics()
    metric.update(index, probabilities.bfloat16(), predicted, grades)
    assert metric.predictions().probabilities.dtype == torch.float32
    assert metric.compute()["accuracy"] == alone(0).compute()["accuracy"]


def test_reset_clears_the_states():
    metric = alone(0)
    metric.reset()
    feed(metric, data(1))
    assert metric.compute() == alone(1).compute()


def test_forward_returns_the_metrics_of_the_batch_and_accumulates():
    metric = GradingMetrics()
    batches = list(zip(*(column.split(60) for column in data(6)), strict=True))
    for rows in batches:
        batch = GradingMetrics()
        batch.update(*rows)
        assert metric(*rows) == batch.compute()
    assert metric.compute() == alone(6).compute()


def test_batches_are_weighted_by_their_size():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=20), rng.integers(1, 9, size=20)
    mean = EpochMean()
    for value, weight in zip(values, weights, strict=True):
        mean.update(torch.tensor(value), int(weight))
    assert mean.compute().item() == pytest.approx(np.average(values, weights=weights), abs=1e-6)


def test_a_nan_batch_makes_the_mean_nan():
    mean = EpochMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(math.nan), 3)
    assert math.isnan(mean.compute().item())
