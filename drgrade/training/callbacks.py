"""Lightning callbacks: progress, cost, seeds, moving average of the weights, monitor of features."""

import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar, WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from drgrade.data.datamodules import PretextDataModule
from drgrade.errors import ConfigError, DivergenceError, check_range
from drgrade.metrics.distributed import gather_rows
from drgrade.metrics.functional import (
    confusion_matrix,
    effective_rank,
    feature_std,
    quadratic_weighted_kappa,
)
from drgrade.models.batch_norm import SecondStatistics
from drgrade.models.encoder import Encoder
from drgrade.models.probes import knn_shares
from drgrade.tasks import PretextTask

log = logging.getLogger(__name__)

_COLLAPSED = 0.01
"""Spread below which features count as collapsed; a random network's spread is larger."""


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


class DivergenceCheck(Callback):
    """Stop a training whose losses or weights are not finite, before they are validated or stored."""

    def __init__(self) -> None:
        self._losses: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss; it stays on its device, because reading it would wait for the step."""
        loss = outputs["loss"].detach()
        self._losses = loss if self._losses is None else self._losses + loss

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before a validation during training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before the checkpoint is written."""
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tensors = [*pl_module.parameters(), *getattr(pl_module, "encoder", pl_module).buffers()]
        losses = self._losses is None or bool(torch.isfinite(self._losses))
        finite = losses and all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        self._losses = None
        # One process alone must not stop: the others would wait for it.
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            what = "weights" if losses else "loss"
            group = "pretext." if isinstance(pl_module, PretextTask) else ""
            precision = ", or set trainer.precision=32-true" if "16" in str(trainer.precision) else ""
            raise DivergenceError(
                f"training has diverged in epoch {trainer.current_epoch + 1} ({what} not finite): lower "
                f"{group}optimizer.lr{precision}"
            )


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
    """Measure the cost of a run over all its resumed parts.

    Attributes:
        seconds: Wall-clock time of training, validation included.
        images: Number of images in training steps, over all processes (a pretext counts photographs, not
            views).
        peak_memory: In bytes: memory reserved by torch on the first GPU, or resident memory of the process.
    """

    def __init__(self) -> None:
        self.seconds, self.images, self.peak_memory = 0.0, 0, 0
        self._last, self._ended = 0.0, False
        self._metrics: dict[str, float] = {}

    def last_metrics(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the metrics of the last epoch; after a resumption without steps those in the checkpoint."""
        return self._metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics for the checkpoint."""
        self._metrics = self.last_metrics(trainer)

    def cost(self) -> dict[str, float]:
        """Return :func:`cost_entries` of the training so far."""
        self._update()
        return cost_entries(self.seconds, self.images, self.peak_memory)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        self._update()
        return {
            "seconds": self.seconds,
            "images": self.images,
            "peak_memory": self.peak_memory,
            "metrics": self._metrics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state to resume from; ignored for a checkpoint that is tested after training."""
        if not self._ended:
            self.seconds, self.images = state_dict["seconds"], state_dict["images"]
            self.peak_memory = state_dict["peak_memory"]
            self._metrics = state_dict.get("metrics", {})  # earlier checkpoints have none

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


def cost_entries(seconds: float, images: float, peak_memory: float) -> dict[str, float]:
    """Return seconds, images, images_per_second and peak_memory, for ``provenance.json``."""
    return {
        "seconds": seconds,
        "images": images,
        "images_per_second": images / seconds if seconds else 0.0,
        "peak_memory": peak_memory,
    }


def _peak_memory() -> int:
    if torch.cuda.is_available() and (reserved := torch.cuda.max_memory_reserved()):  # 0 if nothing ran there
        return int(reserved)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    # In kibibytes on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which replaces them in validation and testing.

    After each step, average = decay * average + (1 - decay) * weights (Polyak and Juditsky, SIAM Journal on
    Control and Optimization 30(4), 1992; exponential as in Tarvainen and Valpola, NeurIPS 2017). The average
    starts as the weights after the first step. Statistics of normalisation layers are averaged like weights;
    integers (counts of batches) are copied.

    Differences to Lightning's callback: the average is created after the model has been moved to its device
    and precision; values that do not change are averaged without rounding; the average is released when
    training ends, because Lightning's callback would otherwise restore the weights when a checkpoint is
    loaded for testing; and a checkpoint without an average cannot be resumed.

    In a checkpoint, ``state_dict`` is the average, which a later evaluation loads, and
    ``current_model_state`` are the weights, from which training resumes.
    """

    def __init__(self, decay: float) -> None:
        """Check the decay, in (0, 1); the average spans about 1 / (1 - decay) steps."""
        check_range("(0, 1)", "protocol.", ema_decay=decay)
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
                f"protocol.ema_decay with trainer.precision={trainer.precision}: 16-bit weights are not "
                "precise enough for an average; use 32-true or a mixed precision"
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
    """Move averages towards weights of the same shapes, in place; ``count`` is not used."""
    if averages[0].is_floating_point():
        # Unlike decay * a + (1 - decay) * w, lerp leaves equal values exactly equal.
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)


class BatchNormMomentum(Callback):
    """Keep the batch statistics that other momenta would have given, so that one training serves several.

    After a run's test, :func:`drgrade.training.run.fine_tune` tests the same weights with each of them and
    reports ``momentum_M/test/...``.

    Args:
        momenta: Further momenta in PyTorch's sense; 0.01 is 0.99 in Keras and TensorFlow. The run's own is
            that of the model's layers, usually 0.1.

    Attributes:
        statistics: Statistics of each momentum, once the training has begun.
    """

    def __init__(self, momenta: Sequence[float]) -> None:
        for momentum in momenta:
            check_range("(0, 1]", "callbacks.batchnorm_momentum.", momenta=momentum)
        self._momenta = tuple(momenta)
        self.statistics: dict[float, SecondStatistics] = {}
        self._loaded: dict[str, dict[str, Tensor]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the model's own statistics, or those of the checkpoint to resume from.

        Raises:
            ConfigError: If the weights that are tested would not be those of the last step.
        """
        selects = any(getattr(each, "monitor", None) for each in trainer.checkpoint_callbacks)
        averages = any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if selects or averages or trainer.world_size > 1:
            raise ConfigError(
                "callbacks.batchnorm_momentum needs protocol.checkpoint=last, protocol.ema_decay=null and "
                "one process: the statistics are those after the last step"
            )
        self.statistics = {momentum: SecondStatistics(pl_module, momentum) for momentum in self._momenta}
        for momentum, statistics in self._loaded.items():
            self.statistics[float(momentum)].statistics = {
                name: tensor.to(pl_module.device) for name, tensor in statistics.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics for a checkpoint."""
        return {str(momentum): each.statistics for momentum, each in self.statistics.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the statistics to resume from."""
        self._loaded = state_dict


class FeatureMonitor(Callback):
    """Log properties of the features of whole held-out photographs after each validation of a pretext.

    Logged are ``val/feature_std`` and ``val/effective_rank`` (:mod:`drgrade.metrics.functional`), and with
    ``knn`` the agreement of grades of held-out photographs with those of their nearest neighbours in the
    training subset: ``val/knn_qwk`` and ``val/knn_accuracy``. No weight, checkpoint or length of training
    depends on these grades, and grades of test photographs are not read.
    """

    def __init__(self, every: int = 1, knn: int | None = None) -> None:
        """Store the settings.

        Args:
            every: Epochs between two evaluations; the last validation is always included.
            knn: Number of neighbours that vote on a grade; None to leave this out.
        """
        self.every, self.knn = every, knn
        self._warned = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log; every process takes part."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, PretextTask) or not isinstance(data, PretextDataModule):
            return
        if trainer.sanity_checking or not self._due(trainer):
            return
        loader = data.whole_photographs("val")
        if loader is None:
            return
        encoder = pl_module.pretext.final_encoder(pl_module.encoder)
        features, _ = encode_photographs(encoder, loader, data, pl_module)
        metrics = self._neighbour_metrics(encoder, data, pl_module)
        if len(features) > 1:  # the spread of one photograph is not defined
            metrics |= {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
            self.warn_if_collapsed(metrics["feature_std"], len(features))
        # All processes have computed the same values from the gathered features.
        pl_module.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=False)

    def _due(self, trainer: pl.Trainer) -> bool:
        # The last validation also counts if max_steps ends the run: the partial epoch after it has none.
        epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        last = trainer.global_step + epoch > trainer.estimated_stepping_batches
        return last or trainer.current_epoch % self.every == 0

    def warn_if_collapsed(self, spread: float, count: int) -> None:
        """Log a warning, once, if the spread of the features of ``count`` photographs is nearly 0."""
        if spread < _COLLAPSED and not self._warned:
            self._warned = True
            log.warning(
                "the features of all %d held-out photographs are nearly the same (val/feature_std %.4f): the "
                "encoder has collapsed; lower pretext.optimizer.lr, or see docs/pretexts/README.md",
                count,
                spread,
            )

    def _neighbour_metrics(
        self, encoder: Encoder, data: PretextDataModule, task: PretextTask
    ) -> dict[str, float]:
        train, val = (data.whole_photographs(subset, graded=True) for subset in ("train", "val"))
        if self.knn is None or train is None or val is None:
            return {}
        bank, known = encode_photographs(encoder, train, data, task)
        features, grades = encode_photographs(encoder, val, data, task)
        predicted = knn_shares(features, bank, known, min(self.knn, len(bank))).argmax(dim=1)
        return {
            "knn_qwk": float(quadratic_weighted_kappa(confusion_matrix(predicted, grades))),
            "knn_accuracy": float((predicted == grades).double().mean()),
        }


def encode_photographs(
    encoder: Encoder, loader: DataLoader[Any], data: PretextDataModule, task: PretextTask
) -> tuple[Tensor, Tensor]:
    """Encode photographs in evaluation mode and gather the features; every process must call.

    Returns:
        (N, D) float32 features and (N,) grades, -1 for none; on the CPU.
    """
    training = encoder.training
    encoder.eval()
    index, rows = [], []
    with torch.no_grad():
        for batch in loader:
            moved = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, task.device, 0), 0)
            features = encoder(moved["image"].to(task.dtype)).float()
            index.append(moved["index"])
            rows.append(torch.cat((features, moved["grade"][:, None].float()), dim=1))
    encoder.train(training)
    _, gathered = gather_rows(torch.cat(index), torch.cat(rows))
    return gathered[:, :-1], gathered[:, -1].long()
