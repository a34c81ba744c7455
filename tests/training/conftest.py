"""A run small enough to be tested: 60 drawn photographs at 32 px, the smallest backbones, two epochs."""

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from drgrade.config import CONF

REPOSITORY = Path(__file__).parents[2]

TINY = (
    "data.count=60",
    "data.size=64",
    "data.image_size=32",
    "data.workers=1",
    "scale.batch_size=8",
    "scale.cnn.name=test_resnet",
    "scale.densenet.growth_rate=4",
    "scale.densenet.block_config=[1,1,1,1]",
    "scale.channels=8",
    "scale.refined_channels=8",
    "scale.head_width=16",
    "scale.pretext_head=[16]",
    "scale.pretext_epochs=1",
    "scale.published_epochs=2",
    "scale.matched_epochs=2",
    "scale.matched_steps_per_epoch=2",
    "protocol.val_fraction=0.15",
    "logger=none",
    "trainer=cpu",
)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> list[str]:
    """Overrides that let all runs of a session share the drawn photographs and their stores."""
    root = tmp_path_factory.mktemp("shared")
    return [f"data.root={root}/demo", f"paths.stores={root}/stores"]


@pytest.fixture
def overrides(shared, tmp_path) -> list[str]:
    """Overrides of a tiny run whose outputs go to a folder of its own."""
    return [*TINY, *shared, f"paths.outputs={tmp_path}"]


@pytest.fixture
def compose(overrides, tmp_path) -> Callable[..., DictConfig]:
    """``compose("a=b", run="name")``: the config of a tiny run that writes to ``tmp_path/name``."""

    def make(*more: str, run: str = "run") -> DictConfig:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", [*overrides, f"paths.run={tmp_path / run}", *more])

    return make


@pytest.fixture
def command(overrides) -> Callable[..., list[str]]:
    """``command("a=b")``: the command line of a tiny run."""

    def make(*more: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "train.py"), *overrides, *more]

    return make
