"""Pre-training on unlabelled photographs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.tasks.base import OptimizerFactory, ScheduleFactory, Task


class PretextTask(Task):
    """An encoder and a pretext that trains it.

    Attributes:
        pretext: Makes inputs and targets, and has the head and the loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        pretext: Callable[[Encoder], Pretext],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        compile: bool = False,
        channels_last: bool = False,
        sync_batchnorm: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Images to features.
            pretext: Makes the pretext for an encoder.
            optimizer: Makes the optimiser.
            schedule: Makes the learning-rate schedule.
            compile: Compile the encoder.
            channels_last: Channels last in memory.
            sync_batchnorm: Batch statistics over all GPUs.
        """
        task = pretext(encoder)
        super().__init__(
            encoder, optimizer, schedule, ("loss", *task.scores), compile, channels_last, sync_batchnorm
        )
        self.pretext = task

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch of views."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        self.pretext.before_step(self.encoder, min(1.0, self.global_step / steps))
        return self._step(batch, "train")

    def on_train_start(self) -> None:
        """Refuse a validation of too small batches before an epoch is trained, not after."""
        self.on_validation_start()

    def on_validation_start(self) -> None:
        """Refuse a validation in which no batch of any process would be large enough.

        Raises:
            ConfigError: If so.
        """
        loader = self.trainer.val_dataloaders
        if not isinstance(loader, DataLoader):
            return
        photographs = len(loader.dataset)  # type: ignore[arg-type]
        largest = min(loader.batch_size or 1, -(-photographs // self.trainer.world_size))
        if largest < self.pretext.min_photographs:
            raise ConfigError(
                f"{type(self.pretext).__name__} needs {self.pretext.min_photographs} photographs in a batch, "
                f"and of the {photographs} held out no process has more than {largest} in one: raise "
                "pretext.val_fraction or pretext.batch_size, or hold out none with pretext.val_fraction=0"
            )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the same quantities on held-out photographs; a batch that is too small weighs nothing."""
        if len(batch["index"]) < self.pretext.min_photographs:
            nothing = torch.zeros((), device=self.device)
            self._log_means("val", dict.fromkeys(("loss", *self.pretext.scores), nothing), 0)
            return
        self._step(batch, "val")

    def _step(self, batch: dict[str, Any], subset: str) -> Tensor:
        views = [self._memory(view) for view in batch["views"]]
        if len(views) != self.pretext.num_views:  # a combination would give a part the views of another
            raise ConfigError(
                f"pretext.views gives {len(views)} views of a photograph, and {type(self.pretext).__name__} "
                f"takes {self.pretext.num_views}: set pretext.views and pretext.head to the same number"
            )
        loss, scores = self.pretext(self.encoder, views)
        self._log_means(subset, {"loss": loss, **scores}, len(batch["index"]))
        total: Tensor = loss
        return total
