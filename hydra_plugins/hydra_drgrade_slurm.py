"""What Hydra finds of drgrade for SLURM: the launcher, or what says how to install it."""

from importlib.util import find_spec

if find_spec("hydra_plugins.hydra_submitit_launcher"):
    from drgrade.sweeps.slurm import SlurmLauncher as _Launcher
else:
    from drgrade.sweeps.missing import MissingLauncher as _Launcher


class SlurmLauncher(_Launcher):
    """See :class:`drgrade.sweeps.slurm.SlurmLauncher`."""

    needs = "hydra-submitit-launcher"
