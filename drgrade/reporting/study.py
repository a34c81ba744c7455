"""From folders to everything that a report says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.reporting.checks import check_same_data, collect_folds, one_run_per_cell, split_hashes
from drgrade.reporting.comparison import REFERENCE, compare_all, pairs_to_compare
from drgrade.reporting.costs import compare_budgets, make_budgets, pretraining_costs
from drgrade.reporting.facts import data_facts, provenance_facts
from drgrade.reporting.methods import group
from drgrade.reporting.notes import make_notes, on_left_out
from drgrade.reporting.published import beside, published_rows
from drgrade.reporting.run_finder import find_cells
from drgrade.reporting.schema import Missing, ResultRow, Study
from drgrade.reporting.statistics import Result, by_row, make_row, results
from drgrade.runs.reader import LeftOut, Run, Unfinished, read_run
from drgrade.runs.settings import method_key


def make_study(
    folders: Sequence[Path],
    resamples: int = 10_000,
    seed: int = 0,
    title: str | None = None,
    compare: str = REFERENCE,
) -> Study:
    """Read runs and compute everything that a report says about them.

    Args:
        folders: Runs, sweeps, or folders that contain them at any depth.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        title: Of the report; None to name it by its data.
        compare: Which methods; see :func:`drgrade.reporting.comparison.pairs_to_compare`.

    Returns:
        The study. It depends neither on the order of the folders nor on that of files in them.

    Raises:
        DataError: If there is no finished run, a finished run is damaged, or runs are of different data or
            splits.
        ConfigError: If ``compare`` names no method.
    """
    read = _read(folders)
    check_same_data(read.runs)
    folds = collect_folds(read.runs)
    runs, repeats = one_run_per_cell(read.runs)
    grouped = group(runs)
    keys = [method.key for method in grouped.methods]
    splits = split_hashes(runs, {method.key: method.protocol for method in grouped.methods})
    by_cell = by_row(results(runs, folds, resamples, seed))
    unfinished, replaced = _without_replaced(read.unfinished, runs)
    rows = _rows(by_cell, keys, _with_holes(unfinished, runs))
    pairs, compared = pairs_to_compare(grouped.methods, compare)
    comparisons = compare_all(by_cell, pairs)
    budgets = make_budgets(grouped)
    equality = compare_budgets(grouped, budgets)
    missing = _missing(unfinished)
    notes = make_notes(grouped, rows, pairs, comparisons, folds, resamples)
    return Study(
        title=title or f"Grading with few labels: {runs[0].record['data']}",
        runs=[run.folder for run in runs],
        missing=missing,
        data=data_facts(runs, folds),
        provenance=provenance_facts(runs, read.commands, resamples, seed),
        splits=splits,
        grades=np.sum([np.bincount(fold.grades, minlength=NUM_GRADES) for fold in folds.values()], axis=0),
        methods=grouped.methods,
        rows=rows,
        comparisons=comparisons,
        published=beside(published_rows(), grouped),
        pretrainings=pretraining_costs(runs, keys),
        compared=compared,
        budgets=budgets,
        equality=equality.said,
        notes=[*equality.warnings, *notes, *repeats, *replaced, *on_left_out(read.left_out)],
    )


@dataclass(frozen=True)
class _Read:
    runs: Sequence[Run]
    unfinished: Sequence[Unfinished]
    left_out: Sequence[LeftOut]
    commands: Sequence[str]


def _read(folders: Sequence[Path]) -> _Read:
    found = find_cells(folders)
    read = [read_run(cell) for cell in found.cells]
    runs = [each for each in read if isinstance(each, Run)]
    unfinished = [each for each in read if isinstance(each, Unfinished)]
    left_out = [each for each in read if isinstance(each, LeftOut)]
    if not runs:
        counts = Counter([each.status for each in unfinished] + [each.why for each in left_out])
        there = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no runs at all"
        raise DataError(
            f"no finished grading run in {', '.join(map(str, folders))} ({there}): give the folder of a "
            "run or a sweep (outputs/sweeps/NAME), or wait for the first run to finish"
        )
    return _Read(runs, unfinished, left_out, found.commands)


def _without_replaced(
    unfinished: Sequence[Unfinished], runs: Sequence[Run]
) -> tuple[list[Unfinished], list[str]]:
    """Attempts that a finished run has replaced are not missing."""
    done = {(run.method, run.label_fraction, run.fold, run.seed): run for run in runs}
    missing: list[Unfinished] = []
    notes: list[str] = []
    for each in unfinished:
        config = each.config
        cell = config and (
            method_key(config),
            float(config["label_fraction"]),
            str(config["fold"]),
            int(config["seed"]),
        )
        if cell and cell in done:
            notes.append(f"{each.location.folder} ({each.status}) is replaced by {done[cell].folder}.")
        else:
            missing.append(each)
    return missing, notes


def _with_holes(unfinished: Sequence[Unfinished], runs: Sequence[Run]) -> set[tuple[str, float]]:
    """Rows (method, label fraction) that a missing run belongs to."""
    by_overrides = {run.location.row: (run.method, run.label_fraction) for run in runs if run.location.row}
    holes = {by_overrides[each.location.row] for each in unfinished if each.location.row in by_overrides}
    return holes | {
        (method_key(each.config), float(each.config["label_fraction"])) for each in unfinished if each.config
    }


def _rows(
    by_cell: Mapping[tuple[str, float], Sequence[Result]], keys: Sequence[str], holes: set[tuple[str, float]]
) -> list[ResultRow]:
    all_folds = {result.run.fold for of_row in by_cell.values() for result in of_row}
    order = sorted(by_cell, key=lambda cell: (keys.index(cell[0]), cell[1]))
    return [
        make_row(
            by_cell[cell],
            complete=cell not in holes and {result.run.fold for result in by_cell[cell]} == all_folds,
        )
        for cell in order
    ]


def _missing(unfinished: Sequence[Unfinished]) -> list[Missing]:
    """By name; with the sweep's or parent's name in front where there are several."""
    several = len({each.location.folder.resolve().parent for each in unfinished}) > 1
    return [
        Missing(
            "/".join(each.location.folder.resolve().parts[-2 if several else -1 :]), each.status, each.reason
        )
        for each in sorted(unfinished, key=lambda each: each.location.folder)
    ]
