"""One number, the grade itself."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.errors import ConfigError
from drgrade.models.heads.base import NUM_GRADES, Head, full_precision
from drgrade.models.heads.thresholds import best_thresholds, halves


class RegressionHead(Head):
    """One number, the grade itself.

    Attributes:
        thresholds: (num_grades - 1,) float32, rising: the number from which on the grade is 1, 2, ...; only
            with `thresholds=fitted`. The halves until `fit_thresholds` was called.
    """

    thresholds: Tensor

    def __init__(
        self,
        in_features: int,
        hidden: int = 1024,
        dropout: float = 0.5,
        num_grades: int = NUM_GRADES,
        loss: Literal["smooth_l1", "mse"] = "smooth_l1",
        thresholds: Literal["half", "fitted"] = "half",
        weighting: str = "none",
        beta: float = 0.999,
        focal_gamma: float = 0.0,
    ) -> None:
        """Builds the head with K = 1.

        Args:
            in_features: as in `Head`.
            hidden: as in `Head`.
            dropout: as in `Head`.
            num_grades: as in `Head`.
            loss: `smooth_l1` (Huber's with its bend at one grade) or `mse`.
            thresholds: `half` to round to the nearest grade; `fitted` for thresholds that give the highest
                quadratic weighted kappa on the validation photographs.
            weighting: as in `Head`.
            beta: as in `Head`.
            focal_gamma: must be 0: an error in grades has no probability of what is true.

        Raises:
            ConfigError: loss or thresholds have another name, or a setting is out of range.
        """
        super().__init__(in_features, hidden, dropout, num_grades, 1, weighting, beta, focal_gamma)
        if loss not in ("smooth_l1", "mse"):
            raise ConfigError(f"the regression head knows loss=smooth_l1 and loss=mse, not {loss!r}")
        if thresholds not in ("half", "fitted"):
            raise ConfigError(f"head.thresholds={thresholds} is neither half nor fitted")
        if focal_gamma > 0:
            raise ConfigError(
                f"head.focal_gamma={focal_gamma}: focal loss needs probabilities and the regression head has "
                "none; leave it at 0, or choose another head"
            )
        self._loss = F.smooth_l1_loss if loss == "smooth_l1" else F.mse_loss
        self.fits_thresholds = thresholds == "fitted"
        if self.fits_thresholds:
            self.register_buffer("thresholds", halves(num_grades))

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Smooth L1 or squared error of the unclipped number; see `Head.loss`."""
        return self._loss(full_precision(logits[:, 0]), grades.float())

    def _reweighted(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        return (self._loss(logits[:, 0], grades.float(), reduction="none") * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Splits 1 between the two nearest grades in proportion to nearness; see `Head.probabilities`.

        1.25 gives 0.75 to grade 1 and 0.25 to grade 2: a triangle one grade wide about the clipped value,
        whose mean is that value. No calibration is claimed. Fitted thresholds do not change it, so the most
        probable grade need not be the one that `predict` reads.
        """
        grades = torch.arange(self.num_grades, device=logits.device)
        return (1 - (self._clipped(logits)[:, None] - grades).abs()).clamp(min=0)

    def severity(self, logits: Tensor) -> Tensor:
        """The number itself, also beyond the grades, where the clipped one has no slope; see `Head`."""
        return logits[:, 0].float()

    def predict(self, logits: Tensor) -> Tensor:
        """The nearest grade, halves to the higher one; or by fitted thresholds; see `Head.predict`."""
        if not self.fits_thresholds:
            return self.predict_unfitted(logits)
        return (logits[:, :1].float() >= self.thresholds).sum(dim=1)

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """The nearest grade, halves to the higher one; see `Head.predict_unfitted`."""
        return torch.floor(self._clipped(logits) + 0.5).long()

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """Sets the thresholds with the highest quadratic weighted kappa; see `Head.fit_thresholds`.

        Raises:
            ConfigError: the head was made with `thresholds=half`.
        """
        if not self.fits_thresholds:
            raise ConfigError(
                "head.thresholds=half: there is nothing to fit; head.thresholds=fitted fits them"
            )
        self.thresholds.copy_(best_thresholds(logits[:, 0].float().cpu(), grades.cpu(), self.num_grades))

    def _clipped(self, logits: Tensor) -> Tensor:
        return logits[:, 0].float().clamp(0, self.num_grades - 1)  # (B,)
