"""Gathers every photograph's result from all processes before anything is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from drgrade.metrics.grading import grading_metrics


@dataclass(frozen=True)
class Predictions:
    """Results of N photographs, in the order of their index, each index once.

    Attributes:
        index: (N,) int64, where in the data set the photograph stands; strictly rising.
        probabilities: (N, G) float32.
        predicted: (N,) int64.
        grades: (N,) int64.
    """

    index: Tensor
    probabilities: Tensor
    predicted: Tensor
    grades: Tensor


class GradingMetrics(Metric):
    """`grading_metrics` over a whole set, however it was divided into batches and processes.

    A mean of metrics over batches or processes would be wrong for QWK, so all results are kept and gathered.
    Distributed samplers repeat photographs to give every process the same number; the repeats are dropped by
    index. The value is the same to the last bit for every division.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    index: Tensor
    probabilities: Tensor
    predicted: Tensor
    grades: Tensor

    def __init__(self, num_grades: int = 5, **kwargs: Any) -> None:
        """Makes empty states.

        Args:
            num_grades: how many grades G there are.
            **kwargs: for `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        # Tensors and not lists: a process that saw no data still takes part with the right shape and type.
        none = torch.zeros(0, dtype=torch.int64)
        self.add_state("index", none, dist_reduce_fx="cat")
        self.add_state("probabilities", torch.zeros(0, num_grades), dist_reduce_fx="cat")
        self.add_state("predicted", none.clone(), dist_reduce_fx="cat")
        self.add_state("grades", none.clone(), dist_reduce_fx="cat")

    def update(self, index: Tensor, probabilities: Tensor, predicted: Tensor, grades: Tensor) -> None:
        """Adds a batch.

        Args:
            index: (B,) int64, where in the data set each photograph stands.
            probabilities: (B, G), rows with sum 1.
            predicted: (B,) int64.
            grades: (B,) int64.
        """
        self.index = torch.cat((self.index, index.long()))
        self.probabilities = torch.cat((self.probabilities, probabilities.detach().float()))
        self.predicted = torch.cat((self.predicted, predicted.long()))
        self.grades = torch.cat((self.grades, grades.long()))

    def compute(self) -> dict[str, float]:
        """Computes the metrics; under several processes all must call.

        Returns:
            As `grading_metrics`.
        """
        found = self._distinct()
        return grading_metrics(found.probabilities, found.predicted, found.grades)

    def predictions(self) -> Predictions:
        """Gathers the results of all processes; all must call.

        Returns:
            Every photograph once, on the CPU.
        """
        with self.sync_context(should_sync=self._to_sync):
            return self._distinct()

    def _distinct(self) -> Predictions:
        index, order = torch.sort(self.index.cpu(), stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        kept = order[first]
        states = (self.probabilities, self.predicted, self.grades)
        return Predictions(index[first], *(state.cpu()[kept] for state in states))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        # torchmetrics stacks what it gathered, which fails where processes hold different numbers of rows.
        group = process_group or self.process_group
        for name in self._reductions:
            setattr(self, name, torch.cat(dist_sync_fn(getattr(self, name), group=group)))
