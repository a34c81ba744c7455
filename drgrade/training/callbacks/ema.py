"""Moving average of the weights: validated, chosen, kept and tested instead of the weights themselves.

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
    """Follows the weights: after step t the average is decay * average + (1 - decay) * weights.

    It begins with the weights after the first step. Statistics of normalisations are averaged like weights,
    so that they are those of the averaged network; whole numbers (counts of batches) are copied.

    Lightning's callback, from which this one differs in four points. The average is made where the model is
    and of its precision, not before both are known. What does not move is averaged without rounding. It is
    let go when training ends: Lightning's would put the weights themselves back when a checkpoint is loaded
    to be tested. And a checkpoint without an average is refused when training goes on from it.

    In a checkpoint ``state_dict`` is the average, which is what any later evaluation loads; the weights
    themselves, with which training goes on, are ``current_model_state``.
    """

    def __init__(self, decay: float) -> None:
        """Remember the decay.

        Args:
            decay: Share of the average that a step leaves, in (0, 1); it spans about 1 / (1 - decay) steps.

        Raises:
            ConfigError: If the decay is out of range.
        """
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay < 1:
            raise ConfigError(
                f"protocol.ema_decay={decay} is not between 0 and 1; 0.999 spans about 1000 steps, null is "
                "no average"
            )
        super().__init__(multi_avg_fn=partial(follow, decay=decay))
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: the model has still to be brought to its device and precision."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the average, or take up that of the checkpoint from which training goes on.

        Raises:
            ConfigError: If the weights are too coarse to be averaged.
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
        """Separate average and weights again, to go on training; an evaluation takes the average alone.

        Raises:
            ConfigError: If the checkpoint has no average.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            raise ConfigError(
                "protocol.ema_decay: the checkpoint to go on from has no average of the weights; it was "
                "written without ema_decay"
            )
        average = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
        self._loaded = average | checkpoint["averaging_state"]
        pl_module.load_state_dict(checkpoint["current_model_state"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the model."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None


def follow(averages: list[Tensor], weights: list[Tensor], count: Tensor | int, *, decay: float) -> None:
    """Move averages towards weights, in place.

    Args:
        averages: Of one device and type.
        weights: Of the same shapes.
        count: How many steps are in the averages (they weigh by age, not by number).
        decay: Share of the averages that stays.
    """
    if averages[0].is_floating_point():
        # What is equal stays equal to the last bit, as it does not in decay * a + (1 - decay) * w.
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)
