"""Facts and caveats of a report."""

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from drgrade.grades import NUM_GRADES
from drgrade.reporting.comparison import Pair
from drgrade.reporting.methods import Grouped
from drgrade.reporting.published import DATA
from drgrade.reporting.schema import Method, MethodComparison, ResultRow
from drgrade.runs.reader import LeftOut, Run
from drgrade.stats import formatting
from drgrade.stats.bootstrap import TestFold

_P = 0.05
"""Usual significance level."""


def collect_notes(
    grouped: Grouped,
    rows: Sequence[ResultRow],
    pairs: Sequence[Pair],
    comparisons: Sequence[MethodComparison],
    folds: Mapping[str, TestFold],
    resamples: int,
) -> list[str]:
    """Collect the caveats, most important first.

    Args:
        grouped: Methods and their runs.
        rows: Rows of the main table.
        pairs: Pairs of methods to compare.
        comparisons: Comparisons that were possible.
        folds: Test photographs of each fold.
        resamples: Number of bootstrap resamples.
    """
    runs = [run for of_method in grouped.runs.values() for run in of_method]
    return [
        *_completeness(grouped.methods, rows),
        *_test_photographs(grouped.methods),
        *_encoders(grouped),
        *_protocols(grouped),
        *_missing_grades(folds),
        *_origin(runs),
        *_statistics(grouped.methods, rows, pairs, comparisons),
        *_resamples(comparisons, resamples),
    ]


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one sentence for each kind of folder that the report leaves out."""
    notes = []
    for why in sorted({each.why for each in left_out}):
        folders = [each.folder for each in left_out if each.why == why]
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(
            f"Left out because the report covers tested grading runs only: {why} ({folders[0]}{more})."
        )
    return notes


def _completeness(methods: Sequence[Method], rows: Sequence[ResultRow]) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    incomplete = [
        f"{labels[row.method]}, {100 * row.label_fraction:g} % ({_folds(row)})"
        for row in rows
        if not row.complete
    ]
    if incomplete:
        yield f"Incomplete rows: {'; '.join(incomplete)}."


def _folds(row: ResultRow) -> str:
    return f"{'folds' if len(row.folds) > 1 else 'fold'} {', '.join(row.folds)} only"


def _test_photographs(methods: Sequence[Method]) -> Iterator[str]:
    saw = [method.label for method in methods if method.saw_test]
    unknown = [method.label for method in methods if method.saw_test is None]
    if saw:
        yield f"Pre-training used the test photographs, without their grades: {'; '.join(saw)}."
    if unknown:
        yield f"It is unknown whether pre-training used the test photographs: {'; '.join(unknown)}."


def _encoders(grouped: Grouped) -> Iterator[str]:
    """Warn if runs of a method started from different encoders with the same settings."""
    for method in grouped.methods:
        hashes: dict[tuple[int, str], set[str]] = defaultdict(set)
        for run in grouped.runs[method.key]:
            if "encoder_hash" in run.record:
                # Pre-training on training photographs gives one encoder per fold.
                fold = run.fold if run.config.get("pretrain_on") == "train" else ""
                hashes[run.seed, fold].add(str(run.record["encoder_hash"]))
        if any(len(different) > 1 for different in hashes.values()):
            yield (
                f"Runs of {method.label} started from different encoders that were pre-trained with the same "
                "settings (encoder_hash in metrics.json differs)."
            )


def _missing_grades(folds: Mapping[str, TestFold]) -> Iterator[str]:
    missing = [
        f"fold {name} has no grade {formatting.listed([str(grade) for grade in grades])}"
        for name, fold in folds.items()
        if (grades := sorted({*range(NUM_GRADES)} - {*fold.grades.tolist()}))
    ]
    if missing:
        yield (
            f"Some folds have no test photographs of some grades: {'; '.join(missing)}. Metrics that are "
            "undefined in such a fold count as 0.5 (AUROC) or 0 (others) in the means over the folds. "
            "Recall is computed over all folds together."
        )


def _protocols(grouped: Grouped) -> Iterator[str]:
    """Describe the validation data of the protocols; protocols with the same sentence are merged."""
    sentences: dict[str, list[str]] = {}
    for method in grouped.methods:
        split = grouped.runs[method.key][0].config["split"]
        if split["file"] is None:
            names = sentences.setdefault(_validation(split), [])
            if method.protocol not in names:
                names.append(method.protocol)
    for sentence, names in sentences.items():
        yield f"Protocol{'s' if len(names) > 1 else ''} {formatting.listed(names)}: {sentence}"


def _validation(split: Mapping[str, Any]) -> str:
    if not split["val_fraction"]:
        return "no validation photographs."
    if split["val_within_fraction"]:
        return "validation labels are part of the label fraction."
    share = f"{100 * split['val_fraction']:g} %"
    return f"validation labels ({share} of the training photographs) are not counted in the label fraction."


def _origin(runs: Sequence[Run]) -> Iterator[str]:
    commits, packages = distinct(runs, commit), distinct(runs, versions)
    if len(commits) > 1:
        yield f"The runs used {len(commits)} different commits."
    if any(each.endswith("+") for each in commits):
        yield "Some runs used code with uncommitted changes (marked +)."
    if "data_external" in runs[0].record:
        external = runs[0].record["data_external"]
        yield f"The report does not include results on external data sets ({external})."
    if len(packages) > 1:
        yield f"The runs used {len(packages)} different sets of package versions."
    name = str(runs[0].record["data"])
    if name != DATA:
        yield f"Published results are for {DATA}, not for {name}."


def _statistics(
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
                    f"Not compared at {100 * fraction:g} % of the labels because no fold and seed are in "
                    f"common: {labels[first]}; {labels[second]}."
                )
    if any(len(row.folds) == 1 for row in rows):
        yield (
            "A single fold has no standard deviation; its interval reflects the test photographs of that "
            "fold only."
        )


def _resamples(comparisons: Sequence[MethodComparison], resamples: int) -> Iterator[str]:
    """Warn if Holm's correction of the least possible p-value, 2 / (B + 1), exceeds the limit."""
    least = 2 * len(comparisons) / (resamples + 1)
    if least > _P:
        yield (
            f"With {resamples} resamples and {len(comparisons)} comparisons, p (Holm) cannot be below "
            f"{min(1.0, least):.2g}: set resamples={_enough(len(comparisons))} or compare fewer methods."
        )


def _enough(comparisons: int) -> int:
    """Return the number of resamples at which the least possible p (Holm) is a fifth of the limit."""
    return math.ceil(10 * comparisons / _P / 10_000) * 10_000


_SHOWN_VERSIONS = ("python", "drgrade", "torch", "pytorch-lightning", "timm")
_MANY = 10


def data_facts(runs: Sequence[Run], folds: Mapping[str, TestFold]) -> dict[str, str]:
    """Return the facts that all runs share, by name, in display order."""
    run = runs[0]
    data, split = run.config["data"], run.config["split"]
    tested = sum(len(fold.image_ids) for fold in folds.values())
    groups = sum(fold.num_groups for fold in folds.values())
    facts = {
        "data set": str(run.record["data"]),
        "further data sets": _further(run.record),
        "hash": str(run.record["data_hash"]),
        "photographs": str(len(run.split)),
        "tested on": f"{tested} photographs in {groups} groups (patients, near-duplicates)",
        "image size": f"{data['image_size']} px",
        "illumination": "" if data["illumination"] == "none" else str(data["illumination"]),
        "folds": _scheme(run, list(folds)),
        "split seed": "" if run.fold == "published" or split["file"] else str(split["seed"]),
    }
    return {name: text for name, text in facts.items() if text}


def _further(record: Mapping[str, Any]) -> str:
    roles = ("labelled", "unlabelled", "external")
    return "; ".join(f"{role}: {record[f'data_{role}']}" for role in roles if f"data_{role}" in record)


def _scheme(run: Run, folds: Sequence[str]) -> str:
    if run.fold == "published":
        return "the published test set"
    if run.config["split"]["file"] is not None:
        return f"{', '.join(folds)} of a split file"
    count = run.config["folds"]
    return str(count) if len(folds) == count else f"{', '.join(folds)} of {count}"


def provenance_facts(
    runs: Sequence[Run], commands: Sequence[str], resamples: int, seed: int
) -> dict[str, str]:
    """Return commands, commits, versions, hardware, seeds and the settings of the bootstrap, by name."""
    single = {
        shlex.join(run.provenance["command"])
        for run in runs
        if not run.location.sweep and "command" in run.provenance
    }
    facts = {
        "commands": _listed([*commands, *sorted(single)], "\n"),
        "commits": _listed(distinct(runs, commit)),
        "versions": _listed(distinct(runs, versions)),
        "hardware": _listed(distinct(runs, _hardware)),
        "seeds": _listed(str(number) for number in sorted({run.seed for run in runs})),
        "intervals": f"95 %, bootstrap of groups inside folds, {resamples} resamples, seed {seed}",
    }
    return {name: text for name, text in facts.items() if text}


def distinct(runs: Sequence[Run], fact: Callable[[Run], str]) -> list[str]:
    """Return the different non-empty values of a fact, sorted."""
    return sorted({text for run in runs if (text := fact(run))})


def commit(run: Run) -> str:
    """Return the commit of a run, with ``+`` for uncommitted changes; empty if unknown."""
    return str(run.provenance.get("commit") or "")


def versions(run: Run) -> str:
    """Return the package versions of a run; empty if unknown."""
    known = run.provenance.get("versions") or {}
    return ", ".join(f"{name} {known[name]}" for name in _SHOWN_VERSIONS if name in known)


def _hardware(run: Run) -> str:
    machine = run.provenance.get("machine")
    if not machine:
        return ""
    devices = run.provenance.get("devices", 1)
    what = machine.get("gpu") or f"{machine.get('processor')} with {machine.get('cores')} cores"
    return f"{what} ({devices} devices)" if devices != 1 else str(what)


def _listed(texts: Iterable[str], separator: str = "; ") -> str:
    found = list(texts)
    rest = [f"and {len(found) - _MANY} more"] if len(found) > _MANY else []
    return separator.join([*found[:_MANY], *rest])
