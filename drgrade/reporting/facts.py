"""Where figures come from: the data, commands, commits, versions, machines."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold

_SHOWN_VERSIONS = ("python", "drgrade", "torch", "pytorch-lightning", "timm")
_MANY = 10


def data_facts(runs: Sequence[Run], folds: Mapping[str, TestFold]) -> dict[str, str]:
    """Facts about the data, which are the same for all runs.

    Args:
        runs: Of a report.
        folds: Their test photographs.

    Returns:
        Name: text, in the order in which they are shown.
    """
    run = runs[0]
    data, split = run.config["data"], run.config["split"]
    tested = sum(len(fold.image_ids) for fold in folds.values())
    groups = sum(fold.num_groups for fold in folds.values())
    facts = {
        "data set": str(run.record["data"]),
        "further data sets": _further(run.record),
        "hash": str(run.record["data_hash"]),
        "photographs": str(len(run.split)),
        "tested on": f"{tested} photographs in {groups} groups (patients, copies)",
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
    """Facts about how the figures were made; what differs between runs is listed.

    Args:
        runs: Of a report.
        commands: Of the sweeps among them.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Name: text, in the order in which they are shown.
    """
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
    """What a fact is in the runs that know it.

    Args:
        runs: Of a report.
        fact: Text of a run; empty where it is not known.

    Returns:
        Each text once, sorted.
    """
    return sorted({text for run in runs if (text := fact(run))})


def commit(run: Run) -> str:
    """Commit that a run was made by, with ``+`` for further changes; empty where it is not known.

    Args:
        run: Which.
    """
    return str(run.provenance.get("commit") or "")


def versions(run: Run) -> str:
    """Versions that a run was made with; empty where they are not known.

    Args:
        run: Which.
    """
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
