"""A launcher whose package is not installed names the package."""

import importlib.util
import runpy

import pytest
from tiny_run import REPOSITORY

from drgrade.errors import ConfigError


@pytest.mark.parametrize(
    ("launcher", "plugin", "package"),
    [
        ("slurm", "hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher"),
        ("ray", "hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher"),
    ],
)
def test_missing_launcher_names_its_package(launcher, plugin, package, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == plugin else found(name, *more)
    )
    module = runpy.run_path(str(REPOSITORY / "hydra_plugins" / f"hydra_drgrade_{launcher}.py"))
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        module[f"{launcher.title()}Launcher"](timeout_min=3)
