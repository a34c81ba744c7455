"""Cells of a sweep: names, the list in ``sweep.json``, progress and failures."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drgrade.artefacts import read_object
from drgrade.config import as_override
from drgrade.errors import DataError
from drgrade.files import is_path, write_text
from drgrade.runs.run_dir import CONFIG, ENDED, read_metrics

SWEEP = "sweep.json"
OUTPUT = "output.log"
"""Receives the output of a cell's process."""

AXES = ("init", "label_fraction", "fold", "seed")
"""Settings whose further values extend a sweep; they are not part of its name."""

LABEL_SEED = "split.label_seed"
"""A further axis; names of cells contain it unless it is 0, so that those of earlier sweeps are found."""

ROW_AXES = ("protocol",)
"""Further axes of a sweep with rows: its report compares protocols side by side."""

_NAMED = ("experiment", "data", "scale")
"""Settings that the readable part of the name already contains."""

_SWEEP_SETTINGS = (
    "hydra.mode",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra/launcher",
)

_FREE = re.compile(
    r"(resume|download|sweep|method|name)$"
    r"|(trainer|logger|callbacks)$|logger\.|callbacks\.|paths\."
    r"|trainer\.(accelerator|devices|num_nodes|strategy)"
    r"|data\.root$|data\.(workers|num_workers|download)$"
)
"""Settings that do not change results, such as devices, folders and loggers."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the name of its folder, and the overrides that define it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Progress of a cell.

    Attributes:
        status: ``finished``, ``trial`` (of the code), ``pruned`` (a trial of a search), ``failed``,
            ``interrupted``, ``unfinished`` (started, without a result) or ``not begun``.
        reason: Cause of a failure; empty if unknown.
        record: Content of ``metrics.json``.
    """

    status: str
    reason: str
    record: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """True if the cell has reached its end and need not run again."""
        return self.status in ENDED


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


def sweep_name(name: str, data: str, fixed: Sequence[tuple[str, str]], axes: Sequence[str] = AXES) -> str:
    """Name a sweep by its experiment, its data set and a hash of its other settings.

    Args:
        name: ``name`` of the config.
        data: Name of the data set.
        fixed: (setting, value) pairs of the command line that all cells share.
        axes: Settings whose further values extend the sweep.

    Returns:
        ``rotation_table-demo``, with a scale ``rotation_table-idrid-small``, with further settings
        ``rotation_table-demo-3fa2b1``. Values of the axes and settings that do not change results are
        ignored.
    """
    settings = [(key.lstrip("+"), value) for key, value in fixed]
    counted = sorted(
        f"{key}={value}"
        for key, value in settings
        if key not in axes and key not in _NAMED and not _FREE.match(key)
    )
    scale = [f"-{value}" for key, value in fixed if key == "scale"]
    suffix = f"-{_short_hash(chr(10).join(counted))}" if counted else ""
    return f"{name}-{data}{''.join(scale)}{suffix}"


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
    return value if plain == value and len(value) <= 40 else f"{plain[-30:]}-{_short_hash(value)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def cell_command(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the command that runs a cell in its folder, independent of the program that starts it.

    Settings of the sweep itself are dropped from the overrides.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_SWEEP_SETTINGS)]
    # The experiment of a table sets MULTIRUN.
    own = ["hydra.mode=RUN", f"hydra.run.dir={as_override(str(folder))}"]
    return [sys.executable, "-m", "drgrade.cli.train", *kept, *own]


def write_sweep(folder: Path, name: str, command: Sequence[str], cells: Sequence[Cell]) -> None:
    """Write ``sweep.json``; cells that an earlier command listed stay in it.

    Raises:
        DataError: If an existing ``sweep.json`` cannot be read.
    """
    known = {cell.name: cell for cell in (*read_sweep(folder), *cells)}
    listed = [{"name": cell.name, "overrides": list(cell.overrides)} for cell in known.values()]
    record = {"name": name, "command": list(command), "cells": listed}
    write_text(folder / SWEEP, json.dumps(record, indent=2) + "\n")


def read_sweep(folder: Path) -> list[Cell]:
    """Read all planned cells of a sweep from ``sweep.json``; empty without this file.

    Raises:
        DataError: If ``sweep.json`` cannot be read.
    """
    path = folder / SWEEP
    if not path.is_file():
        return []
    try:
        listed = read_object(path, "remove it and repeat the sweep's command")["cells"]
        cells = [Cell(str(cell["name"]), tuple(map(str, cell["overrides"]))) for cell in listed]
        if not all(_is_folder_name(cell.name) for cell in cells):
            raise ValueError("a cell is not named like a folder in it")
        return cells
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}); remove it and repeat the sweep's command"
        ) from error


def _is_folder_name(name: str) -> bool:
    return not set(name) & {"/", "\\"} and name not in ("", ".", "..") and is_path(name)


def error_line(output: str) -> str:
    """Return the last line of an output that starts with ``error:``, without this prefix, or ``""``."""
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else ""


def log_file(folder: Path) -> Path:
    """Return the path of a cell's log: the output of its own process, or else Hydra's log."""
    own = folder / OUTPUT
    return own if own.is_file() else folder / "train.log"


def failures(folder: Path, cells: Sequence[Cell], errors: Mapping[str, str] | None = None) -> str:
    """Format a table of the cells that are not finished; empty if every cell is.

    ``errors`` are the last errors of the cells' processes, by name of the cell: a cell that fails before it
    writes into its folder leaves no reason there, or that of an earlier attempt.
    """
    results = {cell.name: progress(folder / cell.name) for cell in cells}
    results = {name: result for name, result in results.items() if not result.is_finished}
    if not results:
        return ""
    width = max(map(len, results))
    lines = [f"{len(results)} of {len(cells)} cells are not finished:"]
    for name, result in results.items():
        latest = _with_error(result, (errors or {}).get(name, ""))
        lines.append(f"  {name:{width}}  {latest.status:11}  {_shorten(latest.reason)}".rstrip())
    logs = [path for name in results if (path := log_file(folder / name)).is_file()]
    if logs:
        lines.append(f"  {'its output' if len(logs) == 1 else 'output of the first'}: {logs[0]}")
    return "\n".join(lines)


def _with_error(result: Progress, error: str) -> Progress:
    if error in result.reason:
        return result
    return replace(result, status="failed" if result.status == "not begun" else result.status, reason=error)


def _shorten(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 200 else f"{line[:200]} ..."
