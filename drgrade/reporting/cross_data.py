"""Matrix of training and test data sets: QWK of models trained on A and tested on B."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.reporting.checks import check_same_data, collect_folds, one_run_per_cell
from drgrade.reporting.methods import group
from drgrade.reporting.schema import CrossResult
from drgrade.reporting.table import Column, Dashes, Group, ReportTable
from drgrade.runs.reader import Run
from drgrade.runs.run_dir import predictions_file, read_table
from drgrade.stats.bootstrap import TestFold, cells_by_group, draws, kappas
from drgrade.stats.estimates import Counts, Estimate, Floats
from drgrade.stats.formatting import DASH, estimate, fraction
from drgrade.stats.hierarchical import FoldRuns, resample_mean

_REPAIR = "run it again, or leave it out"

Row = tuple[str, float]
"""Key of a method, and a label fraction."""


def cross_results(runs: Sequence[Run], others: Sequence[Run], resamples: int, seed: int) -> list[CrossResult]:
    """Estimate the QWK of each method and label fraction on every data set that its runs were tested on.

    On its own data set a row is the mean over the test folds. On another one (``data.external=``) every run
    is tested on the same photographs; its QWK is the mean over the runs, which share the resamples.
    Intervals are those of the hierarchical bootstrap (:mod:`drgrade.stats.hierarchical`).

    Args:
        runs: Runs of the report.
        others: Runs that were trained on other data sets.
        resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        Results by method, label fraction, training and test data set; empty if no run was tested on another
        data set and there are no ``others``.

    Raises:
        DataError: If runs of the same training data set cannot be averaged, or a file of a run is damaged.
    """
    by_data: dict[str, list[Run]] = defaultdict(list)
    for run in [*runs, *others]:
        by_data[str(run.record["data"])].append(run)
    if len(by_data) == 1 and not any(external_names(run) for run in runs):
        return []
    checked = []
    for of_data in by_data.values():
        check_same_data(of_data)
        checked += one_run_per_cell(of_data)[0]
    grouped = group(checked)
    results = []
    for method in grouped.methods:
        cells: dict[tuple[float, str], list[Run]] = defaultdict(list)
        for run in grouped.runs[method.key]:
            cells[run.label_fraction, str(run.record["data"])].append(run)
        for (share, trained), of_cell in sorted(cells.items()):
            for tested, (qwk, photographs) in _tested(of_cell, trained, resamples, seed):
                result = CrossResult(method.label, share, trained, tested, qwk, photographs, len(of_cell))
                results.append(result)
    return results


def external_names(run: Run) -> list[str]:
    """Return the names of the external data sets that a run was tested on."""
    parts = [name.split("/") for name in run.record]
    return [part[1] for part in parts if len(part) == 3 and part[0] == "external" and part[2] == "qwk"]


def _tested(
    runs: Sequence[Run], trained: str, resamples: int, seed: int
) -> Iterator[tuple[str, tuple[Estimate, int]]]:
    """Yield each test set of a row with its QWK and number of photographs."""
    folds = collect_folds(runs)
    own = {
        name: (fold, [(run, run.predicted) for run in runs if run.fold == name])
        for name, fold in folds.items()
    }
    yield trained, _estimate(own, resamples, seed)
    for name in dict.fromkeys(name for run in runs for name in external_names(run)):
        tested = [run for run in runs if name in external_names(run)]
        yield name, _estimate({name: _external(tested, name)}, resamples, seed)


def _external(runs: Sequence[Run], name: str) -> tuple[TestFold, list[tuple[Run, Counts]]]:
    """Read the predictions of all runs for an external data set.

    Raises:
        DataError: If the runs were not tested on the same photographs.
    """
    read = [(run, *_read_external(run, name)) for run in runs]
    first, fold, _ = read[0]
    for run, other, _ in read:
        if not (
            np.array_equal(other.image_ids, fold.image_ids) and np.array_equal(other.grades, fold.grades)
        ):
            raise DataError(
                f"{first.folder} and {run.folder} were not tested on the same photographs of {name}: report "
                "them separately"
            )
    return fold, [(run, predicted) for run, _, predicted in read]


def _read_external(run: Run, name: str) -> tuple[TestFold, Counts]:
    path = predictions_file(run.folder, name)
    table = read_table(path, ["image_id", "grade", "predicted"], _REPAIR).sort_values("image_id")
    groups = table["image_id"].map(run.split.set_index("image_id")["group"])
    values = table[["grade", "predicted"]]
    if groups.isna().any() or not bool(values.isin(range(NUM_GRADES)).all(axis=None)):
        raise DataError(f"{path} does not fit split.csv or has a grade outside 0 to 4: {_REPAIR}")
    grades, predicted = (values[each].to_numpy(np.int64) for each in values)
    ids, names = table["image_id"].to_numpy(dtype=str), groups.to_numpy(dtype=str)
    # All runs share the draws of this name.
    return TestFold.with_groups(f"external/{name}", ids, names, grades), predicted


def _estimate(
    tested: Mapping[str, tuple[TestFold, Sequence[tuple[Run, Counts]]]], resamples: int, seed: int
) -> tuple[Estimate, int]:
    """Average the QWK over the runs of each set and over the sets; count the photographs."""
    sets = []
    for fold, predictions in tested.values():
        cells = cells_by_group(fold, np.stack([each for _, each in predictions]), NUM_GRADES)
        values = _qwks(cells.sum(axis=0, keepdims=True))[0]  # (R,)
        drawn = [_qwks(counts @ cells) for counts in draws(fold, resamples, seed)]
        samples = np.concatenate(drawn, axis=0).T  # (R, B)
        # Runs of several folds on one external set: average those of a seed and label draw.
        by_replicate: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, (run, _) in enumerate(predictions):
            by_replicate[run.replicate].append(place)
        means = [(values[places].mean(), samples[places].mean(axis=0)) for places in by_replicate.values()]
        value, sample = (np.stack(each) for each in zip(*means, strict=True))
        sets.append(FoldRuns(list(by_replicate), value, sample, fold.num_groups))
    mean = resample_mean(sets, seed)
    photographs = sum(len(fold.grades) for fold, _ in tested.values())
    return Estimate(mean.value, mean.bounded_interval), photographs


def _qwks(cells: Floats) -> Floats:
    """Compute (B, R) QWK from (B, R * 25) counts."""
    return kappas(cells.reshape(len(cells), -1, NUM_GRADES, NUM_GRADES))


def cross_table(results: Sequence[CrossResult]) -> ReportTable:
    """Tabulate the QWK of each row on each data set: trained on A, tested on B."""
    dashes = Dashes()
    names = list(dict.fromkeys([each.trained for each in results] + [each.tested for each in results]))
    columns = [Column("labels"), Column("trained on", number=False)]
    columns += [Column(name, over="tested on") for name in names]
    lines: dict[str, dict[tuple[float, str], dict[str, str]]] = {}
    for each in results:
        line = lines.setdefault(each.method, {}).setdefault((each.label_fraction, each.trained), {})
        line[each.tested] = estimate(each.qwk)
    groups = [
        Group(
            method,
            "",
            [
                [
                    fraction(share),
                    trained,
                    *(dashes.cell(line.get(name, DASH), "not tested (data.external=)") for name in names),
                ]
                for (share, trained), line in of_method.items()
            ],
        )
        for method, of_method in lines.items()
    ]
    caption = (
        "QWK across data sets, with 95 % intervals; on the training data set: mean over the test folds; on "
        "another one: all its graded photographs, mean over the runs"
    )
    return ReportTable("cross_data", caption, "method", columns, groups, dashes.remarks)
