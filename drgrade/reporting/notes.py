"""Sentences that a reader of the figures has to know."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drgrade.grades import NUM_GRADES
from drgrade.reporting.comparison import Pair
from drgrade.reporting.facts import commit, distinct, versions
from drgrade.reporting.methods import Grouped
from drgrade.reporting.published import DATA
from drgrade.reporting.schema import Method, MethodComparison, ResultRow
from drgrade.runs.reader import LeftOut, Run
from drgrade.stats import formatting as words
from drgrade.stats.bootstrap import TestFold

_P = 0.05
"""What people take for shown."""


def make_notes(
    grouped: Grouped,
    rows: Sequence[ResultRow],
    pairs: Sequence[Pair],
    comparisons: Sequence[MethodComparison],
    folds: Mapping[str, TestFold],
    resamples: int,
) -> list[str]:
    """Collect the sentences, the weightiest first; how figures are computed is said by the writers.

    Args:
        grouped: Methods and their runs.
        rows: Of the table.
        pairs: Of methods that are to be compared.
        comparisons: Those that could be.
        folds: Their test photographs.
        resamples: Of the bootstrap.

    Returns:
        Short sentences.
    """
    runs = [run for of_method in grouped.runs.values() for run in of_method]
    return [
        *_on_completeness(grouped.methods, rows),
        *_on_test_photographs(grouped.methods),
        *_on_encoders(grouped),
        *_on_protocols(grouped),
        *_on_lacking_grades(folds),
        *_on_origin(runs),
        *_on_statistics(grouped.methods, rows, pairs, comparisons),
        *_on_resamples(comparisons, resamples),
    ]


def on_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Say which folders are no part of the table.

    Args:
        left_out: Folders.

    Returns:
        A sentence for each kind.
    """
    notes = []
    for why in sorted({each.why for each in left_out}):
        folders = [each.folder for each in left_out if each.why == why]
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(f"Not counted, because the table is of tested grading runs: {why} ({folders[0]}{more}).")
    return notes


def _on_completeness(methods: Sequence[Method], rows: Sequence[ResultRow]) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    incomplete = [
        f"{labels[row.method]}, {100 * row.label_fraction:g} % ({_folds(row)})"
        for row in rows
        if not row.complete
    ]
    if incomplete:
        yield f"Rows that lack runs: {'; '.join(incomplete)}."


def _folds(row: ResultRow) -> str:
    return f"of {'folds' if len(row.folds) > 1 else 'fold'} {', '.join(row.folds)}"


def _on_test_photographs(methods: Sequence[Method]) -> Iterator[str]:
    saw = [method.label for method in methods if method.saw_test]
    unknown = [method.label for method in methods if method.saw_test is None]
    if saw:
        yield f"Pre-training saw the test photographs, without their grades: {'; '.join(saw)}."
    if unknown:
        yield f"Whether pre-training saw the test photographs is not known: {'; '.join(unknown)}."


def _on_encoders(grouped: Grouped) -> Iterator[str]:
    """Runs that should have begun with one encoder and did not: their mean is of two pre-trainings."""
    for method in grouped.methods:
        hashes: dict[tuple[int, str], set[str]] = defaultdict(set)
        for run in grouped.runs[method.key]:
            if "encoder_hash" in run.record:
                # Pre-training on the training side makes one encoder for each fold.
                fold = run.fold if run.config.get("pretrain_on") == "train" else ""
                hashes[run.seed, fold].add(str(run.record["encoder_hash"]))
        if any(len(different) > 1 for different in hashes.values()):
            yield (
                f"Runs of {method.label} began with different weights from pre-trainings with the same "
                "settings (encoder_hash in metrics.json): the encoder was made anew in between."
            )


def _on_lacking_grades(folds: Mapping[str, TestFold]) -> Iterator[str]:
    lacking = [
        f"fold {name} has no grade {words.listed([str(grade) for grade in grades])}"
        for name, fold in folds.items()
        if (grades := sorted({*range(NUM_GRADES)} - {*fold.grades.tolist()}))
    ]
    if lacking:
        yield (
            f"Not every fold has test photographs of every grade: {'; '.join(lacking)}. In the means over "
            "the folds, what such a fold does not define counts as if nothing were known: 0.5 for an AUROC, "
            "else 0. The table of recall is of all folds together."
        )


def _on_protocols(grouped: Grouped) -> Iterator[str]:
    """What each protocol validates on; protocols of which the same is said are named together."""
    said: dict[str, list[str]] = {}
    for method in grouped.methods:
        split = grouped.runs[method.key][0].config["split"]
        if split["file"] is None:
            names = said.setdefault(_validation(split), [])
            if method.protocol not in names:
                names.append(method.protocol)
    for sentence, names in said.items():
        yield f"Protocol{'s' if len(names) > 1 else ''} {words.listed(names)}: {sentence}"


def _validation(split: Mapping[str, Any]) -> str:
    if not split["val_fraction"]:
        return "nothing is validated on."
    if split["val_within_fraction"]:
        return "validation labels are taken out of the label fraction."
    share = f"{100 * split['val_fraction']:g} %"
    return f"validation labels ({share} of the training side) come on top of the label fraction."


def _on_origin(runs: Sequence[Run]) -> Iterator[str]:
    commits, packages = distinct(runs, commit), distinct(runs, versions)
    if len(commits) > 1:
        yield f"The runs were made by {len(commits)} different commits."
    if any(each.endswith("+") for each in commits):
        yield "Some runs were made by code with changes that are in no commit (marked +)."
    if "data_external" in runs[0].record:
        external = runs[0].record["data_external"]
        yield f"The table is of the test photographs; external data sets ({external}) are not in it."
    if len(packages) > 1:
        yield f"The runs were made with {len(packages)} different sets of package versions."
    name = str(runs[0].record["data"])
    if name != DATA:
        yield f"The published figures are of other photographs ({DATA}) than these ({name})."


def _on_statistics(
    methods: Sequence[Method],
    rows: Sequence[ResultRow],
    pairs: Sequence[Pair],
    comparisons: Sequence[MethodComparison],
) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    fractions = {
        method.key: {row.label_fraction for row in rows if row.method == method.key} for method in methods
    }
    compared = {(each.first, each.second, each.label_fraction) for each in comparisons}
    for first, second in pairs:
        for fraction in sorted(fractions[first] & fractions[second]):
            if (first, second, fraction) not in compared:
                yield (
                    f"Not compared at {100 * fraction:g} % of the labels, because they have no fold "
                    f"and seed in common: {labels[first]}; {labels[second]}."
                )
    if any(len(row.folds) == 1 for row in rows):
        yield (
            "A single fold has no standard deviation; its interval covers the test photographs of that "
            "fold alone."
        )


def _on_resamples(comparisons: Sequence[MethodComparison], resamples: int) -> Iterator[str]:
    """No p-value is below 2 / (B + 1), which Holm's method multiplies by the number of comparisons."""
    least = 2 * len(comparisons) / (resamples + 1)
    if least > _P:
        yield (
            f"With {resamples} resamples and {len(comparisons)} comparisons no p (Holm) can be below "
            f"{min(1.0, least):.2g}, whatever the figures are: give resamples={_enough(len(comparisons))} or "
            "compare fewer methods."
        )


def _enough(comparisons: int) -> int:
    """Resamples with which the clearest comparison could reach a fifth of the usual limit."""
    return math.ceil(10 * comparisons / _P / 10_000) * 10_000
