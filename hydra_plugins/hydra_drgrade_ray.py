"""Hydra plugin for Ray, or a launcher that names the package to install."""

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore

if find_spec("hydra_plugins.hydra_ray_launcher"):
    import hydra_plugins.hydra_ray_launcher._config  # noqa: F401 - stores the config removed below

    from drgrade.sweeps.ray import RayLauncher as _Launcher

    # Hydra warns of two configs of one name, and conf/hydra/launcher/ray.yaml replaces that of the package.
    ConfigStore.instance().repo["hydra"]["launcher"].pop("ray.yaml", None)
else:
    from drgrade.sweeps.launcher import MissingLauncher as _Launcher


class RayLauncher(_Launcher):
    """See :class:`drgrade.sweeps.ray.RayLauncher`."""

    needs = "hydra-ray-launcher"
