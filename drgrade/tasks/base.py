"""What both tasks share: the optimiser and its schedule, compilation, memory format."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from drgrade.errors import ConfigError
from drgrade.metrics.distributed import EpochMean
from drgrade.models.encoder import Encoder
from drgrade.models.timm_backbone import convert_sync_batchnorm

OptimizerFactory = Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
"""Parameters, or groups of them -> optimiser."""

ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimiser, optimiser steps of the whole run) -> schedule that is stepped after each of them."""


SUBSETS = ("train", "val", "test")

SHARE = "share"
"""Key of a group of parameters: its learning rate as a share of the optimiser's."""


class Task(pl.LightningModule):
    """An encoder that is trained.

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
        """Keep the parts.

        Args:
            encoder: Images to features.
            optimizer: Makes the optimiser.
            schedule: Makes the learning-rate schedule.
            averaged: Names of the quantities whose mean over an epoch is logged.
            compile: Compile the encoder with ``torch.compile``.
            channels_last: Keep images and convolution weights with the channels last in memory.
            sync_batchnorm: Take batch statistics over all GPUs.
        """
        super().__init__()
        self.encoder = encoder
        self._optimizer, self._schedule = optimizer, schedule
        self._means = nn.ModuleDict(
            {f"{subset}/{name}": EpochMean() for subset in SUBSETS for name in averaged}
        )
        self._sync_batchnorm = sync_batchnorm
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.encoder.to(memory_format=torch.channels_last)
        if compile:
            # In place: torch.compile(encoder) would rename every tensor of the checkpoint.
            self.encoder.compile()
            self.encoder.feature_map = torch.compile(self.encoder.feature_map)  # type: ignore[method-assign]

    def configure_model(self) -> None:
        """Convert normalisations, once, where several GPUs share a batch."""
        # Of the strategy: the model itself is brought to its device only later.
        device = self.trainer.strategy.root_device
        if self._sync_batchnorm and self.trainer.world_size > 1 and device.type == "cuda":
            for name, part in list(self.named_children()):
                setattr(self, name, convert_sync_batchnorm(part))
            self._sync_batchnorm = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over all parameters that learn, its schedule stepped after every optimiser step."""
        try:
            optimizer = self._optimizer(self._learning())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.get(SHARE, 1.0)  # before the schedule, which scales what it finds
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(optimizer, steps), "interval": "step"},
        }

    def _learning(self) -> list[nn.Parameter] | list[dict[str, Any]]:
        """What the optimiser is made for: all parameters that learn, or groups of them."""
        return [each for each in self.parameters() if each.requires_grad]

    def _log_means(self, subset: str, values: Mapping[str, Tensor], weight: int) -> None:
        """Add a batch to the means of an epoch, which are exact however the set is divided.

        Lightning's own mean of a logged tensor is not: under gloo it cuts the mean number of images to a
        whole one.

        Args:
            subset: ``train``, ``val`` or ``test``.
            values: Means over the batch.
            weight: Images in it, or terms that the values are means of.
        """
        for name, value in values.items():
            mean = self._means[f"{subset}/{name}"]
            assert isinstance(mean, EpochMean)
            mean.update(value, weight)
            self.log(f"{self._named(subset)}/{name}", mean, on_step=False, on_epoch=True)

    def _named(self, subset: str) -> str:
        """What the metrics of a subset are logged under."""
        return subset

    def _images(self, batch: dict[str, Any]) -> Tensor:
        """Images of a batch, (B, 3, H, W), as the encoder takes them."""
        return self._memory(batch["image"])

    def _memory(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in type and memory format of the encoder."""
        images = images.to(self.dtype)  # double under 64-true
        return images.contiguous(memory_format=self._memory_format)
