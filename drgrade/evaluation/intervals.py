"""Figures with their 95 % intervals: the bootstrap of groups, as in a report."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drgrade.data.photographs import Photographs
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.stats import formatting as words
from drgrade.stats.bootstrap import TestFold, interval_if_spread, resample_metrics
from drgrade.stats.estimates import Estimate

INTERVALS = "intervals.json"

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What is said of N photographs, to be compared with the truth.

    Attributes:
        predicted: (N,) grades.
        probabilities: (N, 5).
        figures: Name of a metric in ``metrics.json``: metric of :mod:`drgrade.stats.bootstrap` that it is of
            these decisions.
    """

    predicted: Counts
    probabilities: Floats
    figures: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How the intervals of one set are made.

    Attributes:
        fold: The photographs.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    fold: TestFold
    resamples: int
    seed: int

    def samples(self, decisions: Decisions) -> dict[str, Floats]:
        """The figures of some decisions in each resample; alike for all decisions on one set.

        Args:
            decisions: On the photographs, in their order.

        Returns:
            (B,) by name in ``metrics.json``.
        """
        found = resample_metrics(
            self.fold, decisions.predicted, decisions.probabilities, self.resamples, self.seed
        )
        return {name: found[metric] for name, metric in decisions.figures.items()}


def sampling(photographs: Photographs, predictions: Predictions, resamples: int, seed: int) -> Sampling:
    """Describe the bootstrap on the photographs that were tested on.

    Args:
        photographs: With a split that names their groups.
        predictions: On those that were tested on.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    rows = photographs.split.iloc[predictions.index.numpy()]
    _, groups = np.unique(rows["group"].to_numpy(dtype=str), return_inverse=True)
    ids = rows["image_id"].to_numpy(dtype=str)
    grades = predictions.grades.numpy().astype(np.int64)
    return Sampling(TestFold("evaluation", ids, groups.astype(np.int64), grades), resamples, seed)


def estimates(metrics: Mapping[str, float], samples: Mapping[str, Floats]) -> dict[str, Estimate]:
    """Put figures and their intervals together.

    Args:
        metrics: Values by name.
        samples: (B,) by name.

    Returns:
        By name, in the order of the samples; NaN ends where no resample defines the figure.
    """
    return {
        name: Estimate(float(metrics[name]), interval_if_spread(values)) for name, values in samples.items()
    }


def write_intervals(folder: Path, found: Mapping[str, Estimate], made: Mapping[str, Sampling]) -> None:
    """Write ``intervals.json``.

    Args:
        folder: Where to.
        found: By name in ``metrics.json``.
        made: How, by the name of the set: ``test``, ``external/NAME``.
    """
    one = next(iter(made.values()))
    sets = {
        name: {"photographs": len(each.fold.grades), "groups": each.fold.num_groups}
        for name, each in made.items()
    }
    record = {
        "level": 0.95,
        "method": "percentile bootstrap of groups",
        "resamples": one.resamples,
        "seed": one.seed,
        "sets": sets,
        "intervals": {name: _plain(estimate) for name, estimate in found.items()},
    }
    write_text(folder / INTERVALS, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """Without NaN, which is no JSON."""
    flat = {"value": estimate.value, **asdict(estimate.interval)}
    return {name: value if math.isfinite(value) else None for name, value in flat.items()}


def lines(found: Mapping[str, Estimate]) -> list[str]:
    """A table for the terminal.

    Args:
        found: By name.

    Returns:
        A line for each figure, under a heading.
    """
    width = max(map(len, found))
    table = [f"{'':{width}}   value   95 % interval"]
    for name, estimate in found.items():
        table.append(
            f"{name:{width}}  {words.decimal(estimate.value):>6}   {words.interval(estimate.interval)}"
        )
    return table
