"""A launcher whose package is not installed says which one it is."""

import subprocess
import sys

import pytest

WITHOUT = """
import importlib.util, runpy, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "{plugin}" else found(name, *more)
runpy.run_module("drgrade.cli.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("launcher", "plugin", "package"),
    [
        ("slurm", "hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher"),
        ("ray", "hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher"),
    ],
)
def test_a_launcher_whose_package_is_missing_says_what_to_install(
    command, tmp_path, launcher, plugin, package
):
    arguments = command("init=random", f"hydra/launcher={launcher}", "-m")[2:]
    program = [sys.executable, "-c", WITHOUT.format(plugin=plugin), *arguments]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert f"pip install {package}" in done.stderr
    assert "Traceback" not in done.stderr
