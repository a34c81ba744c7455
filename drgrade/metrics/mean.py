"""The mean of a quantity over an epoch."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochMean(Metric):
    """Mean of per-batch means, weighted by the size of each batch, over all batches and processes.

    torchmetrics' MeanMetric (1.9) either takes NaN out of the mean, which hides that training has diverged,
    or, told not to
    (``nan_strategy="disable"``), ignores the weights. Lightning's mean of a logged tensor cuts the mean
    number of
    images of a process to a whole one under gloo.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Make empty states; ``kwargs`` are for :class:`torchmetrics.Metric`."""
        super().__init__(**kwargs)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        """Add a batch.

        Args:
            value: Scalar, the mean over the batch.
            weight: Size of the batch.
        """
        self.total = self.total + value.detach().float() * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """The mean; NaN if there was nothing, or if a batch was NaN.

        Returns:
            Scalar, float32.
        """
        return self.total / self.weight
