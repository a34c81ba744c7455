"""Fine-tuning on graded photographs, and testing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from drgrade.errors import ConfigError
from drgrade.metrics.distributed import GradingMetrics, Predictions, gather_rows
from drgrade.models.encoder import Encoder
from drgrade.models.heads import Head
from drgrade.models.layer_groups import learning_rate_factors
from drgrade.tasks.base import SHARE, OptimizerFactory, ScheduleFactory, Task


class GradingTask(Task):
    """An encoder and a head that grade.

    Attributes:
        head: Features to grade.
        frozen_epochs: Epochs in which only the head learns.
        results: Metrics of the last pass over ``val`` and ``test``, in double precision (Lightning logs
            single).
        tested: What metrics of a test are called: ``test``, or ``external/NAME``.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Callable[[int], Head],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        frozen_epochs: int = 0,
        layer_decay: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        sync_batchnorm: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: Images to features.
            head: Makes the head for a number of features.
            optimizer: Makes the optimiser.
            schedule: Makes the learning-rate schedule.
            frozen_epochs: Epochs at the start in which the encoder is frozen, the statistics of its
                normalisation included.
            layer_decay: Learning rate of each layer of the encoder as a share of that of the layer above it;
                None for one learning rate.
            compile: Compile the encoder.
            channels_last: Channels last in memory.
            sync_batchnorm: Batch statistics over all GPUs.

        Raises:
            ConfigError: If the decay is out of range.
            EncoderError: If there is a decay and the encoder does not say what its layers are.
        """
        super().__init__(encoder, optimizer, schedule, ("loss",), compile, channels_last, sync_batchnorm)
        self.head = head(encoder.num_features)
        self.frozen_epochs = frozen_epochs
        self._shares = {} if layer_decay is None else learning_rate_factors(encoder, layer_decay)
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self.results: dict[str, dict[str, float]] = {}
        self.tested = "test"
        self._metrics = torch.nn.ModuleDict(
            {f"{subset}_metrics": GradingMetrics() for subset in ("val", "test")}
        )

    def setup(self, stage: str) -> None:
        """Give the head what it needs to know of the photographs before training.

        Raises:
            ConfigError: If they do not allow what the head is set to.
        """
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if self.head.weighting != "none":
            if data is None or data.balanced:
                raise ConfigError(
                    f"head.weighting={self.head.weighting} with data.balanced=true would make up for rare "
                    "grades twice; choose one of them"
                    if data is not None
                    else "the weights of the grades come from the training photographs of a DataModule"
                )
            self.head.set_counts(data.grade_counts("train"))
        if self.head.fits_thresholds and (data is None or not int(data.grade_counts("val").sum())):
            raise ConfigError(
                "head.thresholds=fitted are fitted on validation photographs and there are none: set "
                "protocol.val_fraction above 0, or head.thresholds=half"
            )

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether the current epoch belongs to the warm-up of the head."""
        return self._trainer is not None and self.current_epoch < self.frozen_epochs

    def train(self, mode: bool = True) -> Self:
        """Switch to training; a frozen encoder stays in evaluation: its batch statistics do not move."""
        super().train(mode)
        if mode and self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def on_train_epoch_start(self) -> None:
        """Freeze or thaw the encoder, also after a resume."""
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Grade.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Logits of the head.
        """
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not (self.training and self.encoder_is_frozen)
        ):
            features = self.encoder(images)
        logits: Tensor = self.head(features)
        return logits.float()  # losses and probabilities in full precision under autocast too

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.head.training_loss(self(self._images(batch)), batch["grade"])
        self._log_means("train", {"loss": loss}, len(batch["grade"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect results on validation photographs."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect results on test photographs."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the whole validation set."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Compute the metrics over the whole test set."""
        self._log_metrics("test")

    def predictions(self, subset: str) -> Predictions:
        """Results of the last pass over a subset, from all processes.

        Args:
            subset: ``val`` or ``test``.

        Returns:
            One entry per photograph, by its row in the store.
        """
        return self._collector(subset).predictions()

    @contextmanager
    def keeping_logits(self) -> Iterator[None]:
        """Keep what the head says of each validation photograph; :meth:`logits` gives it."""
        self._kept = []
        try:
            yield
        finally:
            self._kept = None

    def logits(self) -> tuple[Tensor, Tensor]:
        """What :meth:`keeping_logits` has kept, from all processes; all must call.

        Returns:
            (N, K) logits and (N,) int64 grades, each photograph once, on the CPU.
        """
        assert self._kept, "no validation while logits were kept"
        index, rows = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        gathered = gather_rows(index, rows)[1]
        return gathered[:, :-1], gathered[:, -1].long()

    def _learning(self) -> list[dict[str, Any]] | list[torch.nn.Parameter]:
        """As in :class:`Task`; with layer-wise decay a group for each learning rate, the highest first."""
        if not self._shares:
            return super()._learning()
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                share = self._shares[name.removeprefix("encoder.")] if name.startswith("encoder.") else 1.0
                groups.setdefault(share, []).append(parameter)
        return [{"params": groups[share], SHARE: share} for share in sorted(groups, reverse=True)]

    def _collector(self, subset: str) -> GradingMetrics:
        collector = self._metrics[f"{subset}_metrics"]
        assert isinstance(collector, GradingMetrics)
        return collector

    def _named(self, subset: str) -> str:
        return self.tested if subset == "test" else subset

    def _evaluate(self, batch: dict[str, Any], subset: str) -> None:
        logits, grades = self(self._images(batch)), batch["grade"]
        loss = self.head.loss(logits, grades)
        self._log_means(subset, {"loss": loss}, self.head.loss_terms(grades))
        if self._kept is not None:
            self._kept.append((batch["index"], torch.cat((logits, grades[:, None].to(logits)), dim=1)))
        # What was fitted on the validation photographs must not be judged by them.
        read = self.head.predict_unfitted if subset == "val" else self.head.predict
        probabilities, predicted = self.head.probabilities(logits), read(logits)
        self._collector(subset).update(batch["index"], probabilities, predicted, grades)

    def _log_metrics(self, subset: str) -> None:
        metrics = self._collector(subset).compute()
        named = self._named(subset)
        self.results[subset] = {f"{named}/{name}": value for name, value in metrics.items()}
        # Every process has computed the same figures from the gathered results: nothing is left to reduce.
        self.log_dict(self.results[subset], sync_dist=False)

    def on_validation_epoch_start(self) -> None:
        """Forget the last pass."""
        self._collector("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last pass."""
        self._collector("test").reset()
