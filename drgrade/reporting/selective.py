"""Selective prediction of the rows of a report: results of runs, rows and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from drgrade.models.calibration import selective_uncertainty
from drgrade.reporting.schema import Referral, ResultRow, Study
from drgrade.reporting.table import Column, Dashes, ReportTable, table_by_method
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold
from drgrade.stats.estimates import Floats
from drgrade.stats.formatting import DASH, decimal, estimate, interval, percent, span
from drgrade.stats.selective import (
    COVERAGES,
    MIN_GRADED,
    RiskCoverage,
    Selection,
    at_coverage,
    read_limits,
    resample_selective,
    selective_metrics,
)

SELECTIVE = (
    "aurc",
    "excess_aurc",
    *(at_coverage(metric, share) for share in COVERAGES for metric in ("qwk", "macro_f1")),
)
"""Metrics of :meth:`Selection.metrics`."""


@dataclass(frozen=True, eq=False)
class SelectiveRun:
    """Selective prediction of a run on its test photographs.

    Attributes:
        limits: Uncertainty limits by wanted QWK; empty if the run has recorded none.
        measured: Metrics of :func:`drgrade.stats.selective.selective_metrics` on all test photographs.
        samples: The same metrics, (B,) in each resample.
        curve: Risk and QWK at each coverage.
    """

    limits: Mapping[float, float]
    measured: Mapping[str, float]
    samples: Mapping[str, Floats]
    curve: RiskCoverage


def select_run(fold: TestFold, run: Run, resamples: int, seed: int) -> SelectiveRun:
    """Compute the selective prediction of a run, with the draws of its other metrics."""
    uncertainty = selective_uncertainty(torch.from_numpy(run.probabilities), run.calibration)
    limits = read_limits(run.record)
    measured = selective_metrics(uncertainty, run.predicted, run.grades, limits)
    return SelectiveRun(
        limits,
        {name: float(value[0]) for name, value in measured.items()},
        resample_selective(fold, uncertainty, run.predicted, limits, resamples, seed),
        Selection(uncertainty, run.predicted, run.grades).curve(),
    )


def selective_table(study: Study) -> ReportTable:
    """Tabulate AURC and excess AURC of each row."""
    names = ("AURC", "95 %", "excess AURC", "95 %", "wrong grades")
    columns = [Column(name, strong=name == "AURC") for name in names]

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        cells = []
        for name in ("aurc", "excess_aurc"):
            figure = row.selective.metrics[name]
            ends = dashes.cell(interval(figure.interval), "too few photographs for an interval")
            cells += [decimal(figure.value), ends]
        return [[*cells, decimal(float(row.selective.curve.risk[-1]))]]

    caption = (
        "Selective prediction: area under the risk-coverage curve (AURC) on the test photographs, lower "
        "is better; a random order has the share of wrong grades. Excess: AURC minus that of the best order "
        "of the same grades"
    )
    return table_by_method(study, "selective", caption, columns, lines)


def coverage_table(study: Study) -> ReportTable:
    """Tabulate QWK and macro F1 of the photographs that a model is most certain of."""
    columns = [Column("metric", number=False)]
    columns += [Column(percent(coverage), over="coverage") for coverage in COVERAGES]
    titles = {"qwk": "QWK", "macro_f1": "macro F1"}

    def lines(row: ResultRow, _: Dashes) -> list[list[str]]:
        return [
            [title, *(estimate(row.selective.metrics[at_coverage(name, share)]) for share in COVERAGES)]
            for name, title in titles.items()
        ]

    caption = (
        "QWK and macro F1 of the test photographs with the lowest uncertainty, with 95 % intervals; "
        "coverage: share of the photographs that the model grades, the others are referred"
    )
    return table_by_method(study, "coverage", caption, columns, lines)


def referral_table(study: Study) -> ReportTable:
    """Tabulate the share referred at uncertainty limits that were fitted on validation photographs."""
    names = ("wanted QWK", "limit", "reached by", "referred", "95 %", "QWK of the others", "95 %")
    columns = [Column(name) for name in names]

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        if not row.selective.referrals:
            dashes.note("the runs have recorded no uncertainty limits")
            return [[DASH] * len(columns)]
        return [_referral_line(referral, dashes) for referral in row.selective.referrals]

    caption = (
        "Share of the test photographs referred to a grader at a wanted QWK: photographs above an "
        "uncertainty limit are referred, the limit is the highest at which the graded validation "
        f"photographs of the run reach the QWK (reached by: number of runs in which {MIN_GRADED} or "
        "more do; the others refer all)"
    )
    return table_by_method(study, "referral", caption, columns, lines)


def _referral_line(referral: Referral, dashes: Dashes) -> list[str]:
    ends = referral.referred.interval
    cells = [
        percent(referral.referred.value),
        DASH if interval(ends) == DASH else f"{percent(ends.low)} to {percent(ends.high)}",
        decimal(referral.qwk.value),
        interval(referral.qwk.interval),
    ]
    return [
        decimal(referral.wanted, 1),
        span(referral.limits, partial(decimal, places=2)),
        f"{referral.reached} of {referral.runs}",
        *(dashes.cell(text, "every photograph is referred, or no resample differs") for text in cells),
    ]
