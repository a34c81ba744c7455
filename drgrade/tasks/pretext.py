"""Pre-training on unlabelled photographs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

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
        pretext: Callable[[int], Pretext],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        compile: bool = False,
        channels_last: bool = False,
        sync_batchnorm: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Images to features.
            pretext: Makes the pretext for a number of features.
            optimizer: Makes the optimiser.
            schedule: Makes the learning-rate schedule.
            compile: Compile the encoder.
            channels_last: Channels last in memory.
            sync_batchnorm: Batch statistics over all GPUs.
        """
        task = pretext(encoder.num_features)
        super().__init__(
            encoder, optimizer, schedule, ("loss", *task.scores), compile, channels_last, sync_batchnorm
        )
        self.pretext = task

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch of views."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the same quantities on held-out photographs."""
        self._step(batch, "val")

    def _step(self, batch: dict[str, Any], subset: str) -> Tensor:
        images = self._images(batch)
        loss, scores = self.pretext(self.encoder, images)
        self._log_means(subset, {"loss": loss, **scores}, len(images))
        total: Tensor = loss
        return total
