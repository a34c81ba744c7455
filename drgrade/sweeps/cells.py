"""Cells of a sweep: names, the list in ``sweep.json``, progress and failures."""

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
"""Receives the output of a cell's process."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Name of its folder below the sweep's.
        overrides: Overrides that define it, as on the command line.
    """

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Progress of a cell.

    Attributes:
        status: ``finished``, ``pruned`` (a trial of a search), ``failed``, ``interrupted``, ``unfinished``
            (started, without a result) or ``not begun``.
        reason: Cause of a failure; empty if unknown.
        record: Content of ``metrics.json``.
    """

    status: str
    reason: str
    record: Mapping[str, Any]


def progress(folder: Path) -> Progress:
    """Read the progress of a cell from its folder; ``failed`` if ``metrics.json`` cannot be read."""
    try:
        record = read_metrics(folder)
    except DataError as error:
        return Progress("failed", str(error), {})
    if record:
        return Progress(str(record.get("status")), str(record.get("error", "")), record)
    if (folder / CONFIG).is_file():
        return Progress("unfinished", "ended without an error message (killed or out of memory?)", {})
    return Progress("not begun", "", {})


def cell_name(values: Mapping[str, str], row: str = "") -> str:
    """Name the folder of a cell; the name needs no quoting in a shell or in an override.

    Args:
        values: Swept settings and their values.
        row: Name of the cell's row; empty for a sweep without rows.

    Returns:
        ``init-ssl_label_fraction-0.1_fold-3_seed-0``, prefixed by the row. Values with special characters
        are shortened and get a hash.

    Example:
        >>> cell_name({"optimizer.lr": "1e-3", "fold": "0"}, row="mae")
        'mae_lr-1e-3_fold-0'
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
    """Write ``sweep.json``; cells that an earlier command listed stay in it.

    Args:
        folder: The sweep's folder.
        name: Name of the sweep.
        command: The command line.
        cells: Cells of this command.

    Raises:
        DataError: If an existing ``sweep.json`` cannot be read.
    """
    known = {cell.name: cell for cell in read_sweep(folder)} | {cell.name: cell for cell in cells}
    listed = [{"name": cell.name, "overrides": list(cell.overrides)} for cell in known.values()]
    record = {"name": name, "command": list(command), "cells": listed}
    write_text(folder / SWEEP, json.dumps(record, indent=2) + "\n")


def read_sweep(folder: Path) -> list[Cell]:
    """Read the cells of a sweep from ``sweep.json``.

    Args:
        folder: The sweep's folder.

    Returns:
        All planned cells; empty without ``sweep.json``.

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
    """Return the last line of an output that starts with ``error:``, without this prefix, or ``""``."""
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else ""


def log_file(folder: Path) -> Path:
    """Return the path of a cell's log: the output of its own process, or else Hydra's log."""
    own = folder / OUTPUT
    return own if own.is_file() else folder / "train.log"


def failures(folder: Path, cells: Sequence[Cell], errors: Mapping[str, str] | None = None) -> str:
    """Format a table of the cells that are not finished.

    Args:
        folder: The sweep's folder.
        cells: Cells to look at.
        errors: Last error of each cell's process, by name. A cell that fails before it writes into its folder
            leaves no reason there, or that of an earlier attempt.

    Returns:
        Lines of text; empty if every cell is finished.
    """
    errors = errors or {}
    rows = [
        (cell.name, _with_error(progress(folder / cell.name), errors.get(cell.name, ""))) for cell in cells
    ]
    broken = [(name, found) for name, found in rows if found.status != FINISHED]
    if not broken:
        return ""
    width = max(len(name) for name, _ in broken)
    lines = [
        f"  {name:{width}}  {found.status:11}  {_shorten(found.reason)}".rstrip() for name, found in broken
    ]
    logs = [path for name, _ in broken if (path := log_file(folder / name)).is_file()]
    if logs:
        lines.append(f"  {'its output' if len(logs) == 1 else 'output of the first'}: {logs[0]}")
    return "\n".join([f"{len(broken)} of {len(cells)} cells are not finished:", *lines])


def _with_error(found: Progress, error: str) -> Progress:
    if found.status == FINISHED or error in found.reason:
        return found
    return replace(found, status="failed" if found.status == "not begun" else found.status, reason=error)


def _shorten(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 200 else f"{line[:200]} ..."
