"""A callback that measures a short run, and ends it when it has seen enough."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from drgrade.files import write_text

_LEAST = 4
"""Steps with everything trained: the first is left out, and one or two alone say little on a busy machine."""


@dataclass
class Measured:
    """What a short run took.

    Attributes:
        steps: Of each training step: its epoch, images over all processes, seconds since the step before or
            the beginning of its epoch.
        evaluations: Of each validation: images over all processes, seconds.
        epochs: That were begun.
        training: Seconds of training, validation in between included.
        validation: Seconds of that validation.
    """

    steps: list[tuple[int, int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    epochs: int = 0
    training: float = 0.0
    validation: float = 0.0


class Stopwatch(Callback):
    """Measures steps, validation and what is between them."""

    def __init__(self, path: str, seconds: float, frozen_epochs: int) -> None:
        """Say when it is enough.

        Args:
            path: Receives what was measured, as JSON.
            seconds: Of training after which the run ends, if it has had some steps with everything trained.
            frozen_epochs: Epochs in which not everything is trained.
        """
        self._path, self._seconds, self._frozen = Path(path), seconds, frozen_epochs
        self._measured = Measured()
        self._began = self._last = self._validating = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._began = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start an epoch."""
        self._measured.epochs += 1
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure a step, and end the run if that was enough."""
        now = time.monotonic()
        images = len(batch["index"]) * trainer.world_size
        self._measured.steps.append((trainer.current_epoch, images, now - self._last))
        self._last = now
        whole = sum(epoch >= self._frozen for epoch, _, _ in self._measured.steps)
        enough = whole >= _LEAST and now - self._began >= self._seconds
        # All processes have to stop together.
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(enough, all=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a validation."""
        self._validating, self._images = time.monotonic(), 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count."""
        self._images += len(batch["index"]) * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure a validation."""
        took = time.monotonic() - self._validating
        self._measured.evaluations.append((self._images, took))
        if trainer.state.fn == "fit":
            self._measured.validation += took

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self._measured.training = time.monotonic() - self._began

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write; again after a validation at the end."""
        if trainer.is_global_zero:
            write_text(self._path, json.dumps(asdict(self._measured)) + "\n")


def read_measured(path: Path) -> Measured:
    """Read what a :class:`Stopwatch` wrote.

    Args:
        path: Where.

    Returns:
        What was measured.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in ("steps", "evaluations"):
        record[name] = [tuple(each) for each in record[name]]
    return Measured(**record)
