"""Finds the runs below folders, and the runs that a sweep should have."""

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
"""They hold no runs and maybe many files. Folders whose names begin with a dot are not searched either."""


@dataclass(frozen=True)
class Found:
    """What lies below the folders of a report.

    Attributes:
        cells: Runs, begun or not, in the order of their absolute paths.
        commands: Command of each sweep.
    """

    cells: Sequence[RunLocation]
    commands: Sequence[str]


def find_cells(folders: Sequence[Path]) -> Found:
    """Find runs.

    Args:
        folders: Runs, sweeps, or folders that contain them at any depth.

    Returns:
        Each run once, however often it was named.

    Raises:
        DataError: If a folder is not there, or a ``sweep.json`` cannot be read.
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
                    # What the sweep says of a cell is more than what its folder says.
                    cell = RunLocation(place / listed.name, place.resolve(), listed.overrides)
                    cells[cell.folder.resolve()] = cell
            else:
                cells.setdefault(place.resolve(), RunLocation(place))
    return Found([cells[place] for place in sorted(cells)], sorted(commands))


def _places(folder: Path) -> Iterator[Path]:
    """Folders of runs and sweeps at or below a folder."""
    for place, names, files in os.walk(folder):
        path = Path(place)
        is_run = METRICS in files or CONFIG in files or (path / HYDRA_CONFIG).is_file()
        if is_run or SWEEP in files:
            yield path
        searched = [] if is_run and SWEEP not in files else names
        names[:] = sorted(name for name in searched if name not in _NOT_SEARCHED and name[0] != ".")


def _command(sweep: Path) -> str:
    """Command line of a sweep whose cells could be read."""
    record = json.loads((sweep / SWEEP).read_text(encoding="utf-8"))
    return shlex.join(map(str, record.get("command", [])))
