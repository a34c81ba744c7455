"""The figures of a row of the table, each from the stored predictions."""

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
from drgrade.reporting.schema import Calibrated, Change, Reached, ReliabilityCurve, ResultRow, RocCurve
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import Booleans, TestFold, confusions, interval, resample
from drgrade.stats.estimates import Counts, Estimate, Floats, Range

BINS = 15
"""Of the expected calibration error, as in :mod:`drgrade.metrics.calibration`."""


@dataclass(frozen=True, eq=False)
class Result:
    """A run with its figures.

    Attributes:
        run: Which.
        metrics: From its predictions; see :func:`drgrade.metrics.grading_metrics`.
        qwk: (B,) in each resample.
        auroc: (B,) of referable DR in each resample.
        hits: (B, 5) photographs of each grade called right in each resample.
        totals: (B, 5) photographs of each grade in each resample.
        calibrated: What its calibration is worth; None if it has none.
    """

    run: Run
    metrics: Mapping[str, float]
    qwk: Floats
    auroc: Floats
    hits: Floats
    totals: Floats
    calibrated: CalibratedRun | None = None


def results(runs: Sequence[Run], folds: Mapping[str, TestFold], resamples: int, seed: int) -> list[Result]:
    """Compute the figures of all runs, with the same resamples in all runs of a fold.

    Args:
        runs: Of a report.
        folds: Their test photographs.
        resamples: B.
        seed: Of the bootstrap.

    Returns:
        A result for each run, fold by fold.
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
    parts = (run.probabilities, run.predicted, run.grades)
    return grading_metrics(*map(torch.from_numpy, parts))


def by_row(found: Sequence[Result]) -> dict[tuple[str, float], list[Result]]:
    """Group results by method and label fraction, each group by fold and seed.

    Args:
        found: Results in any order.
    """
    rows: dict[tuple[str, float], list[Result]] = defaultdict(list)
    for result in sorted(found, key=lambda result: (fold_order(result.run.fold), result.run.seed)):
        rows[result.run.method, result.run.label_fraction].append(result)
    return dict(rows)


def over_folds(of_row: Sequence[Result], figure: Callable[[Result], float | Floats]) -> dict[str, Floats]:
    """A figure of every fold, mean over its seeds.

    Args:
        of_row: Results of a row.
        figure: Number or array of a result.

    Returns:
        By fold.
    """
    folds: dict[str, list[float | Floats]] = defaultdict(list)
    for result in of_row:
        folds[result.run.fold].append(figure(result))
    return {fold: np.mean(np.asarray(figures, dtype=np.float64), axis=0) for fold, figures in folds.items()}


def mean_over_folds(of_row: Sequence[Result], figure: Callable[[Result], float | Floats]) -> Floats:
    """Mean over folds of :func:`over_folds`, so that a fold with more seeds does not count more.

    Args:
        of_row: Results of a row.
        figure: Number or array of a result.
    """
    return np.asarray(np.mean(list(over_folds(of_row, figure).values()), axis=0))


def make_row(of_row: Sequence[Result], complete: bool) -> ResultRow:
    """Compute a row.

    Args:
        of_row: Results of one method at one label fraction, by fold and seed.
        complete: Whether no run is missing, as far as the caller knows.

    Returns:
        The row; not complete either where folds have different seeds.
    """
    folds = {
        fold: float(qwk) for fold, qwk in over_folds(of_row, lambda result: result.metrics["qwk"]).items()
    }
    values = list(folds.values())
    seeds = _seeds(of_row)
    costs = [result.run.provenance for result in of_row]
    return ResultRow(
        method=of_row[0].run.method,
        label_fraction=of_row[0].run.label_fraction,
        folds=folds,
        seeds=sorted(set.intersection(*seeds.values())),
        minimum=min(values),
        mean=Estimate(float(np.mean(values)), interval(mean_over_folds(of_row, lambda result: result.qwk))),
        maximum=max(values),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        metrics=_other_metrics(of_row),
        confusion=_confusion(of_row),
        recall=_recall(of_row),
        calibration=_calibration(of_row),
        roc=_pooled_roc(of_row),
        referable_auroc=Estimate(
            float(mean_over_folds(of_row, lambda result: result.metrics["referable_auroc"])),
            interval(mean_over_folds(of_row, lambda result: result.auroc)),
        ),
        labels=float(
            mean_over_folds(of_row, lambda result: float((result.run.split["subset"] == "train").sum()))
        ),
        seconds=_mean([float(fact["seconds"]) for fact in costs if fact.get("seconds") is not None]),
        images_per_second=_mean([speed for fact in costs if (speed := images_per_second(fact)) is not None]),
        peak_memory=max(
            (int(fact["peak_memory"]) for fact in costs if fact.get("peak_memory") is not None), default=None
        ),
        complete=complete and len({frozenset(of_fold) for of_fold in seeds.values()}) == 1,
        calibrated=_calibrated(of_row),
        uncalibrated=next(
            (each.run.calibration.note for each in of_row if not each.run.calibration.photographs), ""
        ),
    )


def _seeds(of_row: Sequence[Result]) -> dict[str, set[int]]:
    """Seeds of each fold."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for result in of_row:
        seeds[result.run.fold].add(result.run.seed)
    return seeds


def _other_metrics(of_row: Sequence[Result]) -> dict[str, float]:
    def of_name(name: str) -> Callable[[Result], float]:
        return lambda result: result.metrics[name]

    names = [name for name in of_row[0].metrics if name != "qwk"]
    return {name: float(mean_over_folds(of_row, of_name(name))) for name in names}


def _confusion(of_row: Sequence[Result]) -> Counts:
    counts = [confusions(result.run.predicted, result.run.grades) for result in of_row]
    return np.asarray(np.sum(counts, axis=0), dtype=np.int64)


def _recall(of_row: Sequence[Result]) -> list[Estimate]:
    """Of each grade, over the photographs of all folds and seeds together."""
    confusion = _confusion(of_row)
    hits = np.sum([result.hits for result in of_row], axis=0)  # (B, 5)
    totals = np.sum([result.totals for result in of_row], axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: the grade does not occur
        values, samples = np.diagonal(confusion) / confusion.sum(axis=1), hits / totals
    return [Estimate(float(values[grade]), interval(samples[:, grade])) for grade in range(NUM_GRADES)]


def _calibration(of_row: Sequence[Result]) -> ReliabilityCurve:
    probabilities = np.concatenate([result.run.probabilities for result in of_row])
    grades = np.concatenate([result.run.grades for result in of_row])
    ece = float(mean_over_folds(of_row, lambda result: result.metrics["ece"]))
    return reliability(probabilities, grades, ece)


def reliability(probabilities: Floats, grades: Counts, ece: float) -> ReliabilityCurve:
    """Confidence against accuracy, in the bins of the expected calibration error.

    Args:
        probabilities: (N, G).
        grades: (N,) the truth.
        ece: To be shown with it.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == grades
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence, side="left")
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0: the bin is empty
        mean_confidence = np.bincount(place, weights=confidence, minlength=BINS) / count
        accuracy = np.bincount(place, weights=right, minlength=BINS) / count
    return ReliabilityCurve(mean_confidence, accuracy, count.astype(np.int64), ece)


def _calibrated(of_row: Sequence[Result]) -> Calibrated | None:
    found = [(result, result.calibrated) for result in of_row if result.calibrated is not None]
    if len(found) < len(of_row):
        return None
    own = {id(result): calibrated for result, calibrated in found}
    fitted = [result.run.calibration for result in of_row]
    ece = _change(
        of_row, lambda result: own[id(result)].found.ece[0], lambda result: own[id(result)].samples.ece
    )
    after = np.concatenate([calibrated.probabilities for _, calibrated in found])
    grades = np.concatenate([result.run.grades for result in of_row])
    return Calibrated(
        photographs=_range([each.photographs for each in fitted]),
        temperatures={
            fold: float(value)
            for fold, value in over_folds(of_row, lambda result: result.run.calibration.temperature).items()
        },
        thresholds=[_range(values) for values in zip(*(each.thresholds for each in fitted), strict=True)],
        nll=_change(
            of_row, lambda result: own[id(result)].found.nll[0], lambda result: own[id(result)].samples.nll
        ),
        ece=ece,
        qwk=_change(
            of_row,
            lambda result: np.array([result.metrics["qwk"], own[id(result)].found.qwk[0]]),
            lambda result: np.stack([result.qwk, own[id(result)].samples.qwk], axis=1),
        ),
        reliability=reliability(after, grades, ece.after),
        points=_reached(fitted, [calibrated for _, calibrated in found]),
    )


def _change(
    of_row: Sequence[Result], found: Callable[[Result], Floats], samples: Callable[[Result], Floats]
) -> Change:
    """From before and after, (2,) as it is and (B, 2) in each resample."""
    before, after = mean_over_folds(of_row, found).tolist()
    ends = interval(np.diff(mean_over_folds(of_row, samples), axis=1)[:, 0])
    return Change(before, after, Estimate(after - before, ends))


def _range(values: Sequence[float]) -> Range:
    return Range(float(min(values)), float(max(values)))


def _reached(fitted: Sequence[Fitted], found: Sequence[CalibratedRun]) -> list[Reached]:
    """Of each operating point, over the photographs of all folds and seeds together, as recall is."""
    if not all(each.points for each in fitted):
        return []
    with np.errstate(invalid="ignore"):  # 0 / 0: no such photograph
        values = _rates([each.found for each in found])
        samples = _rates([each.samples for each in found])

    def rate(kind: int, place: int) -> Estimate:
        return Estimate(float(values[0, kind, place]), interval(samples[:, kind, place]))

    return [
        Reached(
            target, _range([each.point(target).threshold for each in fitted]), rate(0, place), rate(1, place)
        )
        for place, target in enumerate(TARGET_SENSITIVITIES)
    ]


def _rates(figures: Sequence[CalibrationScores]) -> Floats:
    """(B, 2, T) sensitivities and specificities."""
    hits = np.sum([each.hits for each in figures], axis=0)
    return np.asarray(hits / np.sum([each.totals for each in figures], axis=0)[..., None])


def _pooled_roc(of_row: Sequence[Result]) -> RocCurve:
    scores = np.concatenate([result.run.probabilities[:, REFERABLE:].sum(axis=1) for result in of_row])
    grades = np.concatenate([result.run.grades for result in of_row])
    return roc(scores, grades >= REFERABLE)


def roc(scores: Floats, positive: Booleans) -> RocCurve:
    """The ROC curve, from (0, 0) to (1, 1); points on a straight line between others are left out.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).

    Returns:
        False against true positive rate; empty where positives or negatives are missing.
    """
    if positive.all() or not positive.any():
        return RocCurve(np.zeros(0), np.zeros(0))
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # of each threshold's photographs
    true = np.r_[0, np.cumsum(positive[order])[last]]
    false = np.r_[0, np.cumsum(~positive[order])[last]]
    rise, run = np.diff(true), np.diff(false)
    bends = np.r_[True, rise[1:] * run[:-1] != rise[:-1] * run[1:], True]
    return RocCurve(false[bends] / false[-1], true[bends] / true[-1])


def _mean(known: Sequence[float]) -> float:
    """Of the runs that know it; NaN if none does."""
    return float(np.mean(known)) if known else float("nan")


def images_per_second(provenance: Mapping[str, object]) -> float | None:
    """Speed of a run; older runs did not write it, but images and seconds.

    Args:
        provenance: Of the run.

    Returns:
        None where it is not known.
    """
    speed, images, seconds = (provenance.get(name) for name in ("images_per_second", "images", "seconds"))
    if isinstance(speed, int | float):
        return float(speed)
    if isinstance(images, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return images / seconds
    return None
