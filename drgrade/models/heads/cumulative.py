"""The published head: one sigmoid for each grade."""

import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.models.heads.base import NUM_GRADES, Head, differences, full_precision
from drgrade.models.heads.losses import binary_focal


class CumulativeHead(Head):
    """One sigmoid per grade for "at least this grade"; the published head.

    Grade 2 of 5 is learnt as 1, 1, 1, 0, 0 with binary cross-entropy (Taleb et al., NeurIPS 2020, after Cheng
    et al., "A neural network approach to ordinal regression", IJCNN 2008).
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
        """Builds the head with K = `num_grades` logits; arguments as in `Head`."""
        super().__init__(in_features, hidden, dropout, num_grades, num_grades, weighting, beta, focal_gamma)

    def targets(self, grades: Tensor) -> Tensor:
        """Encodes grades cumulatively.

        Args:
            grades: (B,) int64.

        Returns:
            (B, num_grades) float32 of zeros and ones; grade 2 of 5 is 1, 1, 1, 0, 0.
        """
        thresholds = torch.arange(self.num_grades, device=grades.device)
        return (grades[:, None] >= thresholds).float()

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over batch and thresholds; see `Head.loss`."""
        logits = full_precision(logits)
        return F.binary_cross_entropy_with_logits(logits, self.targets(grades).to(logits.dtype))

    def _reweighted(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        losses = binary_focal(logits, self.targets(grades), self._gamma)  # (B, K)
        return (losses * weights[:, None]).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Differences of P(grade >= k); see `Head.probabilities`.

        The sigmoids need not fall from grade to grade, so each is first cut down to the lowest before it.
        P(grade >= 0) is 1, whatever the first sigmoid says.
        """
        at_least = torch.sigmoid(logits[:, 1:].float()).cummin(dim=1).values  # (B, num_grades - 1)
        return differences(at_least)

    def predict(self, logits: Tensor) -> Tensor:
        """The number of sigmoids above 0.5, less one, but not below 0; see `Head.predict`."""
        # A logit above 0 is a sigmoid above 0.5, without the rounding of the sigmoid.
        return ((logits > 0).sum(dim=1) - 1).clamp(min=0)
