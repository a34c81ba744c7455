"""What Hydra finds of drgrade for Ray: the launcher, or what says how to install it."""

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore

if find_spec("hydra_plugins.hydra_ray_launcher"):
    import hydra_plugins.hydra_ray_launcher._config  # noqa: F401 - stores its config

    from drgrade.sweeps.ray import RayLauncher as _Launcher

    # conf/hydra/launcher/ray.yaml stands in for the plugin's own config; Hydra warns of two of one name.
    ConfigStore.instance().repo["hydra"]["launcher"].pop("ray.yaml", None)
else:
    from drgrade.sweeps.missing import MissingLauncher as _Launcher


class RayLauncher(_Launcher):
    """See :class:`drgrade.sweeps.ray.RayLauncher`."""

    needs = "hydra-ray-launcher"
