"""Sweepers and launchers as Hydra plugins: Hydra finds classes that are defined in ``hydra_plugins`` only."""

from drgrade.sweeps.inline import InlineLauncher as _InlineLauncher
from drgrade.sweeps.launcher import LocalLauncher as _LocalLauncher
from drgrade.sweeps.search import SearchSweeper as _SearchSweeper
from drgrade.sweeps.sweeper import CellSweeper as _CellSweeper


class CellSweeper(_CellSweeper):
    """See :class:`drgrade.sweeps.sweeper.CellSweeper`."""


class SearchSweeper(_SearchSweeper):
    """See :class:`drgrade.sweeps.search.SearchSweeper`."""


class LocalLauncher(_LocalLauncher):
    """See :class:`drgrade.sweeps.launcher.LocalLauncher`."""


class InlineLauncher(_InlineLauncher):
    """See :class:`drgrade.sweeps.inline.InlineLauncher`."""
