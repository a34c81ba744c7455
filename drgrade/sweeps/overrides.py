"""Overrides of a sweep: its name, and the command of one cell."""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from drgrade.config import as_override

AXES = ("init", "label_fraction", "fold", "seed")
"""Settings whose further values extend a sweep; they are not part of its name."""

ROW_AXES = ("protocol",)
"""Further axes of a sweep with rows: its report compares protocols side by side."""

_NAMED = ("experiment", "data", "scale")
"""Settings that the readable part of the name already contains."""

_FREE = re.compile(
    r"(resume|download|sweep|method|name)$"
    r"|(trainer|logger|callbacks)$|logger\.|callbacks\.|paths\."
    r"|trainer\.(accelerator|devices|num_nodes|strategy)"
    r"|data\.root$|data\.(workers|num_workers|download)$"
)
"""Settings that do not change results, such as devices, folders and loggers."""

_SWEEP_SETTINGS = (
    "hydra.mode",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra/launcher",
)


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
    counted = sorted(
        f"{key}={value}"
        for key, value in ((key.lstrip("+"), value) for key, value in fixed)
        if key not in axes and key not in _NAMED and not _FREE.match(key)
    )
    scale = [f"-{value}" for key, value in fixed if key == "scale"]
    suffix = f"-{hashlib.sha256(chr(10).join(counted).encode()).hexdigest()[:6]}" if counted else ""
    return f"{name}-{data}{''.join(scale)}{suffix}"


def cell_command(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the command that runs one cell, independent of the program that starts it.

    Args:
        overrides: Overrides of the cell, including those of Hydra; settings of the sweep itself are dropped.
        folder: The cell's folder.

    Returns:
        Program and arguments.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_SWEEP_SETTINGS)]
    return [
        sys.executable,
        "-m",
        "drgrade.cli.train",
        *kept,
        "hydra.mode=RUN",  # the experiment of a table sets MULTIRUN
        f"hydra.run.dir={as_override(str(folder))}",
    ]
