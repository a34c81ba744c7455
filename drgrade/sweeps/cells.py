"""Cells of a sweep: their names, and how far they are."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.runs.run_dir import CONFIG, read_metrics

SWEEP = "sweep.json"
FINISHED = "finished"
OUTPUT = "output.log"
"""What a cell's own process prints."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Of its folder in the sweep's.
        overrides: What tells it from the sweep's config, as on the command line.
    """

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """How far a cell is.

    Attributes:
        status: ``finished``, ``pruned`` (a search's trial), ``failed``, ``interrupted``,
            ``unfinished`` (begun, without a result) or ``not begun``.
        reason: Why it failed; empty where there is nothing to say.
        record: What its ``metrics.json`` holds.
    """

    status: str
    reason: str
    record: Mapping[str, Any]


def progress(folder: Path) -> Progress:
    """Read from its folder how far a cell is.

    Args:
        folder: The cell's.

    Returns:
        Its progress; failed if its ``metrics.json`` cannot be read, with what to do about it.
    """
    try:
        record = read_metrics(folder)
    except DataError as error:
        return Progress("failed", str(error), {})
    if record:
        return Progress(str(record.get("status")), str(record.get("error", "")), record)
    if (folder / CONFIG).is_file():
        return Progress("unfinished", "ended without a word (killed, or out of memory?)", {})
    return Progress("not begun", "", {})


def cell_name(values: Mapping[str, str], row: str = "") -> str:
    """Name of a cell's folder, from what tells it from the others.

    It needs no quoting in a shell or as the value of an override.

    Args:
        values: Swept setting: value.
        row: Name of its row; empty if the sweep has none.

    Returns:
        ``init-ssl_label_fraction-0.1_fold-3_seed-0``, after the name of the row; values that hold
        other signs get a hash.
    """
    parts = [f"{_last(key)}-{_plain(value)}" for key, value in values.items()]
    return "_".join([row, *parts] if row else parts) or "single"


def _last(key: str) -> str:
    return re.sub(r"[^\w]", "", key.split("@")[0].rsplit(".", 1)[-1].rsplit("/", 1)[-1])


def _plain(value: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", value).strip("-")
    if plain == value and len(value) <= 40:
        return value
    return f"{plain[-30:]}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def write_sweep(folder: Path, name: str, command: Sequence[str], cells: Sequence[Cell]) -> None:
    """Write ``sweep.json``: every cell that the sweep is to have. Cells of an earlier command stay listed.

    Args:
        folder: The sweep's.
        name: Of the sweep.
        command: The command line.
        cells: Of this command.

    Raises:
        DataError: If there is an unreadable ``sweep.json``.
    """
    known = {cell.name: cell for cell in read_sweep(folder)} | {cell.name: cell for cell in cells}
    listed = [{"name": cell.name, "overrides": list(cell.overrides)} for cell in known.values()]
    record = {"name": name, "command": list(command), "cells": listed}
    write_text(folder / SWEEP, json.dumps(record, indent=2) + "\n")


def read_sweep(folder: Path) -> list[Cell]:
    """Cells that a sweep is to have.

    Args:
        folder: The sweep's.

    Returns:
        Its cells; empty if it has no ``sweep.json``.

    Raises:
        DataError: If ``sweep.json`` cannot be read.
    """
    path = folder / SWEEP
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [Cell(str(cell["name"]), tuple(cell["overrides"])) for cell in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}); remove it and repeat the sweep's command"
        ) from error


def error_line(output: str) -> str:
    """What a command said was wrong.

    Args:
        output: All that it printed.

    Returns:
        Its last line that begins with ``error:``, without that; empty if there is none.
    """
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else ""


def log_file(folder: Path) -> Path:
    """Where a cell's output goes.

    Args:
        folder: The cell's.

    Returns:
        The file of its own process, or else Hydra's.
    """
    own = folder / OUTPUT
    return own if own.is_file() else folder / "train.log"


def failures(folder: Path, cells: Sequence[Cell], told: Mapping[str, str] | None = None) -> str:
    """A table of the cells that are not finished.

    Args:
        folder: The sweep's.
        cells: To be looked at.
        told: Cell: what its process said last. A cell may be refused before it writes into its folder, which
            then has nothing to say, or tells of an earlier attempt.

    Returns:
        Lines of text; empty if every cell is finished.
    """
    told = told or {}
    rows = [(cell.name, _with(progress(folder / cell.name), told.get(cell.name, ""))) for cell in cells]
    broken = [(name, found) for name, found in rows if found.status != FINISHED]
    if not broken:
        return ""
    width = max(len(name) for name, _ in broken)
    lines = [
        f"  {name:{width}}  {found.status:11}  {_short(found.reason)}".rstrip() for name, found in broken
    ]
    logs = [path for name, _ in broken if (path := log_file(folder / name)).is_file()]
    hint = (
        [f"  its output: {logs[0]}" if len(logs) == 1 else f"  output of the first: {logs[0]}"]
        if logs
        else []
    )
    return "\n".join([f"{len(broken)} of {len(cells)} cells are not finished:", *lines, *hint])


def _with(found: Progress, told: str) -> Progress:
    """Progress with what the process said, unless the folder says the same in more words."""
    if found.status == FINISHED or told in found.reason:
        return found
    return replace(found, status="failed" if found.status == "not begun" else found.status, reason=told)


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 200 else f"{line[:200]} ..."
