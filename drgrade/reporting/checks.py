"""Checks that runs may be averaged and compared: same data, same splits, no cell with two results."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drgrade.errors import DataError
from drgrade.reporting.schema import SplitKey
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold

_APART = "report them separately: drgrade report FOLDER for each"

_MOST_NAMED = 3
"""Number of repeated runs up to which each is named."""


def check_same_data(runs: Sequence[Run]) -> None:
    """Check that all runs use the same photographs, grades and folds.

    Raises:
        DataError: If they differ; the message names two folders and the difference.
    """
    facts: dict[str, Callable[[Run], object]] = {
        "data": lambda run: run.record["data"],
        "data.image_size": lambda run: run.config["data"]["image_size"],
        "data.illumination": lambda run: run.config["data"]["illumination"],
        "data_hash": lambda run: str(run.record["data_hash"])[:12],
        "split.seed": lambda run: run.config["split"]["seed"],
        "split.disagreeing": lambda run: run.config["split"]["disagreeing"],
        "split.file (whether there is one)": lambda run: run.config["split"]["file"] is not None,
        "kind of test set": lambda run: "published" if run.fold == "published" else "folds",
        # The setting folds does not apply to a split file or a published test set.
        "folds": lambda run: (
            run.config["folds"] if run.fold != "published" and run.config["split"]["file"] is None else ""
        ),
    }
    for name, fact in facts.items():
        first = runs[0]
        for run in runs[1:]:
            if fact(run) != fact(first):
                raise DataError(
                    f"{name} is {fact(first)} in {first.folder} and {fact(run)} in {run.folder}: runs with "
                    f"different data or splits cannot be averaged or compared; {_APART}"
                )


def collect_folds(runs: Sequence[Run]) -> dict[str, TestFold]:
    """Collect the test photographs of each fold by name, numbered folds first.

    Raises:
        DataError: If runs of a fold were tested on different photographs, or two folds share a photograph
            or a group.
    """
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.fold, run)
        for name in ("image_ids", "groups", "grades"):
            if not np.array_equal(getattr(run, name), getattr(other, name)):
                raise DataError(
                    f"fold {run.fold}: {other.folder} and {run.folder} were not tested on the same "
                    f"photographs, groups and grades ({len(other.image_ids)} and {len(run.image_ids)} "
                    f"photographs; {name} differ); {_APART}"
                )
    _check_disjoint(first)
    return {name: first[name].test_fold() for name in sorted(first, key=fold_order)}


def fold_order(name: str) -> tuple[bool, int, str]:
    """Return the sort key of a fold name: numbers first, then ``published``."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _check_disjoint(runs: Mapping[str, Run]) -> None:
    for kind, field in (("photograph", "image_ids"), ("group", "groups")):
        tested: dict[str, Run] = {}
        for run in runs.values():
            for name in sorted({*getattr(run, field).tolist()}):
                if name in tested:
                    raise DataError(
                        f"{kind} {name} is tested in two folds, by {tested[name].folder} and {run.folder}: "
                        f"the folds are not disjoint; {_APART}"
                    )
                tested[name] = run


def split_hashes(runs: Sequence[Run], protocol: Mapping[str, str]) -> dict[SplitKey, str]:
    """Collect the hash of each split by (protocol, label fraction, label seed, fold).

    ``protocol`` is that of each method, by its key.

    Raises:
        DataError: If two runs of a protocol were trained on different labels at the same fraction, label seed
            and fold.
    """
    first: dict[SplitKey, Run] = {}
    for run in runs:
        cell = (protocol[run.method], run.label_fraction, run.label_seed, run.fold)
        other = first.setdefault(cell, run)
        if run.record["split_hash"] != other.record["split_hash"]:
            raise DataError(
                f"protocol {cell[0]}, {100 * cell[1]:g} % of the labels, label seed {cell[2]}, fold "
                f"{cell[3]}: {other.folder} and {run.folder} were trained on different labels (split_hash "
                f"{str(other.record['split_hash'])[:12]} and {str(run.record['split_hash'])[:12]}); {_APART}"
            )
    order = sorted(first, key=lambda cell: (*cell[:3], fold_order(cell[3])))
    return {cell: str(first[cell].record["split_hash"]) for cell in order}


def one_run_per_cell(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the first of several runs with the same method, label fraction, fold and seeds.

    Returns:
        The runs that are kept, and notes on the others.

    Raises:
        DataError: If runs of the same cell have different results.
    """
    kept: dict[tuple[str, float, str, tuple[int, int]], Run] = {}
    repeats: list[tuple[Run, Run]] = []
    for run in runs:
        first = kept.setdefault((run.method, run.label_fraction, run.fold, run.replicate), run)
        if first is run:
            continue
        if not _equal_results(first, run):
            raise DataError(
                f"{first.folder} and {run.folder} are the same method, label fraction, fold and seeds, with "
                f"different results (test/qwk {first.record['test/qwk']:.4f} and "
                f"{run.record['test/qwk']:.4f}): remove one of them"
            )
        repeats.append((first, run))
    return list(kept.values()), _repeat_notes(repeats)


def _repeat_notes(repeats: Sequence[tuple[Run, Run]]) -> list[str]:
    """Describe repeated runs one by one, or together if there are many."""
    if len(repeats) > _MOST_NAMED:
        first, other = repeats[0]
        return [
            f"{len(repeats)} runs are duplicates with equal results and are left out; for example, "
            f"{other.folder} repeats {first.folder}."
        ]
    return [
        f"{other.folder} repeats {first.folder} with equal results and is left out."
        for first, other in repeats
    ]


def _equal_results(one: Run, other: Run) -> bool:
    return (
        np.array_equal(one.image_ids, other.image_ids)
        and np.array_equal(one.predicted, other.predicted)
        and np.allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-4)
    )
