"""Results of rows, computed from stored predictions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drgrade.grades import NUM_GRADES, REFERABLE
from drgrade.metrics.functional import expected_calibration_error, grading_metrics
from drgrade.models.calibration import TARGET_SENSITIVITIES
from drgrade.reporting.checks import fold_order
from drgrade.reporting.schema import Calibrated, Change, Reached, Referral, ResultRow, Selective
from drgrade.reporting.selective import SELECTIVE, SelectiveRun, select_run
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import (
    TestFold,
    brier_scores,
    confusions,
    draws,
    kappas,
    negative_log_likelihoods,
    referable_scores,
    resample,
)
from drgrade.stats.curves import ReliabilityCurve, RocCurve, average_roc, reliability_curve, roc_curve
from drgrade.stats.estimates import UNKNOWN, Counts, Estimate, Floats, Range
from drgrade.stats.hierarchical import FoldRuns, ResampledMean, resample_mean
from drgrade.stats.selective import REFER_ALL, RiskCoverage


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Metrics of a calibration in each of B resamples.

    Attributes:
        nll: (B, 2) negative log-likelihood before and after.
        brier: (B, 2) Brier score before and after.
        qwk: (B,) of the grades from the fitted thresholds.
        hits: (B, 2, T) true positives and true negatives for referable DR at each of T operating points; T is
            0 if none was fitted.
        totals: (B, 2) photographs with and without referable DR.
    """

    nll: Floats
    brier: Floats
    qwk: Floats
    hits: Floats
    totals: Floats


@dataclass(frozen=True, eq=False)
class CalibratedRun:
    """Calibrated predictions of a run and their metrics.

    Attributes:
        probabilities: (N, 5) calibrated probabilities of its test photographs.
        ece: Their calibration error.
        measured: Metrics of all test photographs (B is 1).
        samples: Metrics of each resample.
    """

    probabilities: Floats
    ece: float
    measured: CalibrationScores
    samples: CalibrationScores


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
        selective: Selective prediction.
        calibrated: Calibrated predictions and their metrics; None if the run has no calibration.
    """

    run: Run
    metrics: Mapping[str, float]
    qwk: Floats
    auroc: Floats
    hits: Floats
    totals: Floats
    selective: SelectiveRun
    calibrated: CalibratedRun | None = None


def compute_results(
    runs: Sequence[Run], folds: Mapping[str, TestFold], resamples: int, seed: int
) -> list[Result]:
    """Compute the metrics of all runs, fold by fold; all runs of a fold share the same resamples."""
    results: list[Result] = []
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
        for run, qwk, auroc, hits, own in zip(
            tested, resampled.qwk, resampled.auroc, resampled.hits, calibrated, strict=True
        ):
            metrics = grading_metrics(*map(torch.from_numpy, (run.probabilities, run.predicted, run.grades)))
            selective = select_run(fold, run, resamples, seed)
            results.append(Result(run, metrics, qwk, auroc, hits, resampled.totals, selective, own))
    return results


def group_by_row(results: Sequence[Result]) -> dict[tuple[str, float], list[Result]]:
    """Group results by method and label fraction, sorted by fold, seed and label seed."""
    rows: dict[tuple[str, float], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: (fold_order(result.run.fold), result.run.replicate)):
        rows[result.run.method, result.run.label_fraction].append(result)
    return dict(rows)


def over_folds(results: Sequence[Result], figure: Callable[[Result], float | Floats]) -> dict[str, Floats]:
    """Average a number or an array of each result over the seeds and label draws of each fold."""
    return {
        fold: np.mean(np.asarray([figure(each) for each in of_fold], dtype=np.float64), axis=0)
        for fold, of_fold in _by_fold(results).items()
    }


def _by_fold(results: Sequence[Result]) -> dict[str, list[Result]]:
    folds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        folds[result.run.fold].append(result)
    return folds


def mean_over_folds(results: Sequence[Result], figure: Callable[[Result], float | Floats]) -> Floats:
    """Average :func:`over_folds` over the folds, so that all folds have equal weight."""
    return np.asarray(np.mean(list(over_folds(results, figure).values()), axis=0))


def resampled_mean(
    results: Sequence[Result],
    value: Callable[[Result], float],
    samples: Callable[[Result], Floats],
    seed: int,
) -> ResampledMean:
    """Compute the mean over folds of a metric, with the hierarchical bootstrap of trainings and groups.

    Args:
        results: Results of one or two methods, by fold, seed and label seed.
        value: The metric of a result.
        samples: (B,) the metric in each resample of the groups.
        seed: Random seed.
    """
    runs = [
        FoldRuns(
            [each.run.replicate for each in of_fold],
            np.array([value(each) for each in of_fold], np.float64),
            np.stack([samples(each) for each in of_fold]),
            len({*of_fold[0].run.groups.tolist()}),
        )
        for of_fold in _by_fold(results).values()
    ]
    return resample_mean(runs, seed)


def _estimate(
    results: Sequence[Result],
    value: Callable[[Result], float],
    samples: Callable[[Result], Floats],
    seed: int,
    is_change: bool = False,
) -> Estimate:
    """Estimate a metric in [0, 1], QWK in [-1, 1], or a change, which is not bounded."""
    mean = resampled_mean(results, value, samples, seed)
    return Estimate(mean.value, mean.percentile_interval if is_change else mean.bounded_interval)


def compute_row(results: Sequence[Result], complete: bool, seed: int = 0) -> ResultRow:
    """Compute a row from results sorted by fold, seed and label seed.

    The row is also incomplete if its folds have different seeds or label seeds. ``seed`` is that of the
    bootstrap.
    """
    by_fold = over_folds(results, lambda result: result.metrics["qwk"])
    folds = {fold: float(qwk) for fold, qwk in by_fold.items()}
    values = list(folds.values())
    replicates = [{each.run.replicate for each in of_fold} for of_fold in _by_fold(results).values()]
    costs = [result.run.provenance for result in results]
    return ResultRow(
        method=results[0].run.method,
        label_fraction=results[0].run.label_fraction,
        folds=folds,
        replicates=sorted(set.intersection(*replicates)),
        minimum=min(values),
        mean=_estimate(results, lambda one: one.metrics["qwk"], lambda one: one.qwk, seed),
        maximum=max(values),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        metrics=_other_metrics(results),
        confusion=_confusion(results),
        recall=[_recall(results, grade, seed) for grade in range(NUM_GRADES)],
        calibration=_calibration(results),
        roc=_mean_roc(results),
        referable_auroc=_estimate(
            results, lambda one: one.metrics["referable_auroc"], lambda one: one.auroc, seed
        ),
        labels=_photographs(results, "train"),
        labels_used=_photographs(results, "train", "val"),
        val_within_fraction=bool(results[0].run.config["split"]["val_within_fraction"]),
        seconds=mean_known(fact.get("seconds") for fact in costs),
        images_per_second=mean_known(images_per_second(fact) for fact in costs),
        peak_memory=max(
            (int(fact["peak_memory"]) for fact in costs if fact.get("peak_memory") is not None), default=None
        ),
        complete=complete and all(of_fold == replicates[0] for of_fold in replicates),
        selective=_selective(results, seed),
        calibrated=_calibrated(results, seed),
        uncalibrated=next(
            (each.run.calibration.note for each in results if not each.run.calibration.photographs), ""
        ),
        learning_rates=_learning_rates(results),
    )


def _learning_rates(results: Sequence[Result]) -> dict[float, int]:
    """Count the choices of each learning rate; rates that were tried and not chosen count 0."""
    chosen = Counter(float(rate) for one in results if (rate := one.run.record.get("learning_rate")))
    tried = {
        float(rate) for one in results for rate in one.run.config["protocol"].get("learning_rates") or ()
    }
    return {rate: chosen[rate] for rate in sorted(tried | chosen.keys())} if chosen else {}


def _other_metrics(results: Sequence[Result]) -> dict[str, float]:
    names = [name for name in results[0].metrics if name != "qwk"]
    means = mean_over_folds(results, lambda result: np.array([result.metrics[name] for name in names]))
    return dict(zip(names, means.tolist(), strict=True))


def _confusion(results: Sequence[Result]) -> Counts:
    counts = [confusions(result.run.predicted, result.run.grades) for result in results]
    return np.asarray(np.sum(counts, axis=0), dtype=np.int64)


def _photographs(results: Sequence[Result], *subsets: str) -> float:
    """Return the number of photographs of a run in subsets of its split, mean over the folds."""
    return float(mean_over_folds(results, lambda one: float(one.run.split["subset"].isin(subsets).sum())))


def _recall(results: Sequence[Result], grade: int, seed: int) -> Estimate:
    """Compute recall over the photographs of all folds and seeds together."""

    def hits(one: Result) -> float:
        return float(((one.run.predicted == grade) & (one.run.grades == grade)).sum())

    total = float(mean_over_folds(results, lambda one: float((one.run.grades == grade).sum())))
    totals = mean_over_folds(results, lambda one: one.totals[:, grade])
    return _share(results, hits, total, lambda one: one.hits[:, grade], totals, seed)


def _share(
    results: Sequence[Result],
    count: Callable[[Result], float],
    total: float,
    counts: Callable[[Result], Floats],
    totals: Floats,
    seed: int,
) -> Estimate:
    """Estimate a share of the photographs of all folds together: counts and (B,) totals by resample.

    ``total`` and ``totals`` are means over the folds, so that each fold adds its photographs.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: no such photograph
        return _estimate(
            results, lambda one: np.float64(count(one)) / total, lambda one: counts(one) / totals, seed
        )


def _calibration(results: Sequence[Result]) -> ReliabilityCurve:
    probabilities = np.concatenate([result.run.probabilities for result in results])
    grades = np.concatenate([result.run.grades for result in results])
    ece = float(mean_over_folds(results, lambda result: result.metrics["ece"]))
    return reliability_curve(probabilities, grades, ece)


def _selective(results: Sequence[Result], seed: int) -> Selective:
    """Average selective prediction over the folds."""

    def mean(name: str, of: Sequence[Result] = results) -> Estimate:
        return _estimate(
            of, lambda one: one.selective.measured[name], lambda one: one.selective.samples[name], seed
        )

    return Selective(
        {name: mean(name) for name in SELECTIVE},
        RiskCoverage(
            results[0].selective.curve.coverage,
            mean_over_folds(results, lambda result: result.selective.curve.risk),
            mean_over_folds(results, lambda result: result.selective.curve.qwk),
        ),
        _referrals(results, mean) if all(result.selective.limits for result in results) else [],
    )


def _referrals(
    results: Sequence[Result], mean: Callable[[str, Sequence[Result]], Estimate]
) -> list[Referral]:
    referrals = []
    for wanted in results[0].selective.limits:
        limits = [result.selective.limits[wanted] for result in results]
        name = f"qwk_after_referral_{wanted:g}"
        some = [result for result in results if np.isfinite(result.selective.measured[name])]
        referrals.append(
            Referral(
                wanted,
                Range.of(limits),
                sum(limit > REFER_ALL for limit in limits),
                len(results),
                mean(f"referred_for_qwk_{wanted:g}", results),
                mean(name, some) if some else Estimate(float("nan"), UNKNOWN),
            )
        )
    return referrals


def _calibrated(results: Sequence[Result], seed: int) -> Calibrated | None:
    if any(result.calibrated is None for result in results):
        return None
    own = _calibrated_run
    fitted = [result.run.calibration for result in results]
    ece = float(mean_over_folds(results, lambda one: own(one).ece))
    temperatures = over_folds(results, lambda result: result.run.calibration.temperature)
    probabilities = np.concatenate([own(result).probabilities for result in results])
    grades = np.concatenate([result.run.grades for result in results])
    return Calibrated(
        photographs=Range.of(each.photographs for each in fitted),
        temperatures={fold: float(value) for fold, value in temperatures.items()},
        thresholds=[Range.of(values) for values in zip(*(each.thresholds for each in fitted), strict=True)],
        nll=_change(results, lambda one: own(one).measured.nll[0], lambda one: own(one).samples.nll, seed),
        brier=_change(
            results, lambda one: own(one).measured.brier[0], lambda one: own(one).samples.brier, seed
        ),
        ece=ece,
        qwk=_change(
            results,
            lambda one: np.array([one.metrics["qwk"], own(one).measured.qwk[0]]),
            lambda one: np.stack([one.qwk, own(one).samples.qwk], axis=1),
            seed,
        ),
        reliability=reliability_curve(probabilities, grades, ece),
        points=_reached(results, seed),
    )


def _calibrated_run(result: Result) -> CalibratedRun:
    assert result.calibrated is not None
    return result.calibrated


def _change(
    results: Sequence[Result],
    measured: Callable[[Result], Floats],
    samples: Callable[[Result], Floats],
    seed: int,
) -> Change:
    """Average (2,) values and (B, 2) samples, before and after calibration, over the folds."""
    before, after = mean_over_folds(results, measured).tolist()
    difference = _estimate(
        results,
        lambda one: float(np.diff(measured(one)).item()),
        lambda one: np.diff(samples(one), axis=1)[:, 0],
        seed,
        is_change=True,
    )
    return Change(before, after, difference)


def _reached(results: Sequence[Result], seed: int) -> list[Reached]:
    """Evaluate the operating points over the photographs of all folds and seeds together."""
    fitted, own = [result.run.calibration for result in results], _calibrated_run
    if not all(each.points for each in fitted):
        return []

    def rate(kind: int, place: int) -> Estimate:
        return _share(
            results,
            lambda one: own(one).measured.hits[0, kind, place],
            float(mean_over_folds(results, lambda one: own(one).measured.totals[0, kind])),
            lambda one: own(one).samples.hits[:, kind, place],
            mean_over_folds(results, lambda one: own(one).samples.totals[:, kind]),
            seed,
        )

    thresholds = [Range.of(run.point(target).threshold for run in fitted) for target in TARGET_SENSITIVITIES]
    points = enumerate(zip(TARGET_SENSITIVITIES, thresholds, strict=True))
    return [Reached(target, limits, rate(0, place), rate(1, place)) for place, (target, limits) in points]


def _mean_roc(results: Sequence[Result]) -> RocCurve:
    """Average the curves of the runs; the runs of a fold share its weight, as in :func:`mean_over_folds`."""
    runs = [result.run for result in results]
    count = Counter(run.fold for run in runs)
    curves = [roc_curve(referable_scores(run.probabilities), run.grades >= REFERABLE) for run in runs]
    return average_roc(curves, [1 / count[run.fold] for run in runs])


def mean_known(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are neither None nor NaN; NaN if there are none."""
    known = [float(value) for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def images_per_second(provenance: Mapping[str, object]) -> float | None:
    """Return the throughput of a run, for older runs images by seconds; None if it is unknown."""
    speed, images, seconds = (provenance.get(name) for name in ("images_per_second", "images", "seconds"))
    if isinstance(speed, int | float):
        return float(speed)
    if isinstance(images, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return images / seconds
    return None


def resample_calibrated(
    fold: TestFold, runs: Sequence[Run], resamples: int, seed: int
) -> list[CalibratedRun | None]:
    """Compute the calibration metrics of all runs of a fold; None if a calibration was not fitted.

    The draws are those of :func:`drgrade.stats.bootstrap.resample`. Each metric
    (:func:`drgrade.models.calibration.calibrated_metrics`) is a function of sums over photographs, so all
    resamples are computed at once from the sums of each group.
    """
    return [
        _resample_run(fold, run, resamples, seed) if run.calibration.photographs else None for run in runs
    ]


def _resample_run(fold: TestFold, run: Run, resamples: int, seed: int) -> CalibratedRun:
    calibrated = run.calibration.probabilities(torch.from_numpy(run.probabilities))
    ece = expected_calibration_error(calibrated, torch.from_numpy(run.grades))
    probabilities = calibrated.numpy()
    sums = _sums_by_group(fold, run, probabilities)
    resampled = np.concatenate([counts @ sums for counts in draws(fold, resamples, seed)])
    return CalibratedRun(probabilities, ece, _scores(sums.sum(axis=0, keepdims=True)), _scores(resampled))


def _sums_by_group(fold: TestFold, run: Run, calibrated: Floats) -> Floats:
    """Sum the terms of the metrics over each group: (groups, K)."""
    truth = fold.grades
    referable = truth >= REFERABLE
    graded = run.calibration.predict(torch.from_numpy(calibrated)).numpy()
    scores = referable_scores(calibrated)
    cuts = np.array(list(run.calibration.target_thresholds().values()))
    referred = scores[:, None] >= cuts  # (N, T)
    columns = [
        negative_log_likelihoods(run.probabilities, truth)[:, None],
        negative_log_likelihoods(calibrated, truth)[:, None],
        brier_scores(run.probabilities, truth)[:, None],
        brier_scores(calibrated, truth)[:, None],
        np.eye(NUM_GRADES**2)[truth * NUM_GRADES + graded],
        referable[:, None],
        ~referable[:, None],
        referred & referable[:, None],
        ~referred & ~referable[:, None],
    ]
    of_photograph = np.concatenate([column.astype(np.float64) for column in columns], axis=1)
    sums = np.zeros((fold.num_groups, of_photograph.shape[1]))
    np.add.at(sums, fold.groups, of_photograph)
    return sums


def _scores(sums: Floats) -> CalibrationScores:
    """Compute the metrics from (B, K) sums."""
    nll, brier, cells, totals, hits = np.split(sums, np.cumsum([2, 2, NUM_GRADES**2, 2]), axis=1)
    count = totals.sum(axis=1, keepdims=True)
    qwk = kappas(cells.reshape(-1, NUM_GRADES, NUM_GRADES))
    return CalibrationScores(nll / count, brier / count, qwk, hits.reshape(len(sums), 2, -1), totals)
