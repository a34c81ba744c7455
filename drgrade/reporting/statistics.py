"""Results of rows, computed from stored predictions."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drgrade.grades import NUM_GRADES, REFERABLE
from drgrade.metrics.functional import grading_metrics
from drgrade.models.calibration import TARGET_SENSITIVITIES
from drgrade.models.calibration import Calibration as Fitted
from drgrade.reporting.calibration import CalibratedRun, CalibrationScores, resample_calibrated
from drgrade.reporting.checks import fold_order
from drgrade.reporting.schema import Calibrated, Change, Reached, ResultRow
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold, confusions, interval, resample
from drgrade.stats.curves import ReliabilityCurve, RocCurve, reliability_curve, roc_curve
from drgrade.stats.estimates import Counts, Estimate, Floats, Range


@dataclass(frozen=True, eq=False)
class Result:
    """Metrics of a run.

    Attributes:
        run: The run.
        metrics: Computed from its predictions (:func:`drgrade.metrics.functional.grading_metrics`).
        qwk: (B,) QWK in each resample.
        auroc: (B,) AUROC for referable DR in each resample.
        hits: (B, 5) correctly graded photographs of each grade in each resample.
        totals: (B, 5) photographs of each grade in each resample.
        calibrated: Calibrated predictions and their metrics; None if the run has no calibration.
    """

    run: Run
    metrics: Mapping[str, float]
    qwk: Floats
    auroc: Floats
    hits: Floats
    totals: Floats
    calibrated: CalibratedRun | None = None


def compute_results(
    runs: Sequence[Run], folds: Mapping[str, TestFold], resamples: int, seed: int
) -> list[Result]:
    """Compute the metrics of all runs; all runs of a fold share the same resamples.

    Args:
        runs: All runs of a report.
        folds: Test photographs of each fold.
        resamples: B.
        seed: Random seed of the bootstrap.

    Returns:
        One result for each run, fold by fold.
    """
    found: list[Result] = []
    for name, fold in folds.items():
        tested = [run for run in runs if run.fold == name]
        resampled = resample(
            fold,
            np.stack([run.predicted for run in tested]),
            np.stack([run.probabilities for run in tested]),
            resamples,
            seed,
        )
        calibrated = resample_calibrated(fold, tested, resamples, seed)
        each = zip(tested, resampled.qwk, resampled.auroc, resampled.hits, calibrated, strict=True)
        found += [
            Result(run, _metrics(run), qwk, auroc, hits, resampled.totals, own)
            for run, qwk, auroc, hits, own in each
        ]
    return found


def _metrics(run: Run) -> dict[str, float]:
    return grading_metrics(*map(torch.from_numpy, (run.probabilities, run.predicted, run.grades)))


def group_by_row(found: Sequence[Result]) -> dict[tuple[str, float], list[Result]]:
    """Group results by method and label fraction, sorted by fold and seed."""
    rows: dict[tuple[str, float], list[Result]] = defaultdict(list)
    for result in sorted(found, key=lambda result: (fold_order(result.run.fold), result.run.seed)):
        rows[result.run.method, result.run.label_fraction].append(result)
    return dict(rows)


def over_folds(results: Sequence[Result], figure: Callable[[Result], float | Floats]) -> dict[str, Floats]:
    """Average a value over the seeds of each fold.

    Args:
        results: Results of a row.
        figure: Function from a result to a number or an array.

    Returns:
        Mean by fold.
    """
    folds: dict[str, list[float | Floats]] = defaultdict(list)
    for result in results:
        folds[result.run.fold].append(figure(result))
    return {fold: np.mean(np.asarray(figures, dtype=np.float64), axis=0) for fold, figures in folds.items()}


def mean_over_folds(results: Sequence[Result], figure: Callable[[Result], float | Floats]) -> Floats:
    """Average :func:`over_folds` over the folds, so that all folds have equal weight."""
    return np.asarray(np.mean(list(over_folds(results, figure).values()), axis=0))


def compute_row(results: Sequence[Result], complete: bool) -> ResultRow:
    """Compute a row.

    Args:
        results: Results of one method at one label fraction, sorted by fold and seed.
        complete: No run is known to be missing.

    Returns:
        The row; it is also incomplete if its folds have different seeds.
    """
    by_fold = over_folds(results, lambda result: result.metrics["qwk"])
    folds = {fold: float(qwk) for fold, qwk in by_fold.items()}
    values = list(folds.values())
    seeds = _seeds(results)
    costs = [result.run.provenance for result in results]
    return ResultRow(
        method=results[0].run.method,
        label_fraction=results[0].run.label_fraction,
        folds=folds,
        seeds=sorted(set.intersection(*seeds.values())),
        minimum=min(values),
        mean=Estimate(float(np.mean(values)), interval(mean_over_folds(results, lambda result: result.qwk))),
        maximum=max(values),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        metrics=_other_metrics(results),
        confusion=_confusion(results),
        recall=_recall(results),
        calibration=_calibration(results),
        roc=_pooled_roc(results),
        referable_auroc=Estimate(
            float(mean_over_folds(results, lambda result: result.metrics["referable_auroc"])),
            interval(mean_over_folds(results, lambda result: result.auroc)),
        ),
        labels=float(mean_over_folds(results, lambda one: float((one.run.split["subset"] == "train").sum()))),
        seconds=_mean([float(fact["seconds"]) for fact in costs if fact.get("seconds") is not None]),
        images_per_second=_mean([speed for fact in costs if (speed := images_per_second(fact)) is not None]),
        peak_memory=max(
            (int(fact["peak_memory"]) for fact in costs if fact.get("peak_memory") is not None), default=None
        ),
        complete=complete and len({frozenset(of_fold) for of_fold in seeds.values()}) == 1,
        calibrated=_calibrated(results),
        uncalibrated=next(
            (each.run.calibration.note for each in results if not each.run.calibration.photographs), ""
        ),
    )


def _seeds(results: Sequence[Result]) -> dict[str, set[int]]:
    """Return the seeds of each fold."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for result in results:
        seeds[result.run.fold].add(result.run.seed)
    return seeds


def _other_metrics(results: Sequence[Result]) -> dict[str, float]:
    names = [name for name in results[0].metrics if name != "qwk"]
    means = mean_over_folds(results, lambda result: np.array([result.metrics[name] for name in names]))
    return dict(zip(names, means.tolist(), strict=True))


def _confusion(results: Sequence[Result]) -> Counts:
    counts = [confusions(result.run.predicted, result.run.grades) for result in results]
    return np.asarray(np.sum(counts, axis=0), dtype=np.int64)


def _recall(results: Sequence[Result]) -> list[Estimate]:
    """Compute recall over the photographs of all folds and seeds together."""
    confusion = _confusion(results)
    hits = np.sum([result.hits for result in results], axis=0)  # (B, 5)
    totals = np.sum([result.totals for result in results], axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: the grade does not occur
        values, samples = np.diagonal(confusion) / confusion.sum(axis=1), hits / totals
    return [Estimate(float(values[grade]), interval(samples[:, grade])) for grade in range(NUM_GRADES)]


def _calibration(results: Sequence[Result]) -> ReliabilityCurve:
    probabilities = np.concatenate([result.run.probabilities for result in results])
    grades = np.concatenate([result.run.grades for result in results])
    ece = float(mean_over_folds(results, lambda result: result.metrics["ece"]))
    return reliability_curve(probabilities, grades, ece)


def _calibrated(results: Sequence[Result]) -> Calibrated | None:
    if any(result.calibrated is None for result in results):
        return None

    def own(result: Result) -> CalibratedRun:
        assert result.calibrated is not None
        return result.calibrated

    fitted = [result.run.calibration for result in results]
    ece = _change(results, lambda one: own(one).found.ece[0], lambda one: own(one).samples.ece)
    temperatures = over_folds(results, lambda result: result.run.calibration.temperature)
    probabilities = np.concatenate([own(result).probabilities for result in results])
    grades = np.concatenate([result.run.grades for result in results])
    return Calibrated(
        photographs=Range.of(each.photographs for each in fitted),
        temperatures={fold: float(value) for fold, value in temperatures.items()},
        thresholds=[Range.of(values) for values in zip(*(each.thresholds for each in fitted), strict=True)],
        nll=_change(results, lambda one: own(one).found.nll[0], lambda one: own(one).samples.nll),
        ece=ece,
        qwk=_change(
            results,
            lambda one: np.array([one.metrics["qwk"], own(one).found.qwk[0]]),
            lambda one: np.stack([one.qwk, own(one).samples.qwk], axis=1),
        ),
        reliability=reliability_curve(probabilities, grades, ece.after),
        points=_reached(fitted, list(map(own, results))),
    )


def _change(
    results: Sequence[Result], found: Callable[[Result], Floats], samples: Callable[[Result], Floats]
) -> Change:
    """Average (2,) values and (B, 2) samples, before and after calibration, over the folds."""
    before, after = mean_over_folds(results, found).tolist()
    ends = interval(np.diff(mean_over_folds(results, samples), axis=1)[:, 0])
    return Change(before, after, Estimate(after - before, ends))


def _reached(fitted: Sequence[Fitted], found: Sequence[CalibratedRun]) -> list[Reached]:
    """Evaluate the operating points over the photographs of all folds and seeds together."""
    if not all(each.points for each in fitted):
        return []
    with np.errstate(invalid="ignore"):  # 0 / 0: no such photograph
        values = _rates([each.found for each in found])
        samples = _rates([each.samples for each in found])

    def rate(kind: int, place: int) -> Estimate:
        return Estimate(float(values[0, kind, place]), interval(samples[:, kind, place]))

    thresholds = [Range.of(run.point(target).threshold for run in fitted) for target in TARGET_SENSITIVITIES]
    points = enumerate(zip(TARGET_SENSITIVITIES, thresholds, strict=True))
    return [Reached(target, limits, rate(0, place), rate(1, place)) for place, (target, limits) in points]


def _rates(figures: Sequence[CalibrationScores]) -> Floats:
    """Return (B, 2, T) sensitivities and specificities."""
    hits = np.sum([each.hits for each in figures], axis=0)
    return np.asarray(hits / np.sum([each.totals for each in figures], axis=0)[..., None])


def _pooled_roc(results: Sequence[Result]) -> RocCurve:
    scores = np.concatenate([result.run.probabilities[:, REFERABLE:].sum(axis=1) for result in results])
    grades = np.concatenate([result.run.grades for result in results])
    return roc_curve(scores, grades >= REFERABLE)


def _mean(known: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(np.mean(known)) if known else float("nan")


def images_per_second(provenance: Mapping[str, object]) -> float | None:
    """Return the throughput of a run from its provenance.

    Runs of older versions recorded images and seconds instead; None if these are unknown, too.
    """
    speed, images, seconds = (provenance.get(name) for name in ("images_per_second", "images", "seconds"))
    if isinstance(speed, int | float):
        return float(speed)
    if isinstance(images, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return images / seconds
    return None
