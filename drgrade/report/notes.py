"""Sentences that a reader of the figures has to know."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from drgrade.report.contents import Comparison, Method, Row
from drgrade.report.facts import commit, distinct, versions
from drgrade.report.methods import Grouped
from drgrade.report.published import DATA
from drgrade.report.reading import LeftOut, Run


def make_notes(grouped: Grouped, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Collect the sentences, the weightiest first; how figures are computed is said by the writers.

    Args:
        grouped: Methods and their runs.
        rows: Of the table.
        comparisons: Of methods.

    Returns:
        Short sentences.
    """
    runs = [run for of_method in grouped.runs.values() for run in of_method]
    return [
        *_on_completeness(grouped.methods, rows),
        *_on_test_photographs(grouped.methods),
        *_on_protocols(grouped),
        *_on_origin(runs),
        *_on_statistics(grouped.methods, rows, comparisons),
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


def _on_completeness(methods: Sequence[Method], rows: Sequence[Row]) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    incomplete = [
        f"{labels[row.method]}, {100 * row.label_fraction:g} % ({_folds(row)})"
        for row in rows
        if not row.complete
    ]
    if incomplete:
        yield f"Rows that lack runs: {'; '.join(incomplete)}."


def _folds(row: Row) -> str:
    return f"of {'folds' if len(row.folds) > 1 else 'fold'} {', '.join(row.folds)}"


def _on_test_photographs(methods: Sequence[Method]) -> Iterator[str]:
    saw = [method.label for method in methods if method.saw_test]
    unknown = [method.label for method in methods if method.saw_test is None]
    if saw:
        yield f"Pre-training saw the test photographs, without their grades: {'; '.join(saw)}."
    if unknown:
        yield f"Whether pre-training saw the test photographs is not known: {'; '.join(unknown)}."


def _on_protocols(grouped: Grouped) -> Iterator[str]:
    said: set[str] = set()
    for method in grouped.methods:
        split = grouped.runs[method.key][0].config["split"]
        if split["file"] is not None or method.protocol in said:
            continue
        said.add(method.protocol)
        if not split["val_fraction"]:
            yield f"Protocol {method.protocol}: nothing is validated on."
        elif split["val_within_fraction"]:
            yield f"Protocol {method.protocol}: validation labels are taken out of the label fraction."
        else:
            yield (
                f"Protocol {method.protocol}: validation labels ({100 * split['val_fraction']:g} % of the "
                "training side) come on top of the label fraction."
            )


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
    methods: Sequence[Method], rows: Sequence[Row], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    compared = {(each.first, each.second, each.label_fraction) for each in comparisons}
    for one, other in combinations(rows, 2):
        cell = (one.method, other.method, one.label_fraction)
        if one.label_fraction == other.label_fraction and cell not in compared:
            yield (
                f"Not compared at {100 * one.label_fraction:g} % of the labels, because they have no fold "
                f"and seed in common: {labels[one.method]}; {labels[other.method]}."
            )
    if any(len(row.folds) == 1 for row in rows):
        yield (
            "A single fold has no standard deviation; its interval covers the test photographs of that "
            "fold alone."
        )
