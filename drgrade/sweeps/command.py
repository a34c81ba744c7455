"""A cell as a command of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from drgrade.sweeps.grammar import as_override

_OF_THE_SWEEP = (
    "hydra.mode",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra/launcher",
)


def cell_command(overrides: Sequence[str], folder: Path) -> list[str]:
    """The command that runs one cell, wherever its process is started.

    Not by the name of this process's script: that may be a launcher's worker.

    Args:
        overrides: Of the cell, Hydra's own among them; those that are the sweep's business are left out.
        folder: The cell's folder.

    Returns:
        Program and arguments.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_OF_THE_SWEEP)]
    return [
        sys.executable,
        "-m",
        "drgrade.cli.train",
        *kept,
        "hydra.mode=RUN",  # a table's experiment asks for a sweep
        f"hydra.run.dir={as_override(str(folder))}",
    ]
