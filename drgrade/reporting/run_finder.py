"""Search for runs below folders, and for the runs that sweeps list."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drgrade.errors import DataError
from drgrade.runs.reader import HYDRA_CONFIG, RunLocation
from drgrade.runs.run_dir import CONFIG, METRICS
from drgrade.sweeps.cells import SWEEP, read_sweep

_NOT_SEARCHED = ("checkpoints", "wandb", "stores", "tensorboard", "mlruns")
"""Folders without runs; folders whose names start with a dot are not searched either."""


@dataclass(frozen=True)
class FoundRuns:
    """Runs below the folders of a report.

    Attributes:
        cells: Started and listed runs, ordered by absolute path.
        commands: Command of each sweep.
    """

    cells: Sequence[RunLocation]
    commands: Sequence[str]


def find_cells(folders: Sequence[Path]) -> FoundRuns:
    """Find all runs in folders.

    Args:
        folders: Runs, sweeps, or folders that contain them at any depth.

    Returns:
        Each run once.

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
        for place in _places(folder):
            if (place / SWEEP).is_file():
                cells_of_sweep = read_sweep(place)
                commands.add(_command(place))
                for listed in cells_of_sweep:
                    # The sweep knows the overrides of a cell; its folder may not.
                    cell = RunLocation(place / listed.name, place.resolve(), listed.overrides)
                    cells[cell.folder.resolve()] = cell
            else:
                cells.setdefault(place.resolve(), RunLocation(place))
    return FoundRuns([cells[place] for place in sorted(cells)], sorted(commands))


def _places(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs and sweeps at or below a folder."""
    for place, names, files in os.walk(folder):
        path = Path(place)
        is_run = METRICS in files or CONFIG in files or (path / HYDRA_CONFIG).is_file()
        if is_run or SWEEP in files:
            yield path
        searched = [] if is_run and SWEEP not in files else names
        names[:] = sorted(name for name in searched if name not in _NOT_SEARCHED and name[0] != ".")


def _command(sweep: Path) -> str:
    """Return the command line of a sweep."""
    record = json.loads((sweep / SWEEP).read_text(encoding="utf-8"))
    return shlex.join(map(str, record.get("command", [])))
