"""What Hydra finds of drgrade for sweeps of probes."""

from drgrade.sweeps.inline import InlineLauncher as _InlineLauncher


class InlineLauncher(_InlineLauncher):
    """See :class:`drgrade.sweeps.inline.InlineLauncher`."""
