"""The mean over an epoch is weighted, and does not hide a NaN."""

import math

import numpy as np
import pytest
import torch

from drgrade.metrics.distributed import EpochMean


def test_batches_count_by_their_size():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=20), rng.integers(1, 9, size=20)
    mean = EpochMean()
    for value, weight in zip(values, weights, strict=True):
        mean.update(torch.tensor(value), int(weight))
    assert mean.compute().item() == pytest.approx(np.average(values, weights=weights), abs=1e-6)


def test_a_batch_that_is_nan_shows():
    mean = EpochMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(math.nan), 3)
    assert math.isnan(mean.compute().item())
