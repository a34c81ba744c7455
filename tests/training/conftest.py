"""Fixtures of the tests of training."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from drgrade.training import run as run_module
from drgrade.training.run import train


@pytest.fixture
def train_with(monkeypatch) -> Callable[..., dict[str, Any]]:
    """``train_with(callback, cfg)``: train with a further callback; ``module`` makes the trainer."""

    def run(callback: Callback, cfg: DictConfig, module: Any = run_module) -> dict[str, Any]:
        original = module.make_trainer
        with monkeypatch.context() as patch:
            patch.setattr(
                module,
                "make_trainer",
                lambda cfg, folder, kept, *rest: original(cfg, folder, [*kept, callback], *rest),
            )
            return train(cfg)

    return run
