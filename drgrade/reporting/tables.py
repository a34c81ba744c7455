"""Tables of a report."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from drgrade.models.calibration import FEW_PHOTOGRAPHS
from drgrade.models.thresholds import DEFAULT_SENSITIVITY
from drgrade.reporting.comparison import ALPHA
from drgrade.reporting.cross_data import cross_table
from drgrade.reporting.overview import overview_table
from drgrade.reporting.schema import (
    Budget,
    Calibrated,
    Change,
    Method,
    MethodComparison,
    PretrainingCost,
    PublishedRow,
    Reached,
    ResultRow,
    Study,
)
from drgrade.reporting.selective import coverage_table, referral_table, selective_table
from drgrade.reporting.table import Column, Dashes, Group, ReportTable, table_by_method
from drgrade.stats.estimates import Range
from drgrade.stats.formatting import (
    DASH,
    GRADE_NAMES,
    count,
    decimal,
    estimate,
    fraction,
    hours,
    interval,
    listed,
    memory,
    p_value,
    percent,
    plural,
    signed,
    span,
    speed,
)
from drgrade.stats.selective import COVERAGES, at_coverage

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "MAE",
    "auroc": "AUROC",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "referable_sensitivity": "sensitivity",
    "referable_specificity": "specificity",
}
"""First columns of the table of other metrics; those of one grade (``auroc_3``) are only in ``table.csv``."""

FEW_METHODS = 6
"""Number of methods above which only the operating point :data:`DEFAULT_SENSITIVITY` is shown."""

METHOD = (
    "hierarchical bootstrap of training seeds and label draws, then of groups of photographs; Student's t"
)
"""Method of intervals and p-values."""

_OF_ONE_GRADE = re.compile(r".*_\d+")
_ELSEWHERE = ("qwk", "referable_auroc")
_SHOWN_SELECTIVE = {
    "aurc": "AURC",
    "excess_aurc": "excess AURC",
    **{at_coverage("qwk", share): f"QWK at {percent(share)}" for share in COVERAGES if share < 1},
}
_CHANGE = ("before", "after", "difference (95 %)")


def main_table(study: Study) -> ReportTable:
    """QWK of each method at each label fraction, followed by published results."""
    dashes = Dashes()
    names = (
        "labels",
        "folds",
        "trainings",
        "min",
        "mean",
        "max",
        "95 %",
        "sd",
        "training labels",
        "labels used",
    )
    columns = [Column(name, strong=name == "mean") for name in names]

    def remark(method: Method) -> str:
        return ", ".join(filter(None, [f"protocol {method.protocol}", method.pretraining_remark]))

    groups = [
        Group(method.label, remark(method), [_main_line(row, dashes) for row in study.rows_of(method.key)])
        for method in study.methods
    ]
    for label in dict.fromkeys(row.label for row in study.published):
        rows = [row for row in study.published if row.label == label]
        sources = listed(list(dict.fromkeys(row.source for row in rows)))
        lines = [_published_line(row, study.footnotes.get(row.caveat, ""), dashes) for row in rows]
        groups.append(Group(label, f"source: {sources}", lines, published=True))
    remarks = [*dashes.remarks, *(f"{mark}: {caveat}." for caveat, mark in study.footnotes.items())]
    if not all(row.complete for row in study.rows):
        remarks.insert(0, "*: some runs of this row are missing.")
    if any(len(row.seeds) < 2 for row in study.rows):
        remarks.append(
            "Rows of one training seed: the interval contains the choice of the test photographs"
            " and of the drawn labels, if they vary, but not the variation between trainings."
        )
    caption = (
        "QWK on the test photographs: minimum, mean, maximum and standard deviation (sd) over the folds, "
        f"with the 95 % interval of the mean ({METHOD}); trainings: runs of a fold, training seeds x "
        "label draws if these are crossed; labels used: for training and validation"
    )
    return ReportTable("qwk", caption, "method", columns, groups, remarks)


def _main_line(row: ResultRow, dashes: Dashes) -> list[str]:
    return [
        row.share,
        f"{len(row.folds)}{'' if row.complete else '*'}",
        row.trainings,
        decimal(row.minimum),
        decimal(row.mean.value),
        decimal(row.maximum),
        dashes.cell(interval(row.mean.interval), "too few photographs for an interval"),
        dashes.cell(decimal(row.sd), "a single fold has no standard deviation"),
        *(dashes.cell(count(number), "not recorded") for number in (row.labels, row.labels_used)),
    ]


def _published_line(row: PublishedRow, mark: str, dashes: Dashes) -> list[str]:
    dashes.note("not reported in the paper")
    return [
        f"{fraction(row.label_fraction)} {mark}".strip(),
        *[DASH] * 2,
        DASH if row.minimum is None else decimal(row.minimum),
        decimal(row.mean),
        DASH if row.maximum is None else decimal(row.maximum),
        *[DASH] * 4,
    ]


def metrics_table(study: Study) -> ReportTable:
    """Other test metrics, and AUROC for referable DR with its interval."""
    known = {
        name
        for row in study.rows
        for name in row.metrics
        if name not in _ELSEWHERE and not _OF_ONE_GRADE.fullmatch(name)
    }
    names = [*(name for name in METRICS if name in known), *sorted(known - METRICS.keys())]
    columns = [Column(METRICS.get(name, name.replace("_", " "))) for name in names]
    columns += [Column("referable AUROC"), Column("95 %")]

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        cells = [decimal(row.metrics.get(name, math.nan)) for name in names]
        cells += [decimal(row.referable_auroc.value), interval(row.referable_auroc.interval)]
        return [[dashes.cell(text, "undefined on these photographs") for text in cells]]

    caption = (
        "Other metrics on the test photographs, mean over the folds; negative log-likelihood (NLL), Brier "
        "score and debiased root-mean-square calibration error (ECE) before calibration; sensitivity and "
        "specificity of the predicted grade and AUROC for referable DR (grade >= 2); the 95 % interval is "
        "that of the referable AUROC"
    )
    return table_by_method(study, "metrics", caption, columns, lines)


def calibration_table(study: Study) -> ReportTable:
    """Effect of the calibration of the probabilities."""
    columns = [Column("photographs", over="fitted on"), Column("T")]
    columns += [Column(name, over=over) for over in ("NLL", "Brier") for name in _CHANGE]
    columns += [Column("after", over="ECE")]

    def lines(calibrated: Calibrated, dashes: Dashes) -> list[list[str]]:
        temperatures = Range.of(calibrated.temperatures.values())
        cells = [span(calibrated.photographs), span(temperatures, partial(decimal, places=2))]
        changes = [*_change(calibrated.nll, dashes), *_change(calibrated.brier, dashes)]
        return [[*cells, *changes, decimal(calibrated.ece)]]

    caption = (
        "Calibration: temperature T, fitted on the validation photographs of each run; negative "
        "log-likelihood (NLL) and Brier score on the test photographs before and after calibration, and "
        "debiased root-mean-square calibration error (ECE) after it, mean over the folds; a negative "
        "difference is an improvement"
    )
    table = table_by_method(study, "calibration", caption, columns, _if_calibrated(lines, len(columns)))
    few = min((row.calibrated.photographs.low for row in study.rows if row.calibrated), default=math.inf)
    if few >= FEW_PHOTOGRAPHS:
        return table
    remark = (
        f"With fewer than {FEW_PHOTOGRAPHS} validation photographs the fit may help or harm by chance: see "
        "the intervals of the differences."
    )
    return replace(table, remarks=[*table.remarks, remark])


def thresholds_table(study: Study) -> ReportTable:
    """Effect of fitted thresholds between grades."""
    columns = [Column(name, over="QWK") for name in ("head", "thresholds", "difference (95 %)")]
    columns += [Column(str(grade), over="lower limit of grade") for grade in range(1, 5)]

    def lines(calibrated: Calibrated, dashes: Dashes) -> list[list[str]]:
        limits = [span(limit, partial(decimal, places=2)) for limit in calibrated.thresholds]
        return [[*_change(calibrated.qwk, dashes), *limits]]

    caption = (
        "Thresholds on the calibrated expected grade, fitted for QWK on the validation photographs, compared "
        "with the grades of the head; QWK on the test photographs, mean over the folds"
    )
    return table_by_method(study, "thresholds", caption, columns, _if_calibrated(lines, len(columns)))


def operating_points_table(study: Study) -> ReportTable:
    """Test results of operating points for referable DR; a single one if there are many methods."""
    names = ("target", "threshold", "sensitivity", "95 %", "specificity", "95 %")
    columns = [Column(name) for name in names]
    many = len(study.methods) > FEW_METHODS

    def lines(calibrated: Calibrated, dashes: Dashes) -> list[list[str]]:
        if not calibrated.points:
            dashes.note("the validation photographs do not include both referable and other grades")
            return [[DASH] * len(columns)]
        shown = [point for point in calibrated.points if not many or point.target == DEFAULT_SENSITIVITY]
        return [_point(point, dashes) for point in shown]

    caption = (
        "Operating points for referable DR: target sensitivity on the validation photographs; threshold on "
        "the calibrated probability of grade >= 2; sensitivity and specificity on the test photographs of "
        "all folds"
    )
    table = table_by_method(study, "operating_points", caption, columns, _if_calibrated(lines, len(columns)))
    others = f"Target sensitivities other than {percent(DEFAULT_SENSITIVITY)} are in operating_points.csv."
    return replace(table, remarks=[*table.remarks, others]) if many else table


def _point(point: Reached, dashes: Dashes) -> list[str]:
    rates = [
        dashes.cell(text, "no such test photographs")
        for rate in (point.sensitivity, point.specificity)
        for text in (decimal(rate.value), interval(rate.interval))
    ]
    return [percent(point.target), span(point.threshold, decimal), *rates]


def _change(change: Change, dashes: Dashes) -> list[str]:
    ends, difference = interval(change.difference.interval), signed(change.difference.value)
    if ends == DASH:
        dashes.note("too few photographs for an interval")
    else:
        difference = f"{difference} ({ends})"
    return [decimal(change.before), decimal(change.after), difference]


def recall_table(study: Study) -> ReportTable:
    """Recall of each grade."""
    columns = [Column(f"{grade} {name}") for grade, name in enumerate(GRADE_NAMES)]

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        return [[dashes.cell(estimate(value, 2), "no such test photographs") for value in row.recall]]

    return table_by_method(study, "recall", "Recall of each grade, with its 95 % interval", columns, lines)


def learning_rates_table(study: Study) -> ReportTable:
    """Learning rates that the runs chose by their validation photographs."""
    rates = sorted({rate for row in study.rows for rate in row.learning_rates})
    columns = [Column(f"{rate:g}", over="runs that chose") for rate in rates]

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        cells = [str(row.learning_rates[rate]) if rate in row.learning_rates else DASH for rate in rates]
        return [[dashes.cell(text, "not tried") for text in cells]]

    caption = (
        "Learning rate: number of runs that chose each rate of their list, by QWK on their own validation "
        "photographs"
    )
    table = table_by_method(study, "learning_rates", caption, columns, lines)
    return replace(table, remarks=[*_ends_of_list(study), *table.remarks])


def _ends_of_list(study: Study) -> list[str]:
    """Remark on methods most of whose runs chose the end of the list, so that a longer list may be better."""
    remarks = []
    for end, direction in ((min, "lowest"), (max, "highest")):
        names = []
        for method in study.methods:
            rows = [row.learning_rates for row in study.rows_of(method.key) if len(row.learning_rates) > 1]
            runs = sum(sum(own.values()) for own in rows)
            at_end = sum(own[end(own)] for own in rows)
            if 2 * at_end > runs:
                names.append(f"{method.label} ({at_end} of {runs} runs)")
        if names:
            remarks.append(
                f"Most runs chose the {direction} rate of the list, so a wider list may give better results: "
                f"{'; '.join(names)}."
            )
    return remarks


def costs_table(study: Study) -> ReportTable:
    """Cost of fine-tuning."""
    columns = [Column(name) for name in ("images/s", "time of a run", "peak memory")]
    caption = "Cost of fine-tuning: mean over the runs; maximum for memory"

    def lines(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        return [_cost_cells(row, "not recorded", dashes)]

    return table_by_method(study, "costs", caption, columns, lines)


def _cost_cells(cost: ResultRow | PretrainingCost, why: str, dashes: Dashes) -> list[str]:
    cells = [speed(cost.images_per_second), hours(cost.seconds), memory(cost.peak_memory)]
    return [dashes.cell(text, why) for text in cells]


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
        str(budget.encoders) if budget.encoders else DASH,
        span(budget.pretraining_steps),
        span(budget.pretraining_images),
        span(budget.pretraining_inputs),
        hours(budget.pretraining_seconds),
    ]
    cells = [dashes.cell(text, why) for text in pretraining]
    for spans in (budget.steps, budget.images):
        text = span(Range.union(spans.values())) if budget.trained else DASH
        cells.append(dashes.cell(text, unknown if budget.trained else "a probe takes no optimiser steps"))
    return [*cells, dashes.cell(hours(budget.seconds), unknown)]


def pretraining_table(study: Study) -> ReportTable:
    """Cost of pre-training each encoder."""
    dashes, names = Dashes(), study.labels
    columns = [Column("encoder", number=False)]
    columns += [Column(name) for name in ("images/s", "time", "peak memory")]
    why = "not recorded in the folder of the encoder, or the folder is missing"
    lines: dict[str, list[list[str]]] = {}
    for cost in study.pretrainings:
        lines.setdefault(cost.method, []).append([cost.encoder, *_cost_cells(cost, why, dashes)])
    groups = [Group(names.get(key, key), "", of_method) for key, of_method in lines.items()]
    caption = "Cost of pre-training each encoder; images are photographs, not views"
    return ReportTable("pretraining", caption, "method", columns, groups, dashes.remarks)


def comparisons_table(study: Study) -> ReportTable:
    """Differences in QWK between methods at each label fraction."""
    family = sum(math.isfinite(each.p_value) for each in study.comparisons)
    caption = (
        "Difference in QWK between two methods over the same folds, training seeds and label draws, first "
        f"minus second; 95 % and p: {METHOD}; p (Holm): corrected for the {plural(family, 'p-value')} of "
        f"this table; detectable: smallest true difference that has p (Holm) < {ALPHA} with a probability "
        "(power) of at least 80 %"
    )
    remarks = [*filter(None, [study.compared])]
    return _compared(study, "comparisons", caption, study.comparisons, {}, remarks)


def selective_comparisons_table(study: Study) -> ReportTable:
    """Differences between methods in AURC, and in QWK at the coverages."""
    family = sum(math.isfinite(each.p_value) for each in study.selective_comparisons)
    shown = [each for each in study.selective_comparisons if each.statistic in _SHOWN_SELECTIVE]
    caption = (
        "Selective prediction: difference between two methods, first minus second, as in the comparison of "
        "QWK; a negative difference in AURC favours the first method; p (Holm): corrected for the "
        f"{plural(family, 'p-value')} in selective_comparisons.csv, which also contains macro F1"
    )
    return _compared(study, "selective_comparisons", caption, shown, _SHOWN_SELECTIVE, [])


def _compared(
    study: Study,
    name: str,
    caption: str,
    comparisons: Sequence[MethodComparison],
    titles: Mapping[str, str],
    remarks: Sequence[str],
) -> ReportTable:
    """Build a table of comparisons, with a column for the metric if ``titles`` name several."""
    dashes, names = Dashes(), study.labels
    heads = ("difference", "95 %", "folds", "seeds", "won", "p", "p (Holm)", "detectable")
    columns = [Column("labels"), *([Column("metric", number=False)] if titles else [])]
    columns += [Column(head, strong=head == "difference") for head in heads]
    rows = {(row.method, row.label_fraction): row.share for row in study.rows}
    groups: dict[str, list[list[str]]] = {}
    for each in comparisons:
        share = rows.get((each.first, each.label_fraction), fraction(each.label_fraction))
        metric = [titles[each.statistic]] if titles else []
        line = [share, *metric, *_comparison_line(each, dashes)]
        groups.setdefault(each.title(names), []).append(line)
    lines = [Group(title, "", of_pair) for title, of_pair in groups.items()]
    return ReportTable(name, caption, "methods", columns, lines, [*remarks, *dashes.remarks])


def _comparison_line(comparison: MethodComparison, dashes: Dashes) -> list[str]:
    why = "too few photographs"
    if comparison.seeds < 2:
        why = (
            "with one training seed there is no interval and no p-value, because the variation between "
            "trainings is unknown"
        )
    return [
        signed(comparison.difference.value),
        dashes.cell(interval(comparison.difference.interval), why),
        str(comparison.folds),
        str(comparison.seeds),
        percent(comparison.won),
        *(dashes.cell(p_value(value), why) for value in (comparison.p_value, comparison.p_holm)),
        dashes.cell(decimal(comparison.detectable), why),
    ]


def splits_table(study: Study) -> ReportTable:
    """Hashes of the splits."""
    folds = sorted({fold for *_, fold in study.splits}, key=lambda fold: (len(fold), fold))
    dashes = Dashes()
    lines: dict[str, list[list[str]]] = {}
    for protocol, share, draw in dict.fromkeys(cell[:3] for cell in study.splits):
        codes = [study.splits.get((protocol, share, draw, fold), DASH)[:12] for fold in folds]
        cells = [dashes.cell(code, "no run") for code in codes]
        lines.setdefault(protocol, []).append([fraction(share), str(draw), *cells])
    groups = [Group(protocol, "", of_protocol) for protocol, of_protocol in lines.items()]
    columns = [Column("labels"), Column("label seed")]
    columns += [Column(f"fold {fold}", number=False) for fold in folds]
    return ReportTable(
        "splits", "First 12 digits of the split hashes", "protocol", columns, groups, dashes.remarks
    )


def all_tables(study: Study) -> list[ReportTable]:
    """Return all tables that are not empty, in display order."""
    tables = [main_table(study), comparisons_table(study), metrics_table(study), recall_table(study)]
    overview = overview_table(study)
    if overview is not None:
        tables.insert(0, overview)
    if any(row.calibrated for row in study.rows):
        tables += [calibration_table(study), thresholds_table(study), operating_points_table(study)]
    tables += [selective_table(study), coverage_table(study), referral_table(study)]
    tables.append(selective_comparisons_table(study))
    tables += [cross_table(study.cross), budget_table(study)]
    if any(row.learning_rates for row in study.rows):
        tables.append(learning_rates_table(study))
    tables += [costs_table(study), pretraining_table(study)]
    return [table for table in tables if table.groups]


def _if_calibrated(
    lines: Callable[[Calibrated, Dashes], list[list[str]]], columns: int
) -> Callable[[ResultRow, Dashes], list[list[str]]]:
    """Return a function that gives the lines of a calibrated row, and dashes for others."""

    def lines_of_row(row: ResultRow, dashes: Dashes) -> list[list[str]]:
        if row.calibrated is not None:
            return lines(row.calibrated, dashes)
        dashes.note(row.uncalibrated)
        return [[DASH] * columns]

    return lines_of_row
