"""Computation of a report from the folders of runs."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from drgrade.artefacts import read_object
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.reporting.checks import check_same_data, collect_folds, one_run_per_cell, split_hashes
from drgrade.reporting.comparison import REFERENCE, SELECTIVE_STATISTICS, compare_all, pairs_to_compare
from drgrade.reporting.costs import compare_budgets, compute_budgets, pretraining_costs
from drgrade.reporting.cross_data import cross_results
from drgrade.reporting.methods import choose_published, group, match_methods, published_rows
from drgrade.reporting.notes import (
    collect_notes,
    data_facts,
    left_out_notes,
    provenance_facts,
    published_notes,
)
from drgrade.reporting.schema import Missing, ResultRow, Study
from drgrade.reporting.statistics import Result, compute_results, compute_row, group_by_row
from drgrade.runs.reader import HYDRA_CONFIG, LeftOut, Run, RunLocation, Unfinished, read_run
from drgrade.runs.run_dir import CONFIG, METRICS
from drgrade.runs.settings import label_seed, method_key
from drgrade.sweeps.cells import SWEEP, read_sweep

_NOT_SEARCHED = ("checkpoints", "wandb", "stores", "tensorboard", "mlruns")
"""Folders without runs; folders whose names start with a dot are not searched either."""


def build_study(
    folders: Sequence[Path],
    resamples: int = 10_000,
    seed: int = 0,
    title: str | None = None,
    compare: str = REFERENCE,
    published: Literal["own", "all"] = "own",
    cross: Sequence[Path] = (),
) -> Study:
    """Read runs and compute the content of a report.

    Args:
        folders: Runs, sweeps, or folders that contain them at any depth.
        resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.
        title: Title; None derives it from the data set.
        compare: Methods to compare; see :func:`drgrade.reporting.comparison.pairs_to_compare`.
        published: Published results to show; see :func:`drgrade.reporting.methods.choose_published`.
        cross: Folders of runs that were trained on other data sets, for the matrix of data sets alone.

    Returns:
        The study; it does not depend on the order of folders or files.

    Raises:
        DataError: If there is no finished run, a finished run is damaged, or the runs use different data or
            splits.
        ConfigError: If ``compare`` is not the name of a method.
    """
    cells, commands = find_cells(folders)
    read = [read_run(cell) for cell in cells]
    runs = [each for each in read if isinstance(each, Run)]
    unfinished = [each for each in read if isinstance(each, Unfinished)]
    left_out = [each for each in read if isinstance(each, LeftOut)]
    if not runs:
        raise _no_runs_error(folders, unfinished, left_out)
    others = find_runs(cross)
    check_same_data(runs)
    folds = collect_folds(runs)
    runs, repeats = one_run_per_cell(runs)
    grouped = group(runs)
    keys = [method.key for method in grouped.methods]
    splits = split_hashes(runs, {method.key: method.protocol for method in grouped.methods})
    by_cell = group_by_row(compute_results(runs, folds, resamples, seed))
    unfinished, replaced = _without_replaced(unfinished, runs)
    rows = _rows(by_cell, keys, _incomplete_rows(unfinished, runs), seed)
    pairs, compared = pairs_to_compare(grouped.methods, compare)
    comparisons = compare_all(by_cell, pairs, seed)
    costs = pretraining_costs(grouped)
    budgets = compute_budgets(grouped, costs)
    findings = compare_budgets(grouped, budgets)
    warnings = [finding.text for finding in findings if finding.warning]
    data = str(runs[0].record["data"])
    papers = choose_published(published_rows(), published, data, {row.label_fraction for row in rows})
    notes = collect_notes(grouped, rows, pairs, comparisons, folds)
    notes += published_notes(papers, data)
    return Study(
        title=title or f"Grading with few labels: {data}",
        runs=[run.folder for run in runs],
        missing=_missing(unfinished),
        data=data_facts(runs, folds),
        provenance=provenance_facts(runs, commands, resamples, seed),
        splits=splits,
        grades=np.sum([np.bincount(fold.grades, minlength=NUM_GRADES) for fold in folds.values()], axis=0),
        methods=grouped.methods,
        rows=rows,
        comparisons=comparisons,
        published=match_methods(papers, grouped),
        pretrainings=list(costs.values()),
        compared=compared,
        budgets=budgets,
        equality=[finding.text for finding in findings],
        selective_comparisons=compare_all(by_cell, pairs, seed, SELECTIVE_STATISTICS),
        cross=cross_results(runs, others, resamples, seed),
        notes=[*warnings, *notes, *repeats, *replaced, *left_out_notes(left_out)],
    )


def find_cells(folders: Sequence[Path]) -> tuple[list[RunLocation], list[str]]:
    """Find the runs at or below folders.

    Returns:
        Started and listed runs, each once, by absolute path; the command of each sweep.

    Raises:
        DataError: If a folder does not exist, or a ``sweep.json`` cannot be read.
    """
    cells: dict[Path, RunLocation] = {}
    commands: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a folder: give the folders of runs or sweeps (outputs/sweeps/NAME)"
            )
        for path in _runs_and_sweeps(folder):
            if (path / SWEEP).is_file():
                listed = read_sweep(path)
                command = read_object(path / SWEEP, "remove it").get("command", [])
                commands.add(shlex.join(map(str, command if isinstance(command, list) else [command])))
                for cell in listed:
                    # The sweep knows the overrides of a cell; its folder may not.
                    location = RunLocation(path / cell.name, path.resolve(), cell.overrides)
                    cells[location.folder.resolve()] = location
            else:
                cells.setdefault(path.resolve(), RunLocation(path))
    return [cells[path] for path in sorted(cells)], sorted(commands)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the finished runs at or below folders; see :func:`find_cells`."""
    return [run for cell in find_cells(folders)[0] if isinstance(run := read_run(cell), Run)]


def _runs_and_sweeps(folder: Path) -> Iterator[Path]:
    for place, names, files in os.walk(folder):
        path = Path(place)
        is_run = METRICS in files or CONFIG in files or (path / HYDRA_CONFIG).is_file()
        if is_run or SWEEP in files:
            yield path
        searched = [] if is_run and SWEEP not in files else names
        names[:] = sorted(name for name in searched if name not in _NOT_SEARCHED and name[0] != ".")


def _no_runs_error(
    folders: Sequence[Path], unfinished: Sequence[Unfinished], left_out: Sequence[LeftOut]
) -> DataError:
    counts = Counter([each.status for each in unfinished] + [each.why for each in left_out])
    there = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no runs"
    return DataError(
        f"no finished grading run in {', '.join(map(str, folders))} ({there}): give the folder of a run or a "
        "sweep (outputs/sweeps/NAME), or wait for the first run to finish"
    )


def _without_replaced(
    unfinished: Sequence[Unfinished], runs: Sequence[Run]
) -> tuple[list[Unfinished], list[str]]:
    """Separate unfinished runs from those that a finished run replaces."""
    done = {(run.method, run.label_fraction, run.fold, run.replicate): run for run in runs}
    missing: list[Unfinished] = []
    notes: list[str] = []
    for each in unfinished:
        config = each.config
        cell = config and (
            method_key(config),
            float(config["label_fraction"]),
            str(config["fold"]),
            (int(config["seed"]), label_seed(config)),
        )
        if cell and cell in done:
            notes.append(f"{each.location.folder} ({each.status}) is replaced by {done[cell].folder}.")
        else:
            missing.append(each)
    return missing, notes


def _incomplete_rows(unfinished: Sequence[Unfinished], runs: Sequence[Run]) -> set[tuple[str, float]]:
    """Return the rows (method, label fraction) that unfinished runs belong to."""
    by_overrides = {run.location.row: (run.method, run.label_fraction) for run in runs if run.location.row}
    incomplete = {by_overrides[each.location.row] for each in unfinished if each.location.row in by_overrides}
    return incomplete | {
        (method_key(each.config), float(each.config["label_fraction"])) for each in unfinished if each.config
    }


def _rows(
    by_cell: Mapping[tuple[str, float], Sequence[Result]],
    keys: Sequence[str],
    incomplete: set[tuple[str, float]],
    seed: int,
) -> list[ResultRow]:
    all_folds = {result.run.fold for results in by_cell.values() for result in results}
    order = sorted(by_cell, key=lambda cell: (keys.index(cell[0]), cell[1]))
    return [
        compute_row(
            by_cell[cell],
            complete=cell not in incomplete and {result.run.fold for result in by_cell[cell]} == all_folds,
            seed=seed,
        )
        for cell in order
    ]


def _missing(unfinished: Sequence[Unfinished]) -> list[Missing]:
    """List unfinished runs by name, with the name of the parent folder if there are several."""
    several = len({each.location.folder.resolve().parent for each in unfinished}) > 1
    return [
        Missing(
            "/".join(each.location.folder.resolve().parts[-2 if several else -1 :]), each.status, each.reason
        )
        for each in sorted(unfinished, key=lambda each: each.location.folder)
    ]
