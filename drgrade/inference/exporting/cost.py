"""What int8 costs: agreement with the file in 32 bits, and QWK on the test photographs of the run."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drgrade.inference.exporting.graph import Pixels, Runner
from drgrade.inference.exporting.photographs import Images
from drgrade.metrics import confusion_matrix, quadratic_weighted_kappa
from drgrade.progress import track
from drgrade.report.bootstrap import TestFold, interval, resample
from drgrade.report.contents import Estimate

_BATCH = 16
_TIMED, _ROUNDS = 20, 5


@dataclass(frozen=True)
class Agreement:
    """Two files on the same photographs.

    Attributes:
        photographs: How many.
        grades: Share that get the same grade of both.
        expected: Mean absolute difference of the expected grade.
    """

    photographs: int
    grades: float
    expected: float


@dataclass(frozen=True)
class Kappas:
    """QWK on graded test photographs; 95 % intervals by the bootstrap of groups, both on the same draws.

    Attributes:
        before: Of the file in 32 bits.
        after: In eight.
        change: After less before.
    """

    before: Estimate
    after: Estimate
    change: Estimate


def compare(before: Runner, after: Runner, photographs: Pixels) -> Agreement:
    """Ask two files the same.

    Args:
        before: In 32 bits.
        after: In eight.
        photographs: (N, S, S, 3), prepared.
    """
    said = [_ask(run, photographs) for run in (before, after)]
    return _agreement(*said)


def compare_graded(
    before: Runner, after: Runner, images: Images, resamples: int, seed: int
) -> tuple[Agreement, Kappas]:
    """Ask two files about graded photographs.

    Args:
        before: In 32 bits.
        after: In eight.
        images: Of the run's test side.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Agreement of the two, and QWK of both.
    """
    said: list[list[dict[str, Any]]] = [[], []]
    batches = -(-len(images) // _BATCH)
    for pixels in track(images.batches(_BATCH), batches, "grading", "batches of test photographs twice"):
        said[0].append(before(pixels))
        said[1].append(after(pixels))
    first, second = (_joined(parts) for parts in said)
    return _agreement(first, second), _kappas(first, second, images, resamples, seed)


def milliseconds(first: Runner, second: Runner, photographs: Pixels) -> tuple[float, float]:
    """Time per photograph, one at a time, of two files in turn.

    Args:
        first: A file.
        second: Another.
        photographs: (N, S, S, 3); the first of them are used.

    Returns:
        The median of each, in milliseconds.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for run, times in zip((first, second), taken, strict=True):
            for photograph in photographs[:_TIMED]:
                start = time.perf_counter()
                run(photograph[None])
                times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(taken[0])), float(np.median(taken[1]))


def _ask(run: Runner, photographs: Pixels) -> dict[str, Any]:
    starts = range(0, len(photographs), _BATCH)
    return _joined([run(photographs[start : start + _BATCH]) for start in starts])


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _agreement(first: dict[str, Any], second: dict[str, Any]) -> Agreement:
    same = float(np.mean(first["grade"] == second["grade"]))
    gap = float(np.abs(first["expected_grade"] - second["expected_grade"]).mean())
    return Agreement(len(first["grade"]), same, gap)


def _kappas(
    first: dict[str, Any], second: dict[str, Any], images: Images, resamples: int, seed: int
) -> Kappas:
    order = np.argsort(images.table["image_id"].to_numpy(dtype=str))
    table = images.table.iloc[order]
    _, groups = np.unique(table["group"].to_numpy(dtype=str), return_inverse=True)
    grades = table["grade"].to_numpy(dtype=np.int64)
    fold = TestFold("test", table["image_id"].to_numpy(dtype=str), groups.astype(np.int64), grades)
    predicted = np.stack([each["grade"][order] for each in (first, second)])
    probabilities = np.stack([each["probabilities"][order] for each in (first, second)]).astype(np.float64)
    samples = resample(fold, predicted, probabilities, resamples, seed).qwk  # (2, B)
    before, after = (_qwk(each, grades) for each in predicted)
    return Kappas(
        Estimate(before, interval(samples[0])),
        Estimate(after, interval(samples[1])),
        Estimate(after - before, interval(samples[1] - samples[0])),
    )


def _qwk(predicted: npt.NDArray[np.int64], grades: npt.NDArray[np.int64]) -> float:
    confusion = confusion_matrix(torch.tensor(predicted), torch.tensor(grades))
    return float(quadratic_weighted_kappa(confusion))
