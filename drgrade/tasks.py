"""LightningModules: pre-training with a pretext, and grading; learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from drgrade.errors import ConfigError
from drgrade.metrics.distributed import EpochMean, GradingMetrics, Predictions, gather_rows
from drgrade.models.batch_norm import use_running_statistics_for_one
from drgrade.models.encoder import Encoder, learning_rate_factors
from drgrade.models.heads import Head
from drgrade.models.timm_backbone import convert_sync_batchnorm
from drgrade.pretext.base import Pretext

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


class GradingTask(Task):
    """Trains and evaluates an encoder with a grading head.

    Attributes:
        head: Features to grades.
        frozen_epochs: Initial epochs in which only the head learns.
        results: Metrics of the last pass over ``val`` and ``test``, in double precision (Lightning logs
            single).
        test_name: Prefix of the metrics of a test: ``test`` or ``external/NAME``.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Callable[[int], Head],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        frozen_epochs: int = 0,
        layer_decay: float | None = None,
        decay_norms: bool = True,
        gradient_clip: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        sync_batchnorm: bool = False,
    ) -> None:
        """Create the head; the arguments not listed are those of :class:`Task`.

        Args:
            encoder: Images to features.
            head: Creates the head for a number of features.
            optimizer: Creates the optimiser.
            schedule: Creates the learning-rate schedule.
            frozen_epochs: Initial epochs in which the encoder is frozen, including its batch statistics.
            layer_decay: Learning rate of each layer of the encoder as a fraction of that of the layer above
                it; None for a single learning rate.
            decay_norms: Apply weight decay to biases and the weights of normalisations too.
            gradient_clip: Largest norm of the gradient; None for no limit. ``gradient_clip_val`` of the
                trainer replaces it.
            compile: Compile the encoder.
            channels_last: Use the channels-last memory format.
            sync_batchnorm: Compute batch statistics over all GPUs.

        Raises:
            ConfigError: If ``layer_decay`` is out of range.
            EncoderError: If ``layer_decay`` is set and the encoder does not define its layers.
        """
        super().__init__(encoder, optimizer, schedule, ("loss",), compile, channels_last, sync_batchnorm)
        self.head = head(encoder.num_features)
        self.frozen_epochs = frozen_epochs
        self._decay_norms, self._gradient_clip = decay_norms, gradient_clip
        self._lr_factors = {} if layer_decay is None else learning_rate_factors(encoder, layer_decay)
        self._stored_logits: list[tuple[Tensor, Tensor]] | None = None
        self.results: dict[str, dict[str, float]] = {}
        self.test_name = "test"
        self._metrics = torch.nn.ModuleDict(
            {f"{subset}_metrics": GradingMetrics() for subset in ("val", "test")}
        )

    def setup(self, stage: str) -> None:
        """Compute class weights, and check that thresholds can be fitted.

        Raises:
            ConfigError: If the photographs do not permit the settings of the head.
        """
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if self.head.weighting != "none":
            if data is None or data.balanced:
                raise ConfigError(
                    f"head.weighting={self.head.weighting} with data.balanced=true would compensate for rare "
                    "grades twice; choose one of them"
                    if data is not None
                    else "the class weights are computed from the training photographs of a DataModule"
                )
            self.head.set_counts(data.grade_counts("train"))
        if self.head.fits_thresholds and (data is None or not int(data.grade_counts("val").sum())):
            raise ConfigError(
                "head.thresholds=fitted needs validation photographs and there are none: set "
                "protocol.val_fraction above 0, or head.thresholds=half"
            )

    @property
    def encoder_is_frozen(self) -> bool:
        """True in the initial epochs in which only the head learns."""
        return self._trainer is not None and self.current_epoch < self.frozen_epochs

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if mode and self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the encoder, also after a resume."""
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) float32 of normalised images (B, 3, H, W)."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not (self.training and self.encoder_is_frozen)
        ):
            features = self.encoder(images)
        logits: Tensor = self.head(features)
        return logits.float()  # losses and probabilities in single precision under autocast too

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        images, grades = self.to_encoder_format(batch["image"]), batch["grade"]
        loss = self.head.training_loss(self(images), grades)
        self.log_means("train", {"loss": loss}, len(grades))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the validation metrics."""
        self._collector("val").reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the whole validation set."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Reset the test metrics."""
        self._collector("test").reset()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Compute the metrics over the whole test set."""
        self._log_metrics("test")

    def predictions(self, subset: str) -> Predictions:
        """Return the predictions of the last pass over ``val`` or ``test``; all processes must call.

        The index of a prediction is the row of the photograph in the store.
        """
        return self._collector(subset).predictions()

    @contextmanager
    def store_logits(self) -> Iterator[None]:
        """Store the logits of validation passes, for :meth:`logits`."""
        self._stored_logits = []
        try:
            yield
        finally:
            self._stored_logits = None

    def logits(self) -> tuple[Tensor, Tensor]:
        """Return the stored logits (N, K) and grades (N,) int64 of all processes; all must call.

        Each photograph occurs once; the tensors are on the CPU.
        """
        assert self._stored_logits, "no validation pass while logits were stored"
        index, rows = (torch.cat(parts) for parts in zip(*self._stored_logits, strict=True))
        gathered = gather_rows(index, rows)[1]
        return gathered[:, :-1], gathered[:, -1].long()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient."""
        limit = self._gradient_clip if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, limit, gradient_clip_algorithm)

    def parameter_groups(self) -> list[dict[str, Any]] | list[torch.nn.Parameter]:
        """Return groups by learning rate, the highest first, and by weight decay; see :class:`Task`."""
        if not self._lr_factors and self._decay_norms:
            return super().parameter_groups()
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                scaled = bool(self._lr_factors) and name.startswith("encoder.")
                factor = self._lr_factors[name.removeprefix("encoder.")] if scaled else 1.0
                # Biases and the weights of normalisations are vectors.
                groups.setdefault((factor, self._decay_norms or parameter.ndim > 1), []).append(parameter)
        return [
            {"params": groups[factor, decays], LR_FACTOR: factor, **({} if decays else {"weight_decay": 0.0})}
            for factor, decays in sorted(groups, reverse=True)
        ]

    def metric_prefix(self, subset: str) -> str:
        """As in :class:`Task`; ``test_name`` for the test set."""
        return self.test_name if subset == "test" else subset

    def _collector(self, subset: str) -> GradingMetrics:
        collector = self._metrics[f"{subset}_metrics"]
        assert isinstance(collector, GradingMetrics)
        return collector

    def _evaluate(self, batch: dict[str, Any], subset: str) -> None:
        logits, grades = self(self.to_encoder_format(batch["image"])), batch["grade"]
        loss = self.head.loss(logits, grades)
        self.log_means(subset, {"loss": loss}, self.head.loss_terms(grades))
        if self._stored_logits is not None:
            rows = torch.cat((logits, grades[:, None].to(logits)), dim=1)
            self._stored_logits.append((batch["index"], rows))
        # Thresholds fitted on the validation photographs must not be evaluated on them.
        predict = self.head.predict_unfitted if subset == "val" else self.head.predict
        probabilities, predicted = self.head.probabilities(logits), predict(logits)
        self._collector(subset).update(batch["index"], probabilities, predicted, grades)

    def _log_metrics(self, subset: str) -> None:
        metrics = self._collector(subset).compute()
        prefix = self.metric_prefix(subset)
        self.results[subset] = {f"{prefix}/{name}": value for name, value in metrics.items()}
        # Every process has computed the same values from the gathered predictions.
        self.log_dict(self.results[subset], sync_dist=False)


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
