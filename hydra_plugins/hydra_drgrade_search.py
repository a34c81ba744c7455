"""What Hydra finds of drgrade where the plugin for Optuna is installed."""

from importlib.util import find_spec

if find_spec("hydra_plugins.hydra_optuna_sweeper"):
    from drgrade.sweeps.search import SearchSweeper as _SearchSweeper

    class SearchSweeper(_SearchSweeper):
        """See :class:`drgrade.sweeps.search.SearchSweeper`."""
