"""Conditional ordinal regression."""

import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.models.heads.base import NUM_GRADES, Head, differences, full_precision
from drgrade.models.heads.losses import binary_focal


class CornHead(Head):
    """Conditional ordinal regression: logit k is for "at least k + 1, given at least k".

    Shi, Cao and Raschka, "Deep neural networks for rank-consistent ordinal regression based on conditional
    probabilities", Pattern Analysis and Applications 26, 2023.
    """

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
        """Builds the head with K = `num_grades` - 1 logits; arguments as in `Head`."""
        super().__init__(
            in_features, hidden, dropout, num_grades, num_grades - 1, weighting, beta, focal_gamma
        )

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Binary cross-entropy of every threshold over the photographs that reach it; see `Head.loss`."""
        targets, reached = self._conditions(grades)
        logits = full_precision(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        # Equation 7 of the paper divides the sum over all thresholds by the number of terms in it.
        return (losses * reached).sum() / reached.sum()

    def loss_terms(self, grades: Tensor) -> int:
        """The questions that are asked of the photographs, more of high grades; see `Head.loss_terms`."""
        return int(self._conditions(grades)[1].sum())

    def _reweighted(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        targets, reached = self._conditions(grades)
        losses = binary_focal(logits, targets, self._gamma) * weights[:, None]  # (B, K)
        return (losses * reached).sum() / reached.sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Differences of P(grade >= k), the products of the conditionals; see `Head.probabilities`."""
        return differences(self._at_least(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """The number of thresholds with P(grade > k) above 0.5; see `Head.predict`."""
        return (self._at_least(logits) > 0.5).sum(dim=1)

    def _conditions(self, grades: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each grade lies above each threshold (B, K) float32, and whether it reaches it (B, K)."""
        thresholds = torch.arange(self.num_grades - 1, device=grades.device)
        return (grades[:, None] > thresholds).float(), grades[:, None] >= thresholds

    def _at_least(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float()).cumprod(dim=1)  # (B, num_grades - 1), P(grade >= 1), ...
