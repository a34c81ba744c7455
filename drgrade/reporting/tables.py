"""The tables of a report."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from drgrade.reporting import method_labels
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
from drgrade.stats import formatting as words
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
"""Metrics in the table of further metrics, before any others that the runs have; those of one grade
(``auroc_3``) are in ``table.csv`` alone."""

FEW_METHODS = 6
"""Of more methods a single operating point is shown, that of :data:`MAIN_TARGET`."""

MAIN_TARGET = 0.9
"""Sensitivity; one of :data:`drgrade.models.calibration.TARGET_SENSITIVITIES`."""

_OF_ONE_GRADE = re.compile(r".*_\d+")
_ELSEWHERE = ("qwk", "referable_auroc")


def main_table(study: Study) -> ReportTable:
    """QWK of each method at each fraction, over the folds; published rows come last, marked."""
    dashes = Dashes()
    names = ("labels", "folds", "min", "mean", "max", "95 %", "sd", "count")
    columns = [Column(name, strong=name == "mean") for name in names]
    groups = [
        Group(method.label, _remark(method), [_main_line(row, dashes) for row in _rows(study, method)])
        for method in study.methods
    ]
    for label in dict.fromkeys(row.label for row in study.published):
        rows = [row for row in study.published if row.label == label]
        sources = words.listed(list(dict.fromkeys(row.source for row in rows)))
        lines = [_published_line(row, dashes) for row in rows]
        groups.append(Group(label, f"not computed here: {sources}", lines, published=True))
    remarks = list(dashes.remarks)
    if not all(row.complete for row in study.rows):
        remarks.insert(0, "*: runs of this row are missing.")
    caption = (
        "QWK on the test photographs: least, mean, greatest and standard deviation (sd) over the folds, and "
        "the 95 % interval of the mean; count: labels that a run was trained on"
    )
    return ReportTable("qwk", caption, "method", columns, groups, remarks)


def _main_line(row: ResultRow, dashes: Dashes) -> list[str]:
    return [
        words.fraction(row.label_fraction),
        f"{len(row.folds)}{'' if row.complete else '*'}",
        words.decimal(row.minimum),
        words.decimal(row.mean.value),
        words.decimal(row.maximum),
        dashes.cell(words.interval(row.mean.interval), "too few photographs for an interval"),
        dashes.cell(words.decimal(row.sd), "one fold has no standard deviation"),
        dashes.cell(words.count(row.labels), "not recorded"),
    ]


def _published_line(row: PublishedRow, dashes: Dashes) -> list[str]:
    dashes.note("not given by the paper")
    return [
        words.fraction(row.label_fraction),
        words.DASH,
        words.DASH if row.minimum is None else words.decimal(row.minimum),
        words.decimal(row.mean),
        words.DASH if row.maximum is None else words.decimal(row.maximum),
        words.DASH,
        words.DASH,
        words.DASH,
    ]


def metrics_table(study: Study) -> ReportTable:
    """All other test metrics, and AUROC for referable DR with its interval."""
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
        values = [words.decimal(row.metrics.get(name, math.nan)) for name in names]
        referable = [words.decimal(row.referable_auroc.value), words.interval(row.referable_auroc.interval)]
        cells = [dashes.cell(text, "not defined on these photographs") for text in [*values, *referable]]
        return [words.fraction(row.label_fraction), *cells]

    caption = (
        "Other metrics on the test photographs, mean over the folds; sensitivity, specificity and referable "
        "AUROC are of referable DR (grade 2 and above), the interval is of the AUROC"
    )
    return _by_method(study, "metrics", caption, columns, line, dashes)


def calibration_table(study: Study) -> ReportTable:
    """What a temperature is worth; empty if no run was calibrated, as the two that follow."""
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
            return _not_calibrated(row, columns, dashes)
        temperatures = found.temperatures.values()
        return [
            words.fraction(row.label_fraction),
            words.span(found.photographs),
            _decimals(Range(min(temperatures), max(temperatures)), 2),
            *_change(found.nll, dashes),
            *_change(found.ece, dashes),
        ]

    caption = (
        "Calibration: a temperature T, fitted on the validation photographs of each run, and what it is "
        "worth on the test photographs; negative log-likelihood (NLL) and expected calibration error "
        "(ECE), mean over the folds; a negative difference is better"
    )
    return _of_calibrated(study, "calibration", caption, columns, line, dashes)


def thresholds_table(study: Study) -> ReportTable:
    """What fitted thresholds are worth."""
    dashes = Dashes()
    columns = [Column("labels")]
    columns += [Column(name, over="QWK") for name in ("head", "thresholds", "difference (95 %)")]
    columns += [Column(str(grade), over="from which expected grade on") for grade in range(1, 5)]

    def line(row: ResultRow) -> list[str]:
        found = row.calibrated
        if found is None:
            return _not_calibrated(row, columns, dashes)
        begin = [_decimals(each, 2) for each in found.thresholds]
        return [words.fraction(row.label_fraction), *_change(found.qwk, dashes), *begin]

    caption = (
        "Grades read by thresholds on the calibrated expected grade, which were fitted for QWK on the "
        "validation photographs, against the head's own reading; QWK on the test photographs, mean over "
        "the folds"
    )
    return _of_calibrated(study, "thresholds", caption, columns, line, dashes)


def operating_points_table(study: Study) -> ReportTable:
    """What operating points for referable DR reach; one of them alone where there are many methods."""
    dashes = Dashes()
    columns = [
        Column("labels"),
        Column("wanted"),
        Column("refer from"),
        Column("sensitivity"),
        Column("95 %"),
    ]
    columns += [Column("specificity"), Column("95 %")]
    many = len(study.methods) > FEW_METHODS

    def lines(row: ResultRow) -> list[list[str]]:
        found = row.calibrated
        if found is None:
            return [_not_calibrated(row, columns, dashes)]
        if not found.points:
            dashes.note("validation photographs with and without referable DR are needed")
            return [[words.fraction(row.label_fraction), *[words.DASH] * (len(columns) - 1)]]
        shown = [point for point in found.points if not many or point.target == MAIN_TARGET]
        return [_point(row, point, dashes) for point in shown]

    caption = (
        "Operating points for referable DR: the sensitivity that was wanted on the validation "
        "photographs, the calibrated probability of grade 2 and above from which on a photograph is "
        "referred, and what that reaches on the test photographs of all folds"
    )
    table = _of_calibrated(study, "operating_points", caption, columns, lambda row: lines(row)[0], dashes)
    groups = [
        Group(method.label, "", [line for row in _rows(study, method) for line in lines(row)])
        for method in study.methods
        if table.groups
    ]
    more = [f"Other sensitivities than {words.percent(MAIN_TARGET)} are in operating_points.csv."]
    return ReportTable(
        table.name, caption, "method", columns, groups, [*dashes.remarks, *(more if many and groups else [])]
    )


def _point(row: ResultRow, point: Reached, dashes: Dashes) -> list[str]:
    rates = [
        dashes.cell(text, "no such photograph tested")
        for rate in (point.sensitivity, point.specificity)
        for text in (words.decimal(rate.value), words.interval(rate.interval))
    ]
    wanted, cut = words.percent(point.target), _decimals(point.threshold, 3)
    return [words.fraction(row.label_fraction), wanted, cut, *rates]


def _change(change: Change, dashes: Dashes) -> list[str]:
    ends = words.interval(change.difference.interval)
    difference = words.signed(change.difference.value)
    if ends == words.DASH:
        dashes.note("too few photographs for an interval")
    shown = difference if ends == words.DASH else f"{difference} ({ends})"
    return [words.decimal(change.before), words.decimal(change.after), shown]


def _decimals(ends: Range, places: int) -> str:
    """The least and the greatest of several numbers; one, if they look the same."""
    low, high = words.decimal(ends.low, places), words.decimal(ends.high, places)
    return low if low == high else f"{low} to {high}"


def _not_calibrated(row: ResultRow, columns: Sequence[Column], dashes: Dashes) -> list[str]:
    dashes.note(row.uncalibrated)
    return [words.fraction(row.label_fraction), *[words.DASH] * (len(columns) - 1)]


def _of_calibrated(
    study: Study,
    name: str,
    caption: str,
    columns: Sequence[Column],
    line: Callable[[ResultRow], list[str]],
    dashes: Dashes,
) -> ReportTable:
    """Without groups, so that it is left out, where no run was calibrated."""
    if all(row.calibrated is None for row in study.rows):
        return ReportTable(name, caption, "method", columns, [], [])
    return _by_method(study, name, caption, columns, line, dashes)


def recall_table(study: Study) -> ReportTable:
    """Recall of each grade."""
    dashes = Dashes()
    columns = [Column("labels"), *(Column(f"{grade} {name}") for grade, name in enumerate(words.GRADE_NAMES))]

    def line(row: ResultRow) -> list[str]:
        values = [dashes.cell(words.estimate(value, 2), "no such photograph tested") for value in row.recall]
        return [words.fraction(row.label_fraction), *values]

    return _by_method(study, "recall", "Recall of each grade, with its 95 % interval", columns, line, dashes)


def costs_table(study: Study) -> ReportTable:
    """What the runs took."""
    dashes = Dashes()
    columns = [Column(name) for name in ("labels", "images/s", "time of a run", "peak memory")]

    def line(row: ResultRow) -> list[str]:
        cells = [words.speed(row.images_per_second), words.hours(row.seconds), words.memory(row.peak_memory)]
        return [words.fraction(row.label_fraction), *(dashes.cell(text, "not recorded") for text in cells)]

    caption = "Cost of fine-tuning: means over the runs, the highest memory"
    return _by_method(study, "costs", caption, columns, line, dashes)


def budget_table(study: Study) -> ReportTable:
    """What each method was allowed, a method in a line."""
    dashes = Dashes()
    before, after = "pre-training of an encoder", "fine-tuning of a run"
    columns = [
        *(Column(name, over=before) for name in ("encoders", "steps", "photographs", "images seen", "time")),
        *(Column(name, over=after) for name in ("steps", "photographs", "time")),
    ]
    names = method_labels.labels(study)
    groups = [Group(names[budget.method], "", [_budget_line(budget, dashes)]) for budget in study.budgets]
    caption = (
        "What each method was allowed, as it was counted: optimiser steps; photographs that went through "
        "them, each time counted; images that the encoder saw of them, in units of a whole one"
    )
    return ReportTable("budget", caption, "method", columns, groups, dashes.remarks, inline=True)


def _budget_line(budget: Budget, dashes: Dashes) -> list[str]:
    unknown = "not recorded"
    why = unknown if budget.encoders else "not pre-trained here"
    pretraining = [
        str(budget.encoders) if budget.encoders else words.DASH,
        words.span(budget.pretraining_steps),
        words.span(budget.pretraining_images),
        words.span(budget.pretraining_inputs),
        words.hours(budget.pretraining_seconds),
    ]
    cells = [dashes.cell(text, why) for text in pretraining]
    for spans in (budget.steps, budget.images):
        text = words.span(_over_fractions(spans)) if budget.trained else words.DASH
        cells.append(dashes.cell(text, unknown if budget.trained else "a probe, which takes no steps"))
    return [*cells, dashes.cell(words.hours(budget.seconds), unknown)]


def _over_fractions(spans: Mapping[float, Range]) -> Range:
    known = [span for span in spans.values() if math.isfinite(span.low)]
    if not known:
        return Range(math.nan, math.nan)
    return Range(min(span.low for span in known), max(span.high for span in known))


def pretraining_table(study: Study) -> ReportTable:
    """What pre-training took, an encoder in a line."""
    dashes, names = Dashes(), method_labels.labels(study)
    columns = [Column("encoder", number=False)]
    columns += [Column(name) for name in ("images/s", "time", "peak memory")]
    groups = []
    for key in dict.fromkeys(cost.method for cost in study.pretrainings):
        lines = []
        for cost in (cost for cost in study.pretrainings if cost.method == key):
            cells = [words.speed(cost.images_per_second), words.hours(cost.seconds)]
            cells.append(words.memory(cost.peak_memory))
            why = "not recorded in the encoder's folder, or the folder is gone"
            lines.append([cost.encoder, *(dashes.cell(text, why) for text in cells)])
        groups.append(Group(names.get(key, key), "", lines))
    caption = "Cost of pre-training, once for each encoder; photographs, not their views"
    return ReportTable("pretraining", caption, "method", columns, groups, dashes.remarks)


def comparisons_table(study: Study) -> ReportTable:
    """Differences of two methods at each fraction."""
    dashes, names = Dashes(), method_labels.labels(study)
    columns = [
        Column(name, strong=name == "difference")
        for name in ("labels", "difference", "95 %", "folds", "won", "p", "p (Holm)")
    ]
    groups: dict[str, list[list[str]]] = {}
    for comparison in study.comparisons:
        line = _comparison_line(comparison, dashes)
        groups.setdefault(method_labels.pair(comparison, names), []).append(line)
    caption = "Difference of QWK of two methods over the same folds, first minus second"
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
        words.fraction(comparison.label_fraction),
        words.signed(comparison.difference.value),
        dashes.cell(words.interval(comparison.difference.interval), "too few photographs for an interval"),
        str(comparison.folds),
        words.percent(comparison.won),
        *(
            dashes.cell(words.p_value(value), "too few photographs for a p-value")
            for value in (comparison.p_value, comparison.p_holm)
        ),
    ]


def splits_table(study: Study) -> ReportTable:
    """Hashes of the splits: runs with the same hash were trained and tested on the same photographs."""
    folds = sorted({fold for _, _, fold in study.splits}, key=lambda fold: (len(fold), fold))
    dashes = Dashes()
    groups = []
    for protocol in dict.fromkeys(protocol for protocol, _, _ in study.splits):
        shares = sorted({share for name, share, _ in study.splits if name == protocol})
        lines = [
            [
                words.fraction(share),
                *(
                    dashes.cell(study.splits.get((protocol, share, fold), words.DASH)[:12], "no run")
                    for fold in folds
                ),
            ]
            for share in shares
        ]
        groups.append(Group(protocol, "", lines))
    columns = [Column("labels"), *(Column(f"fold {fold}", number=False) for fold in folds)]
    return ReportTable("splits", "Split hashes, first 12 digits", "protocol", columns, groups, dashes.remarks)


def all_tables(study: Study) -> list[ReportTable]:
    """The tables with something in them, in the order of the report."""
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
        Group(method.label, "", [line(row) for row in _rows(study, method)]) for method in study.methods
    ]
    return ReportTable(name, caption, "method", columns, groups, dashes.remarks)


def _rows(study: Study, method: Method) -> list[ResultRow]:
    return sorted((row for row in study.rows if row.method == method.key), key=lambda row: row.label_fraction)


def _remark(method: Method) -> str:
    return ", ".join(
        filter(None, [f"protocol {method.protocol}", method_labels.what_pretraining_saw(method)])
    )
