"""Base class of the tasks: optimiser, schedules, compilation, memory format, exact epoch means."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from drgrade.errors import ConfigError
from drgrade.metrics.distributed import EpochMean
from drgrade.models.batch_norm import use_running_statistics_for_one
from drgrade.models.encoder import Encoder
from drgrade.models.timm_backbone import convert_sync_batchnorm

OptimizerFactory = Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
"""Parameters, or groups of them -> optimiser."""

ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimiser, optimiser steps of the whole run) -> schedule, stepped after each optimiser step."""

LR_FACTOR = "lr_factor"
"""Key of a parameter group: its learning rate as a fraction of the optimiser's."""


class Task(pl.LightningModule):
    """A LightningModule that trains an encoder.

    Attributes:
        encoder: Images to features.
    """

    def __init__(
        self,
        encoder: Encoder,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        averaged: Sequence[str],
        compile: bool = False,
        channels_last: bool = False,
        sync_batchnorm: bool = False,
    ) -> None:
        """Store the parts.

        Args:
            encoder: Images to features.
            optimizer: Creates the optimiser.
            schedule: Creates the learning-rate schedule.
            averaged: Names of the quantities whose mean over an epoch is logged.
            compile: Compile the encoder with ``torch.compile``.
            channels_last: Use the channels-last memory format for images and convolution weights.
            sync_batchnorm: Compute batch statistics over all GPUs.
        """
        super().__init__()
        self.encoder = encoder
        self._optimizer, self._schedule = optimizer, schedule
        self._means = nn.ModuleDict(
            {f"{subset}/{name}": EpochMean() for subset in ("train", "val", "test") for name in averaged}
        )
        self._sync_batchnorm = sync_batchnorm
        self._trains_one = False
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.encoder.to(memory_format=torch.channels_last)
        if compile:
            # In place: torch.compile(encoder) would rename every tensor of the checkpoint.
            self.encoder.compile()
            self.encoder.feature_map = torch.compile(self.encoder.feature_map)  # type: ignore[method-assign]

    def configure_model(self) -> None:
        """Convert batch normalisations, once, if several GPUs share a batch."""
        # The strategy's device: the model itself is moved to its device later.
        device = self.trainer.strategy.root_device
        if self._sync_batchnorm and self.trainer.world_size > 1 and device.type == "cuda":
            for name, part in list(self.named_children()):
                setattr(self, name, convert_sync_batchnorm(part))
            self._sync_batchnorm = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Prepare batch normalisations for batches of one photograph, at the first such batch."""
        if len(batch["index"]) == 1 and not self._trains_one:
            use_running_statistics_for_one(self)
            self._trains_one = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create one optimiser over all trainable parameters, with its schedule stepped at every step."""
        try:
            optimizer = self._optimizer(self.parameter_groups())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.get(LR_FACTOR, 1.0)  # before the schedule, which scales these rates
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(optimizer, steps), "interval": "step"},
        }

    def parameter_groups(self) -> list[nn.Parameter] | list[dict[str, Any]]:
        """Return the trainable parameters, or groups of them with an ``LR_FACTOR``."""
        return [each for each in self.parameters() if each.requires_grad]

    def metric_prefix(self, subset: str) -> str:
        """Return the prefix of the logged metrics of ``train``, ``val`` or ``test``."""
        return subset

    def log_means(self, subset: str, values: Mapping[str, Tensor], weight: int) -> None:
        """Add batch means to the epoch means, which are exact for every division into batches and processes.

        ``weight`` is the number of terms of the means, usually the images of the batch.
        """
        for name, value in values.items():
            mean = self._means[f"{subset}/{name}"]
            assert isinstance(mean, EpochMean)
            mean.update(value, weight)
            self.log(f"{self.metric_prefix(subset)}/{name}", mean, on_step=False, on_epoch=True)

    def to_encoder_format(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, H, W) to the dtype and the memory format of the encoder."""
        return images.to(self.dtype).contiguous(memory_format=self._memory_format)


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Create a constant schedule, as in the published protocol; ``steps`` is not used."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, floor: float = 0.01) -> LRScheduler:
    """Create a linear warm-up followed by cosine annealing (Loshchilov and Hutter, ICLR 2017, no restarts).

    Args:
        optimizer: The optimiser.
        steps: Optimiser steps of the run.
        warmup: Fraction of the steps for the warm-up, in [0, 1).
        floor: Final learning rate as a fraction of the highest.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
