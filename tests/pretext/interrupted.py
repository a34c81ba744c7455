"""Tiny pre-training that is interrupted after its first epoch and resumed, and one without interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback
from safetensors.torch import load_file

from drgrade.training import pretraining
from drgrade.training.run import train


class PowerCut(Callback):
    """Callback that fails at the start of the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")


def interrupted_and_straight(
    compose: Callable[..., DictConfig], folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a pre-training without and with an interruption.

    Returns:
        For the uninterrupted and the resumed run: ``metrics``, ``state`` of the last checkpoint, and the
        saved ``encoder``.
    """
    straight = train(compose(*settings, f"paths.encoders={folder / 'first'}", run="straight"))
    original = pretraining.make_trainer
    with monkeypatch.context() as patch:
        patch.setattr(
            pretraining,
            "make_trainer",
            lambda cfg, path, kept, *rest: original(cfg, path, [*kept, PowerCut()], *rest),
        )
        with pytest.raises(RuntimeError, match="power cut"):
            train(compose(*settings, run="resumed"))
    resumed = train(compose(*settings, f"resume={folder / 'resumed'}", run="elsewhere"))
    return _left(folder / "straight", straight), _left(folder / "resumed", resumed)


def _left(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {
        "metrics": metrics,
        "state": checkpoint["state_dict"],
        "encoder": load_file(folder / "encoder.safetensors"),
    }
