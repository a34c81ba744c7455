"""Metrics of an evaluated set with 95 % intervals from the bootstrap of groups."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from drgrade.data.photographs import Photographs
from drgrade.files import write_text
from drgrade.grades import REFERABLE
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import referable_probability
from drgrade.models.calibration import Calibration, selective_uncertainty
from drgrade.models.thresholds import ReferralRule
from drgrade.stats import formatting
from drgrade.stats.bootstrap import METRICS, TestFold, interval_if_spread, resample_metrics
from drgrade.stats.estimates import Counts, Estimate, Floats
from drgrade.stats.selective import RiskCoverage, Selection, read_limits, resample_selective

INTERVALS = "intervals.json"

_UNRESAMPLED: Floats = np.full(1, np.nan)


@dataclass(frozen=True, eq=False)
class SetPredictions:
    """Predictions for one set of photographs.

    Attributes:
        predictions: Predictions with the probabilities as the heads output them.
        calibrated: (N, 5) float64 calibrated probabilities; None without a calibration.
        thresholds: Requested sensitivity to P(grade >= 2) from which a photograph is referable.
        rule: The referral decision.
        members: Predictions of each member of an ensemble; empty for a single run.
    """

    predictions: Predictions
    calibrated: Tensor | None
    thresholds: Mapping[float, float]
    rule: ReferralRule
    members: Sequence[Predictions] = ()

    @property
    def uncertainty(self) -> Floats:
        """(N,) normalised entropy of the calibrated probabilities, as in ``drgrade predict``."""
        own = self.predictions.probabilities if self.calibrated is None else self.calibrated
        return selective_uncertainty(own, Calibration())

    @property
    def score(self) -> Tensor:
        """P(grade >= 2), (N,): the score of the referral decision, its operating points and its ROC."""
        calibrated = self.predictions.probabilities.double() if self.calibrated is None else self.calibrated
        return referable_probability(calibrated)


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
class SetEstimates:
    """Metrics of one set with their intervals.

    Attributes:
        name: ``test`` or ``external/NAME``.
        fold: The photographs and their groups.
        estimates: Estimates by name in ``metrics.json``. An interval is NaN where no resample defines the
            metric, or all agree, and for the calibration error, which is not resampled.
        raw: Predictions with the uncalibrated probabilities of the heads.
        calibrated: Predictions with calibrated probabilities; None without a calibration.
        rule: The referral decision.
        selective: Risk and QWK at each coverage.
    """

    name: str
    fold: TestFold
    estimates: Mapping[str, Estimate]
    raw: MetricSource
    calibrated: MetricSource | None
    rule: ReferralRule
    selective: RiskCoverage


def estimate_set(
    name: str,
    tested: SetPredictions,
    photographs: Photographs,
    calibration: Calibration,
    metrics: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> SetEstimates:
    """Compute the intervals of the metrics of one set; all metrics have the same resamples.

    Args:
        name: ``test`` or ``external/NAME``.
        tested: Predictions for the set.
        photographs: Photographs with a split that names their groups.
        calibration: Calibration of the run or ensemble.
        metrics: Content of ``metrics.json``.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    fold = _test_fold(photographs, tested.predictions)

    def resample(source: MetricSource) -> dict[str, Floats]:
        values = resample_metrics(fold, source.predicted, source.probabilities, resamples, seed)
        return {key: values[metric] for key, metric in source.metrics.items()}

    raw = _source(tested.predictions, {f"{name}/{metric}": metric for metric in METRICS})
    samples = resample(raw)
    limits = read_limits(metrics)
    selected = resample_selective(fold, tested.uncertainty, raw.predicted, limits, resamples, seed)
    samples |= {f"{name}/{metric}": values for metric, values in selected.items()}
    samples[f"{name}/ece"] = _UNRESAMPLED
    calibrated: MetricSource | None = None
    if tested.calibrated is not None:
        calibrated = _calibrated_source(name, tested, tested.calibrated)
        samples |= resample(calibrated)
        samples[f"{name}/ece_calibrated"] = _UNRESAMPLED
        samples |= resample(_threshold_source(name, tested.calibrated, calibration))
    for source in _referral_sources(name, tested):
        samples |= resample(source)
    for number, member in enumerate(tested.members, start=1):
        qwk = f"member/{number}/qwk"
        samples |= resample(_source(member, {qwk: "qwk"}))
        samples[f"{qwk}_gain"] = samples[f"{name}/qwk"] - samples[qwk]
    estimates = {
        key: Estimate(float(metrics[key]), interval_if_spread(values))
        for key, values in samples.items()
        if key in metrics  # a QWK after referral is missing if all photographs are referred
    }
    curve = Selection(tested.uncertainty, raw.predicted, fold.grades).curve()
    return SetEstimates(name, fold, estimates, raw, calibrated, tested.rule, curve)


def _test_fold(photographs: Photographs, predictions: Predictions) -> TestFold:
    rows = photographs.split.iloc[predictions.index.numpy()]
    ids, groups = (rows[name].to_numpy(dtype=str) for name in ("image_id", "group"))
    return TestFold.with_groups("evaluation", ids, groups, predictions.grades.numpy().astype(np.int64))


def _source(predictions: Predictions, metrics: Mapping[str, str]) -> MetricSource:
    return MetricSource(predictions.predicted.numpy(), predictions.probabilities.double().numpy(), metrics)


def _calibrated_source(name: str, tested: SetPredictions, calibrated: Tensor) -> MetricSource:
    """Return the calibrated probabilities; the ROC of referable DR is that of the referral score."""
    keys = {f"{name}/{metric}_calibrated": metric for metric in ("nll", "brier")}
    keys |= {f"{name}/referable_auroc": "referable_auroc"}
    return MetricSource(tested.predictions.predicted.numpy(), calibrated.numpy(), keys)


def _threshold_source(name: str, calibrated: Tensor, calibration: Calibration) -> MetricSource:
    """Return the grades that the fitted thresholds read."""
    grades = calibration.predict(calibrated).numpy()
    return MetricSource(grades, calibrated.numpy(), {f"{name}/qwk_thresholds": "qwk"})


def _referral_sources(name: str, tested: SetPredictions) -> list[MetricSource]:
    """Return the referral decision, and that at each operating point, as grades."""
    probabilities, score = tested.predictions.probabilities.double().numpy(), tested.score
    decisions = {"referral_{}": tested.rule.refers(score)}
    decisions |= {f"{{}}_at_{target:g}": score >= cut for target, cut in tested.thresholds.items()}
    return [
        MetricSource(
            np.where(referred.numpy(), REFERABLE, 0),
            probabilities,
            {
                f"{name}/{pattern.format(rate)}": f"referable_{rate}"
                for rate in ("sensitivity", "specificity")
            },
        )
        for pattern, referred in decisions.items()
    ]


def write_intervals(folder: Path, sets: Sequence[SetEstimates], resamples: int, seed: int) -> None:
    """Write ``intervals.json`` for one set or several."""
    record = {
        "level": 0.95,
        "method": "percentile bootstrap of groups",
        "resamples": resamples,
        "seed": seed,
        "sets": {
            each.name: {"photographs": len(each.fold.grades), "groups": each.fold.num_groups} for each in sets
        },
        "intervals": {
            key: _without_nan(estimate) for each in sets for key, estimate in each.estimates.items()
        },
    }
    write_text(folder / INTERVALS, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _without_nan(estimate: Estimate) -> dict[str, float | None]:
    flat = {"value": estimate.value, **asdict(estimate.interval)}
    return {name: value if math.isfinite(value) else None for name, value in flat.items()}


def table_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    """Format estimates as a table for the terminal: a heading, and one line per estimate."""
    width = max(map(len, estimates))
    table = [f"{'':{width}}   value   95 % interval"]
    for name, each in estimates.items():
        value, interval = formatting.decimal(each.value), formatting.interval(each.interval)
        table.append(f"{name:{width}}  {value:>6}   {interval}")
    return table
