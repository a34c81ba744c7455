"""Plain classification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.models.heads.base import NUM_GRADES, Head, full_precision
from drgrade.models.heads.losses import multiclass_focal


class SoftmaxHead(Head):
    """Plain classification: softmax and cross-entropy, blind to the order of the grades."""

    def __init__(
        self,
        in_features: int,
        hidden: int = 1024,
        dropout: float = 0.5,
        num_grades: int = NUM_GRADES,
        weighting: str = "none",
        beta: float = 0.999,
        focal_gamma: float = 0.0,
    ) -> None:
        """Builds the head with K = `num_grades` logits; arguments as in `Head`."""
        super().__init__(in_features, hidden, dropout, num_grades, num_grades, weighting, beta, focal_gamma)

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Cross-entropy; see `Head.loss`."""
        return F.cross_entropy(full_precision(logits), grades)

    def _reweighted(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        return (multiclass_focal(logits, grades, self._gamma) * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax; see `Head.probabilities`."""
        return torch.softmax(logits.float(), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """The most probable grade; see `Head.predict`."""
        return logits.argmax(dim=1)
