"""Trained runs that the tests of this folder share: tiny ones, made once for each worker."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig
from tiny_run import TINY

from drgrade.config import CONF
from drgrade.training.run import train


@pytest.fixture(scope="session")
def finished_run(shared, tmp_path_factory) -> Callable[..., Path]:
    """``finished_run("encoder=msssl")``: folder of a finished run with these overrides; the same ones once.

    Without overrides it is a DenseNet with the cumulative head. 14 photographs are validated on, so that a
    calibration is fitted.
    """
    made: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in made:
            folder = tmp_path_factory.mktemp("run")
            train(_config(folder, [*TINY, *shared, "protocol.val_fraction=0.3", *more]))
            made[more] = folder
        return made[more]

    return run


def _config(folder: Path, overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [f"paths.outputs={folder}", f"paths.run={folder}", *overrides])
