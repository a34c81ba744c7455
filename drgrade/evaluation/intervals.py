"""Metrics with 95 % intervals from the bootstrap of groups, as in a report."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from drgrade.data.photographs import Photographs
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.stats import formatting
from drgrade.stats.bootstrap import TestFold, interval_if_spread, resample_metrics
from drgrade.stats.estimates import Counts, Estimate, Floats

INTERVALS = "intervals.json"


@dataclass(frozen=True, eq=False)
class MetricSource:
    """Predictions for N photographs, and the metrics that are computed from them.

    Attributes:
        predicted: (N,) grades.
        probabilities: (N, 5).
        metrics: Name in ``metrics.json`` to metric of :mod:`drgrade.stats.bootstrap`.
    """

    predicted: Counts
    probabilities: Floats
    metrics: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class GroupBootstrap:
    """Bootstrap of the photographs of one set.

    Attributes:
        fold: The photographs.
        resamples: Number B of resamples.
        seed: Seed of the draws.
    """

    fold: TestFold
    resamples: int
    seed: int

    def samples(self, source: MetricSource) -> dict[str, Floats]:
        """Compute metrics on each resample; the draws are the same for all predictions of the set.

        Args:
            source: Predictions for the photographs in order.

        Returns:
            (B,) values by name in ``metrics.json``.
        """
        found = resample_metrics(self.fold, source.predicted, source.probabilities, self.resamples, self.seed)
        return {name: found[metric] for name, metric in source.metrics.items()}


def group_bootstrap(
    photographs: Photographs, predictions: Predictions, resamples: int, seed: int
) -> GroupBootstrap:
    """Set up the bootstrap of the tested photographs.

    Args:
        photographs: With a split that names their groups.
        predictions: For the tested photographs.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    rows = photographs.split.iloc[predictions.index.numpy()]
    _, groups = np.unique(rows["group"].to_numpy(dtype=str), return_inverse=True)
    ids = rows["image_id"].to_numpy(dtype=str)
    grades = predictions.grades.numpy().astype(np.int64)
    return GroupBootstrap(TestFold("evaluation", ids, groups.astype(np.int64), grades), resamples, seed)


def estimates(metrics: Mapping[str, float], samples: Mapping[str, Floats]) -> dict[str, Estimate]:
    """Combine values with their intervals.

    Args:
        metrics: Values by name.
        samples: (B,) resampled values by name.

    Returns:
        Estimates in the order of the samples; the interval is NaN where no resample defines the metric, or
        all agree.
    """
    return {
        name: Estimate(float(metrics[name]), interval_if_spread(values)) for name, values in samples.items()
    }


def write_intervals(
    folder: Path, found: Mapping[str, Estimate], bootstraps: Mapping[str, GroupBootstrap]
) -> None:
    """Write ``intervals.json``.

    Args:
        folder: Output folder.
        found: Estimates by name in ``metrics.json``.
        bootstraps: Bootstrap of each set: ``test``, ``external/NAME``.
    """
    first = next(iter(bootstraps.values()))
    record = {
        "level": 0.95,
        "method": "percentile bootstrap of groups",
        "resamples": first.resamples,
        "seed": first.seed,
        "sets": {
            name: {"photographs": len(each.fold.grades), "groups": each.fold.num_groups}
            for name, each in bootstraps.items()
        },
        "intervals": {name: _without_nan(estimate) for name, estimate in found.items()},
    }
    write_text(folder / INTERVALS, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _without_nan(estimate: Estimate) -> dict[str, float | None]:
    flat = {"value": estimate.value, **asdict(estimate.interval)}
    return {name: value if math.isfinite(value) else None for name, value in flat.items()}


def table_lines(found: Mapping[str, Estimate]) -> list[str]:
    """Format estimates as a table for the terminal.

    Args:
        found: Estimates by name.

    Returns:
        A heading, and one line per estimate.
    """
    width = max(map(len, found))
    table = [f"{'':{width}}   value   95 % interval"]
    for name, each in found.items():
        value, interval = formatting.decimal(each.value), formatting.interval(each.interval)
        table.append(f"{name:{width}}  {value:>6}   {interval}")
    return table
