"""Fine-tuning on graded photographs, validation and testing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from drgrade.errors import ConfigError
from drgrade.metrics.distributed import GradingMetrics, Predictions, gather_rows
from drgrade.models.encoder import Encoder, learning_rate_factors
from drgrade.models.heads import Head
from drgrade.tasks.base import LR_FACTOR, OptimizerFactory, ScheduleFactory, Task


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
