"""Callbacks that report progress, measure cost, and seed each epoch so that resumed runs are reproducible."""

import logging
import resource
import sys
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar

log = logging.getLogger(__name__)


class SeedEachEpoch(Callback):
    """Seed torch at the start of each epoch, by seed, epoch and process.

    A run resumed from ``last.ckpt`` then draws the same random numbers (for dropout, for example) as one that
    was not interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed torch."""
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


class EpochLine(Callback):
    """Log one line per epoch, for log files and terminals that cannot redraw."""

    _SHOWN = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/feature_std", "val/qwk")

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the line."""
        metrics = trainer.callback_metrics  # reduces over processes, so every process has to read it
        if not trainer.is_global_zero:
            return
        figures = "  ".join(
            f"{name} {metrics[name]:.4f}" for name in self._shown(pl_module) if name in metrics
        )
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = time.monotonic() - self._started
        log.info("epoch %d%s  %s  (%.1f s)", trainer.current_epoch + 1, epochs, figures, seconds)

    def _shown(self, task: pl.LightningModule) -> list[str]:
        """List the metrics of the line; a pretext without accuracy shows its first score."""
        scores: tuple[str, ...] = getattr(getattr(task, "pretext", None), "scores", ())
        first = [] if "accuracy" in scores else [f"val/{name}" for name in scores[:1]]
        return [*self._SHOWN[:4], *first, *self._SHOWN[4:]]


def progress() -> Callback:
    """Make a progress bar if stdout is a terminal, else a callback that logs one line per epoch."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else EpochLine()


class Clock(Callback):
    """Measure what a run costs, over all its resumed parts.

    Attributes:
        seconds: Wall-clock time of training, validation included.
        images: Number of images in training steps, over all processes (a pretext counts photographs, not
            views).
        peak_memory: In bytes: memory reserved by torch on the first GPU, or resident memory of the process.
    """

    def __init__(self) -> None:
        self.seconds, self.images, self.peak_memory = 0.0, 0, 0
        self._last, self._ended = 0.0, False

    def cost(self) -> dict[str, float]:
        """Return seconds, images, images_per_second and peak_memory, for ``provenance.json``."""
        return {
            "seconds": self.seconds,
            "images": self.images,
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            "peak_memory": self.peak_memory,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        self._update()
        return {"seconds": self.seconds, "images": self.images, "peak_memory": self.peak_memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state to resume from; ignored for a checkpoint that is tested after training."""
        if self._ended:
            return
        self.seconds, self.images, self.peak_memory = (
            state_dict[name] for name in ("seconds", "images", "peak_memory")
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images."""
        self.images += len(batch["index"]) * trainer.world_size

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._update()
        self._last, self._ended = 0.0, True

    def _update(self) -> None:
        """Add the time since the last update, and read the peak memory."""
        if not self._last:
            return
        now = time.monotonic()
        self.seconds, self._last = self.seconds + now - self._last, now
        self.peak_memory = max(self.peak_memory, _peak_memory())


def _peak_memory() -> int:
    if torch.cuda.is_available() and (reserved := torch.cuda.max_memory_reserved()):  # 0 if nothing ran there
        return int(reserved)
    # In kibibytes on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
