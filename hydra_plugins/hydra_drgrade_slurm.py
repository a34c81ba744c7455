"""Hydra plugin for SLURM, or a launcher that names the package to install."""

from importlib.util import find_spec

if find_spec("hydra_plugins.hydra_submitit_launcher"):
    from drgrade.sweeps.slurm import SlurmLauncher as _Launcher
else:
    from drgrade.sweeps.launcher import MissingLauncher as _Launcher


class SlurmLauncher(_Launcher):
    """See :class:`drgrade.sweeps.slurm.SlurmLauncher`."""

    needs = "hydra-submitit-launcher"
