"""torchmetrics classes whose values do not depend on the division into batches and processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from drgrade.grades import NUM_GRADES
from drgrade.metrics.functional import grading_metrics


@dataclass(frozen=True)
class Predictions:
    """Predictions for N photographs, ordered by index, each index once.

    Attributes:
        index: (N,) int64, positions in the data set; strictly ascending.
        probabilities: (N, G) float32.
        predicted: (N,) int64.
        grades: (N,) int64, the true grades.
    """

    index: Tensor
    probabilities: Tensor
    predicted: Tensor
    grades: Tensor


class GradingMetrics(Metric):
    """:func:`~drgrade.metrics.functional.grading_metrics` over a whole set.

    The QWK of a set is not a mean over batches or processes, so all predictions are kept and gathered.
    Distributed samplers repeat photographs to give every process the same number; repeats are dropped by
    index. The value is bit-identical for every division into batches and processes.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    index: Tensor
    probabilities: Tensor
    predicted: Tensor
    grades: Tensor

    def __init__(self, num_grades: int = NUM_GRADES, **kwargs: Any) -> None:
        """Create empty states; ``kwargs`` are passed to :class:`torchmetrics.Metric`."""
        super().__init__(**kwargs)
        # Tensors and not lists: a process without data still takes part with the right shape and type.
        empty = torch.zeros(0, dtype=torch.int64)
        self.add_state("index", empty, dist_reduce_fx="cat")
        self.add_state("probabilities", torch.zeros(0, num_grades), dist_reduce_fx="cat")
        self.add_state("predicted", empty.clone(), dist_reduce_fx="cat")
        self.add_state("grades", empty.clone(), dist_reduce_fx="cat")

    def update(self, index: Tensor, probabilities: Tensor, predicted: Tensor, grades: Tensor) -> None:
        """Add a batch.

        Args:
            index: (B,) int64, positions in the data set.
            probabilities: (B, G), rows with sum 1.
            predicted: (B,) int64.
            grades: (B,) int64.
        """
        self.index = torch.cat((self.index, index.long()))
        self.probabilities = torch.cat((self.probabilities, probabilities.detach().float()))
        self.predicted = torch.cat((self.predicted, predicted.long()))
        self.grades = torch.cat((self.grades, grades.long()))

    def compute(self) -> dict[str, float]:
        """Compute the metrics; all processes must call."""
        unique = self._unique()
        return grading_metrics(unique.probabilities, unique.predicted, unique.grades)

    def predictions(self) -> Predictions:
        """Return the predictions of all processes, on the CPU; all processes must call."""
        with self.sync_context(should_sync=self._to_sync):
            return self._unique()

    def _unique(self) -> Predictions:
        index, first = _first_of_each(self.index)
        states = (self.probabilities, self.predicted, self.grades)
        return Predictions(index, *(state.cpu()[first] for state in states))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        # torchmetrics stacks the gathered tensors, which fails if processes hold different numbers of rows.
        group = process_group or self.process_group
        for name in self._reductions:
            setattr(self, name, torch.cat(dist_sync_fn(getattr(self, name), group=group)))


class EpochMean(Metric):
    """Mean of batch means, weighted by the batch sizes, over all batches and processes.

    torchmetrics' MeanMetric (1.9) either drops NaN from the mean, which hides that training has diverged, or
    ignores the weights (``nan_strategy="disable"``). Lightning's mean of a logged tensor truncates the mean
    number of images of a process to an integer under gloo.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Create empty states; ``kwargs`` are passed to :class:`torchmetrics.Metric`."""
        super().__init__(**kwargs)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        """Add the mean of a batch (a scalar) with the size of the batch as its weight."""
        self.total = self.total + value.detach().float() * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean, a float32 scalar; NaN without batches or if a batch was NaN."""
        return self.total / self.weight


def gather_rows(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather rows from all processes; all processes must call.

    Rows that distributed samplers have repeated are dropped.

    Args:
        index: (N,) int64, position of each row in the data set.
        rows: (N, D).

    Returns:
        (M,) and (M, D) on the CPU, each index once, ascending; the same on every process.
    """
    if distributed.is_available() and distributed.is_initialized():
        index, rows = (torch.cat(gather_all_tensors(each)) for each in (index, rows))
    index, first = _first_of_each(index)
    return index, rows.cpu()[first]


def _first_of_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of an index, ascending, and the position of the first row of each."""
    distinct, first = np.unique(index.cpu().numpy(), return_index=True)
    return torch.from_numpy(distinct), torch.from_numpy(first)
