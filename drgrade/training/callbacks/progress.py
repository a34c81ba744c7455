"""Callbacks: progress for people, and seeds that make a resumed run equal to one that was never stopped."""

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
    """Make each epoch's random numbers (dropout, for one) a function of seed, epoch and process.

    Whatever was drawn before, in epochs, validation or loading, no longer matters: a run resumed from
    ``last.ckpt`` draws what the
    uninterrupted one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        """Remember the run's seed."""
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed torch."""
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


class EpochLine(Callback):
    """One plain line per epoch, for log files and terminals that cannot redraw."""

    _SHOWN = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/feature_std", "val/qwk")

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        metrics = trainer.callback_metrics  # every process asks: what is not reduced yet is reduced here
        if not trainer.is_global_zero:
            return
        figures = "  ".join(
            f"{name} {metrics[name]:.4f}" for name in self._shown(pl_module) if name in metrics
        )
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        log.info(
            "epoch %d%s  %s  (%.1f s)",
            trainer.current_epoch + 1,
            epochs,
            figures,
            time.monotonic() - self._started,
        )

    def _shown(self, task: pl.LightningModule) -> list[str]:
        """Metrics of the line; of a pretext without accuracy its first score, whatever it is."""
        scores: tuple[str, ...] = getattr(getattr(task, "pretext", None), "scores", ())
        first = [] if "accuracy" in scores else [f"val/{name}" for name in scores[:1]]
        return [*self._SHOWN[:4], *first, *self._SHOWN[4:]]


def progress() -> Callback:
    """A progress bar where somebody watches, a line per epoch where nobody does.

    Returns:
        The callback; a plain line if stdout is no terminal.
    """
    return RichProgressBar(leave=True) if sys.stdout.isatty() else EpochLine()


class Clock(Callback):
    """Measures what a run costs; a run that goes on goes on counting.

    Attributes:
        seconds: Wall-clock time of training, validation included.
        images: Images that went through training steps, over all processes (a pretext counts its photographs,
            not their views).
        peak_memory: Bytes; on a GPU the most that torch had reserved on the first one, else the most that the
            process had resident.
    """

    def __init__(self) -> None:
        self.seconds, self.images, self.peak_memory = 0.0, 0, 0
        self._last, self._ended = 0.0, False

    def cost(self) -> dict[str, float]:
        """What goes into ``provenance.json``.

        Returns:
            seconds, images, images_per_second, peak_memory.
        """
        rate = self.images / self.seconds if self.seconds else 0.0
        return {
            "seconds": self.seconds,
            "images": self.images,
            "images_per_second": rate,
            "peak_memory": self.peak_memory,
        }

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        self._read()
        return {"seconds": self.seconds, "images": self.images, "peak_memory": self.peak_memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint that training goes on from; not from the one that is tested afterwards."""
        if self._ended:
            return
        self.seconds, self.images, self.peak_memory = (
            state_dict[name] for name in ("seconds", "images", "peak_memory")
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self.images += len(batch["index"]) * trainer.world_size

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self._read()
        self._last, self._ended = 0.0, True

    def _read(self) -> None:
        """Add the time since the last reading, and look at memory."""
        if not self._last:
            return
        now = time.monotonic()
        self.seconds, self._last = self.seconds + now - self._last, now
        self.peak_memory = max(self.peak_memory, _peak_memory())


def _peak_memory() -> int:
    if torch.cuda.is_available() and (reserved := torch.cuda.max_memory_reserved()):  # 0 if nothing ran there
        return int(reserved)
    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
