"""What Hydra finds of drgrade: it takes plugins from the package ``hydra_plugins`` only, defined there."""

from drgrade.sweeps.launcher import LocalLauncher as _LocalLauncher
from drgrade.sweeps.sweeper import CellSweeper as _CellSweeper


class CellSweeper(_CellSweeper):
    """See :class:`drgrade.sweeps.sweeper.CellSweeper`."""


class LocalLauncher(_LocalLauncher):
    """See :class:`drgrade.sweeps.launcher.LocalLauncher`."""
