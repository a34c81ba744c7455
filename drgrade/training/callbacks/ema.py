"""Exponential moving average of the weights, which is validated, chosen and tested instead of the weights.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on Control and
Optimization 30(4), 1992; with exponential weights as in Tarvainen and Valpola, NeurIPS 2017.
"""

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from drgrade.errors import ConfigError


class MovingAverage(WeightAveraging):
    """Average the weights: after each step, average = decay * average + (1 - decay) * weights.

    The average starts as the weights after the first step. Statistics of normalisation layers are averaged
    like weights; integers (counts of batches) are copied.

    Differences to Lightning's callback: the average is created after the model has been moved to its device
    and precision; values that do not change are averaged without rounding; the average is released when
    training ends, because Lightning's callback would otherwise restore the weights when a checkpoint is
    loaded for testing; and a checkpoint without an average cannot be resumed.

    In a checkpoint, ``state_dict`` is the average, which a later evaluation loads, and
    ``current_model_state`` are the weights, from which training resumes.
    """

    def __init__(self, decay: float) -> None:
        """Check the decay.

        Args:
            decay: Share of the average kept by a step, in (0, 1); the average spans about 1 / (1 - decay)
                steps.

        Raises:
            ConfigError: If the decay is out of range.
        """
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay < 1:
            raise ConfigError(
                f"protocol.ema_decay={decay} is not between 0 and 1; 0.999 spans about 1000 steps, null is "
                "no average"
            )
        super().__init__(multi_avg_fn=partial(update_average, decay=decay))
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do nothing: the model is not yet on its device."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the average, or restore that of the checkpoint to resume from.

        Raises:
            ConfigError: If the weights have 16 bits.
        """
        if any(each.dtype in (torch.float16, torch.bfloat16) for each in pl_module.parameters()):
            raise ConfigError(
                f"protocol.ema_decay with trainer.precision={trainer.precision}: weights of 16 bits are too "
                "coarse to be averaged; use 32-true or a mixed precision"
            )
        self._average_model = AveragedModel(pl_module, use_buffers=True, **self._kwargs)
        if self._loaded is not None:
            self._average_model.load_state_dict(self._loaded)
            self._loaded = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Separate average and weights to resume training; an evaluation uses the average.

        Raises:
            ConfigError: If the checkpoint has no average.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            raise ConfigError(
                "protocol.ema_decay: the checkpoint to resume from has no average of the weights; it was "
                "written without ema_decay"
            )
        average = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
        self._loaded = average | checkpoint["averaging_state"]
        pl_module.load_state_dict(checkpoint["current_model_state"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the average into the model, and release it."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None


def update_average(
    averages: list[Tensor], weights: list[Tensor], count: Tensor | int, *, decay: float
) -> None:
    """Move averages towards weights, in place.

    Args:
        averages: Tensors of one device and type.
        weights: Tensors of the same shapes.
        count: Number of steps averaged so far; unused.
        decay: Share of the averages that is kept.
    """
    if averages[0].is_floating_point():
        # Unlike decay * a + (1 - decay) * w, lerp leaves equal values exactly equal.
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)
