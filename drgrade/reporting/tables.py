"""Tables of a report."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from drgrade.reporting.overview import overview_table
from drgrade.reporting.schema import (
    Budget,
    Change,
    Method,
    MethodComparison,
    PublishedRow,
    Reached,
    ResultRow,
    Study,
)
from drgrade.reporting.table import Column, Dashes, Group, ReportTable
from drgrade.stats import formatting
from drgrade.stats.estimates import Range

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "MAE",
    "auroc": "AUROC",
    "ece": "ECE",
    "referable_sensitivity": "sensitivity",
    "referable_specificity": "specificity",
}
"""First columns of the table of other metrics; those of one grade (``auroc_3``) are only in ``table.csv``."""

FEW_METHODS = 6
"""Number of methods above which only the operating point :data:`MAIN_TARGET` is shown."""

MAIN_TARGET = 0.9
"""One of :data:`drgrade.models.calibration.TARGET_SENSITIVITIES`."""

_OF_ONE_GRADE = re.compile(r".*_\d+")
_ELSEWHERE = ("qwk", "referable_auroc")


def main_table(study: Study) -> ReportTable:
    """QWK of each method at each label fraction, followed by published results."""
    dashes = Dashes()
    names = ("labels", "folds", "min", "mean", "max", "95 %", "sd", "count")
    columns = [Column(name, strong=name == "mean") for name in names]
    groups = [
        Group(method.label, _remark(method), [_main_line(row, dashes) for row in study.rows_of(method.key)])
        for method in study.methods
    ]
    for label in dict.fromkeys(row.label for row in study.published):
        rows = [row for row in study.published if row.label == label]
        sources = formatting.listed(list(dict.fromkeys(row.source for row in rows)))
        lines = [_published_line(row, dashes) for row in rows]
        groups.append(Group(label, f"results of the paper: {sources}", lines, published=True))
    remarks = list(dashes.remarks)
    if not all(row.complete for row in study.rows):
        remarks.insert(0, "*: some runs of this row are missing.")
    caption = (
        "QWK on the test photographs: minimum, mean, maximum and standard deviation (sd) over the folds, "
        "with the 95 % interval of the mean; count: number of training labels of a run"
    )
    return ReportTable("qwk", caption, "method", columns, groups, remarks)


def _main_line(row: ResultRow, dashes: Dashes) -> list[str]:
    return [
        formatting.fraction(row.label_fraction),
        f"{len(row.folds)}{'' if row.complete else '*'}",
        formatting.decimal(row.minimum),
        formatting.decimal(row.mean.value),
        formatting.decimal(row.maximum),
        dashes.cell(formatting.interval(row.mean.interval), "too few photographs for an interval"),
        dashes.cell(formatting.decimal(row.sd), "a single fold has no standard deviation"),
        dashes.cell(formatting.count(row.labels), "not recorded"),
    ]


def _published_line(row: PublishedRow, dashes: Dashes) -> list[str]:
    dashes.note("not reported in the paper")
    return [
        formatting.fraction(row.label_fraction),
        formatting.DASH,
        formatting.DASH if row.minimum is None else formatting.decimal(row.minimum),
        formatting.decimal(row.mean),
        formatting.DASH if row.maximum is None else formatting.decimal(row.maximum),
        formatting.DASH,
        formatting.DASH,
        formatting.DASH,
    ]


def metrics_table(study: Study) -> ReportTable:
    """Other test metrics, and AUROC for referable DR with its interval."""
    dashes = Dashes()
    found = {
        name
        for row in study.rows
        for name in row.metrics
        if name not in _ELSEWHERE and not _OF_ONE_GRADE.fullmatch(name)
    }
    names = [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]
    columns = [Column("labels"), *(Column(METRICS.get(name, name.replace("_", " "))) for name in names)]
    columns += [Column("referable AUROC"), Column("95 %")]

    def line(row: ResultRow) -> list[str]:
        values = [formatting.decimal(row.metrics.get(name, math.nan)) for name in names]
        referable = [
            formatting.decimal(row.referable_auroc.value),
            formatting.interval(row.referable_auroc.interval),
        ]
        cells = [dashes.cell(text, "undefined on these photographs") for text in [*values, *referable]]
        return [formatting.fraction(row.label_fraction), *cells]

    caption = (
        "Other metrics on the test photographs, mean over the folds; sensitivity, specificity and referable "
        "AUROC are for referable DR (grade >= 2); the 95 % interval is that of the referable AUROC"
    )
    return _by_method(study, "metrics", caption, columns, line, dashes)


def calibration_table(study: Study) -> ReportTable:
    """Effect of temperature scaling; empty if no run was calibrated."""
    dashes = Dashes()
    columns = [Column("labels"), Column("photographs", over="fitted on"), Column("T")]
    columns += [
        Column(name, over=over)
        for over in ("NLL", "ECE")
        for name in ("before", "after", "difference (95 %)")
    ]

    def line(row: ResultRow) -> list[str]:
        found = row.calibrated
        if found is None:
            return _uncalibrated_line(row, columns, dashes)
        temperatures = found.temperatures.values()
        return [
            formatting.fraction(row.label_fraction),
            formatting.span(found.photographs),
            _decimals(Range(min(temperatures), max(temperatures)), 2),
            *_change(found.nll, dashes),
            *_change(found.ece, dashes),
        ]

    caption = (
        "Temperature scaling: temperature T, fitted on the validation photographs of each run; negative "
        "log-likelihood (NLL) and expected calibration error (ECE) on the test photographs before and after "
        "scaling, mean over the folds; a negative difference is an improvement"
    )
    return _calibration_by_method(study, "calibration", caption, columns, line, dashes)


def thresholds_table(study: Study) -> ReportTable:
    """Effect of fitted thresholds between grades; empty if no run was calibrated."""
    dashes = Dashes()
    columns = [Column("labels")]
    columns += [Column(name, over="QWK") for name in ("head", "thresholds", "difference (95 %)")]
    columns += [Column(str(grade), over="lower limit of grade") for grade in range(1, 5)]

    def line(row: ResultRow) -> list[str]:
        found = row.calibrated
        if found is None:
            return _uncalibrated_line(row, columns, dashes)
        begin = [_decimals(each, 2) for each in found.thresholds]
        return [formatting.fraction(row.label_fraction), *_change(found.qwk, dashes), *begin]

    caption = (
        "Thresholds on the calibrated expected grade, fitted for QWK on the validation photographs, compared "
        "with the grades of the head; QWK on the test photographs, mean over the folds"
    )
    return _calibration_by_method(study, "thresholds", caption, columns, line, dashes)


def operating_points_table(study: Study) -> ReportTable:
    """Test results of operating points for referable DR; a single one if there are many methods."""
    dashes = Dashes()
    columns = [
        Column("labels"),
        Column("target"),
        Column("threshold"),
        Column("sensitivity"),
        Column("95 %"),
    ]
    columns += [Column("specificity"), Column("95 %")]
    many = len(study.methods) > FEW_METHODS

    def lines(row: ResultRow) -> list[list[str]]:
        found = row.calibrated
        if found is None:
            return [_uncalibrated_line(row, columns, dashes)]
        if not found.points:
            dashes.note("the validation photographs do not include both referable and other grades")
            return [[formatting.fraction(row.label_fraction), *[formatting.DASH] * (len(columns) - 1)]]
        shown = [point for point in found.points if not many or point.target == MAIN_TARGET]
        return [_point(row, point, dashes) for point in shown]

    caption = (
        "Operating points for referable DR: target sensitivity on the validation photographs; threshold on "
        "the calibrated probability of grade >= 2; sensitivity and specificity on the test photographs of "
        "all folds"
    )
    table = _calibration_by_method(
        study, "operating_points", caption, columns, lambda row: lines(row)[0], dashes
    )
    groups = [
        Group(method.label, "", [line for row in study.rows_of(method.key) for line in lines(row)])
        for method in study.methods
        if table.groups
    ]
    more = [f"Target sensitivities other than {formatting.percent(MAIN_TARGET)} are in operating_points.csv."]
    return ReportTable(
        table.name, caption, "method", columns, groups, [*dashes.remarks, *(more if many and groups else [])]
    )


def _point(row: ResultRow, point: Reached, dashes: Dashes) -> list[str]:
    rates = [
        dashes.cell(text, "no such test photographs")
        for rate in (point.sensitivity, point.specificity)
        for text in (formatting.decimal(rate.value), formatting.interval(rate.interval))
    ]
    wanted, cut = formatting.percent(point.target), _decimals(point.threshold, 3)
    return [formatting.fraction(row.label_fraction), wanted, cut, *rates]


def _change(change: Change, dashes: Dashes) -> list[str]:
    ends = formatting.interval(change.difference.interval)
    difference = formatting.signed(change.difference.value)
    if ends == formatting.DASH:
        dashes.note("too few photographs for an interval")
    shown = difference if ends == formatting.DASH else f"{difference} ({ends})"
    return [formatting.decimal(change.before), formatting.decimal(change.after), shown]


def _decimals(ends: Range, places: int) -> str:
    """Format minimum and maximum; a single number if both look the same."""
    low, high = formatting.decimal(ends.low, places), formatting.decimal(ends.high, places)
    return low if low == high else f"{low} to {high}"


def _uncalibrated_line(row: ResultRow, columns: Sequence[Column], dashes: Dashes) -> list[str]:
    dashes.note(row.uncalibrated)
    return [formatting.fraction(row.label_fraction), *[formatting.DASH] * (len(columns) - 1)]


def _calibration_by_method(
    study: Study,
    name: str,
    caption: str,
    columns: Sequence[Column],
    line: Callable[[ResultRow], list[str]],
    dashes: Dashes,
) -> ReportTable:
    """Build a table by method; without groups if no run was calibrated."""
    if all(row.calibrated is None for row in study.rows):
        return ReportTable(name, caption, "method", columns, [], [])
    return _by_method(study, name, caption, columns, line, dashes)


def recall_table(study: Study) -> ReportTable:
    """Recall of each grade."""
    dashes = Dashes()
    columns = [
        Column("labels"),
        *(Column(f"{grade} {name}") for grade, name in enumerate(formatting.GRADE_NAMES)),
    ]

    def line(row: ResultRow) -> list[str]:
        values = [
            dashes.cell(formatting.estimate(value, 2), "no such test photographs") for value in row.recall
        ]
        return [formatting.fraction(row.label_fraction), *values]

    return _by_method(study, "recall", "Recall of each grade, with its 95 % interval", columns, line, dashes)


def costs_table(study: Study) -> ReportTable:
    """Cost of fine-tuning."""
    dashes = Dashes()
    columns = [Column(name) for name in ("labels", "images/s", "time of a run", "peak memory")]

    def line(row: ResultRow) -> list[str]:
        cells = [
            formatting.speed(row.images_per_second),
            formatting.hours(row.seconds),
            formatting.memory(row.peak_memory),
        ]
        return [
            formatting.fraction(row.label_fraction),
            *(dashes.cell(text, "not recorded") for text in cells),
        ]

    caption = "Cost of fine-tuning: mean over the runs; maximum for memory"
    return _by_method(study, "costs", caption, columns, line, dashes)


def budget_table(study: Study) -> ReportTable:
    """Training budget of each method."""
    dashes = Dashes()
    before, after = "pre-training (per encoder)", "fine-tuning (per run)"
    columns = [
        *(
            Column(name, over=before)
            for name in ("encoders", "steps", "photographs", "encoder inputs", "time")
        ),
        *(Column(name, over=after) for name in ("steps", "photographs", "time")),
    ]
    names = study.labels
    groups = [Group(names[budget.method], "", [_budget_line(budget, dashes)]) for budget in study.budgets]
    caption = (
        "Training budget as counted by the runs: optimiser steps; photographs processed, counting "
        "repetitions; inputs of the encoder, in units of a full-size image"
    )
    return ReportTable("budget", caption, "method", columns, groups, dashes.remarks, inline=True)


def _budget_line(budget: Budget, dashes: Dashes) -> list[str]:
    unknown = "not recorded"
    why = unknown if budget.encoders else "not pre-trained here"
    pretraining = [
        str(budget.encoders) if budget.encoders else formatting.DASH,
        formatting.span(budget.pretraining_steps),
        formatting.span(budget.pretraining_images),
        formatting.span(budget.pretraining_inputs),
        formatting.hours(budget.pretraining_seconds),
    ]
    cells = [dashes.cell(text, why) for text in pretraining]
    for spans in (budget.steps, budget.images):
        text = formatting.span(_over_fractions(spans)) if budget.trained else formatting.DASH
        cells.append(dashes.cell(text, unknown if budget.trained else "a probe takes no optimiser steps"))
    return [*cells, dashes.cell(formatting.hours(budget.seconds), unknown)]


def _over_fractions(spans: Mapping[float, Range]) -> Range:
    known = [span for span in spans.values() if math.isfinite(span.low)]
    if not known:
        return Range(math.nan, math.nan)
    return Range(min(span.low for span in known), max(span.high for span in known))


def pretraining_table(study: Study) -> ReportTable:
    """Cost of pre-training each encoder."""
    dashes, names = Dashes(), study.labels
    columns = [Column("encoder", number=False)]
    columns += [Column(name) for name in ("images/s", "time", "peak memory")]
    groups = []
    for key in dict.fromkeys(cost.method for cost in study.pretrainings):
        lines = []
        for cost in (cost for cost in study.pretrainings if cost.method == key):
            cells = [formatting.speed(cost.images_per_second), formatting.hours(cost.seconds)]
            cells.append(formatting.memory(cost.peak_memory))
            why = "not recorded in the folder of the encoder, or the folder is missing"
            lines.append([cost.encoder, *(dashes.cell(text, why) for text in cells)])
        groups.append(Group(names.get(key, key), "", lines))
    caption = "Cost of pre-training each encoder; images are photographs, not views"
    return ReportTable("pretraining", caption, "method", columns, groups, dashes.remarks)


def comparisons_table(study: Study) -> ReportTable:
    """Differences between methods at each label fraction."""
    dashes, names = Dashes(), study.labels
    columns = [
        Column(name, strong=name == "difference")
        for name in ("labels", "difference", "95 %", "folds", "won", "p", "p (Holm)")
    ]
    groups: dict[str, list[list[str]]] = {}
    for comparison in study.comparisons:
        line = _comparison_line(comparison, dashes)
        groups.setdefault(comparison.title(names), []).append(line)
    caption = "Difference in QWK between two methods over the same folds, first minus second"
    return ReportTable(
        "comparisons",
        caption,
        "methods",
        columns,
        [Group(name, "", lines) for name, lines in groups.items()],
        [*filter(None, [study.compared]), *dashes.remarks],
    )


def _comparison_line(comparison: MethodComparison, dashes: Dashes) -> list[str]:
    return [
        formatting.fraction(comparison.label_fraction),
        formatting.signed(comparison.difference.value),
        dashes.cell(
            formatting.interval(comparison.difference.interval), "too few photographs for an interval"
        ),
        str(comparison.folds),
        formatting.percent(comparison.won),
        *(
            dashes.cell(formatting.p_value(value), "too few photographs for a p-value")
            for value in (comparison.p_value, comparison.p_holm)
        ),
    ]


def splits_table(study: Study) -> ReportTable:
    """Hashes of the splits."""
    folds = sorted({fold for _, _, fold in study.splits}, key=lambda fold: (len(fold), fold))
    dashes = Dashes()
    groups = []
    for protocol in dict.fromkeys(protocol for protocol, _, _ in study.splits):
        shares = sorted({share for name, share, _ in study.splits if name == protocol})
        lines = [
            [
                formatting.fraction(share),
                *(
                    dashes.cell(study.splits.get((protocol, share, fold), formatting.DASH)[:12], "no run")
                    for fold in folds
                ),
            ]
            for share in shares
        ]
        groups.append(Group(protocol, "", lines))
    columns = [Column("labels"), *(Column(f"fold {fold}", number=False) for fold in folds)]
    return ReportTable(
        "splits", "First 12 digits of the split hashes", "protocol", columns, groups, dashes.remarks
    )


def all_tables(study: Study) -> list[ReportTable]:
    """Return all tables that are not empty, in display order."""
    overview = overview_table(study)
    made: Iterable[ReportTable] = (
        *([overview] if overview else []),
        main_table(study),
        comparisons_table(study),
        metrics_table(study),
        recall_table(study),
        calibration_table(study),
        thresholds_table(study),
        operating_points_table(study),
        budget_table(study),
        costs_table(study),
        pretraining_table(study),
    )
    return [table for table in made if table.groups]


def _by_method(
    study: Study,
    name: str,
    caption: str,
    columns: Sequence[Column],
    line: Callable[[ResultRow], list[str]],
    dashes: Dashes,
) -> ReportTable:
    groups = [
        Group(method.label, "", [line(row) for row in study.rows_of(method.key)]) for method in study.methods
    ]
    return ReportTable(name, caption, "method", columns, groups, dashes.remarks)


def _remark(method: Method) -> str:
    return ", ".join(filter(None, [f"protocol {method.protocol}", method.pretraining_remark]))
