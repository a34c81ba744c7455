"""Lightning's part of an evaluation: batches from any number of processes, every photograph once."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from drgrade.inference.grader import Graded, Grader
from drgrade.metrics import GradingMetrics, Predictions
from drgrade.metrics.mean import EpochMean


class EvaluationTask(pl.LightningModule):
    """A grader that is tested.

    Attributes:
        grader: What grades; its models move to the device of the trainer.
    """

    def __init__(self, grader: Grader) -> None:
        """Make empty collectors.

        Args:
            grader: One run, or an ensemble.
        """
        super().__init__()
        self.grader = grader
        self._models = nn.ModuleList(member.model for member in grader.members)
        self._together, self._calibrated = GradingMetrics(), GradingMetrics()
        self._each = nn.ModuleList(GradingMetrics() for _ in grader.members)
        self._loss = EpochMean()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Grade a batch, and keep what is said."""
        grades = batch["grade"]
        together, each = self.grader.grade_normalised(batch["image"].to(self.dtype))
        self._collect(self._together, batch, together, together.raw)
        self._collect(self._calibrated, batch, together, together.probabilities)
        for collector, own in zip(self._each, each, strict=True):
            self._collect(collector, batch, own, own.raw)
        if together.logits is not None:
            head = self.grader.members[0].model.head
            self._loss.update(head.loss(together.logits.to(grades.device), grades), head.loss_terms(grades))
            self.log("test/loss", self._loss, on_step=False, on_epoch=True)

    def together(self) -> tuple[Predictions, Predictions]:
        """What all members say together, from all processes; all must call.

        Returns:
            With the probabilities as the heads give them, and with calibrated ones; the grades are the same.
        """
        return self._together.predictions(), self._calibrated.predictions()

    def members(self) -> list[Predictions]:
        """What each member says alone, from all processes; all must call."""
        return [collector.predictions() for collector in self._each if isinstance(collector, GradingMetrics)]

    def _collect(self, collector: Any, batch: dict[str, Any], said: Graded, probabilities: Tensor) -> None:
        device = batch["index"].device
        collector.update(batch["index"], probabilities.to(device), said.grades.to(device), batch["grade"])
