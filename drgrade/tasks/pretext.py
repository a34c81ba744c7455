"""Self-supervised pre-training on ungraded photographs."""

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
    """Trains an encoder with a pretext.

    Attributes:
        pretext: Inputs and targets, head and loss.
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
        """Create the pretext for the encoder; the other arguments are those of :class:`Task`."""
        task = pretext(encoder)
        super().__init__(
            encoder, optimizer, schedule, ("loss", *task.scores), compile, channels_last, sync_batchnorm
        )
        self.pretext = task

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        self.pretext.before_step(self.encoder, min(1.0, self.global_step / steps))
        return self._step(batch, "train")

    def on_train_start(self) -> None:
        """Check the validation batches before the first epoch, not after it."""
        self.on_validation_start()

    def on_validation_start(self) -> None:
        """Check that a validation batch is large enough.

        Raises:
            ConfigError: If no batch of any process would be.
        """
        loader = self.trainer.val_dataloaders
        if not isinstance(loader, DataLoader):
            return
        photographs = len(loader.dataset)  # type: ignore[arg-type]
        largest = min(loader.batch_size or 1, -(-photographs // self.trainer.world_size))
        if largest < self.pretext.min_photographs:
            raise ConfigError(
                f"{type(self.pretext).__name__} needs batches of at least {self.pretext.min_photographs} "
                f"photographs, and the largest batch of the {photographs} held-out photographs has "
                f"{largest}: raise pretext.val_fraction or pretext.batch_size, or set pretext.val_fraction=0"
            )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log loss and scores of a batch; a batch that is too small has weight 0."""
        if len(batch["index"]) < self.pretext.min_photographs:
            zero = torch.zeros((), device=self.device)
            self.log_means("val", dict.fromkeys(("loss", *self.pretext.scores), zero), 0)
            return
        self._step(batch, "val")

    def _step(self, batch: dict[str, Any], subset: str) -> Tensor:
        views = [self.to_encoder_format(view) for view in batch["views"]]
        if len(views) != self.pretext.num_views:
            raise ConfigError(
                f"pretext.views gives {len(views)} views of a photograph, and {type(self.pretext).__name__} "
                f"takes {self.pretext.num_views}: set pretext.views and pretext.head to the same number"
            )
        loss, scores = self.pretext(self.encoder, views)
        self.log_means(subset, {"loss": loss, **scores}, len(batch["index"]))
        total: Tensor = loss
        return total
