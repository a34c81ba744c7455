"""Heads: features to a grade, a loss, and a probability for every grade."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import ConfigError

NUM_GRADES = 5


def _layers(in_features: int, hidden: int, dropout: float, outputs: int) -> nn.Sequential:
    """The published head: Dense-ReLU, BatchNorm, Dropout, Dense; with `hidden=0` the last layer alone."""
    if hidden == 0:
        return nn.Sequential(nn.Linear(in_features, outputs))
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


class Head(nn.Module, ABC):
    """Reads a grade from features.

    Attributes:
        num_grades: grades run from 0 to `num_grades` - 1.
    """

    def __init__(
        self, in_features: int, hidden: int, dropout: float, num_grades: int, num_outputs: int
    ) -> None:
        """Builds the layers: Dense-ReLU, BatchNorm, Dropout, Dense.

        Args:
            in_features: length D of the feature vectors.
            hidden: units of the hidden layer; 0 for a linear head without hidden layer and dropout.
            dropout: share of the hidden units that training drops, 0 to 1.
            num_grades: how many grades there are.
            num_outputs: how many logits K the kind of head needs.
        """
        super().__init__()
        self.num_grades = num_grades
        self.layers = _layers(in_features, hidden, dropout, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Computes logits.

        Args:
            features: (B, D).

        Returns:
            (B, K) logits; what they mean is the head's own business.
        """
        logits: Tensor = self.layers(features)
        return logits

    @abstractmethod
    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compares logits with the true grades.

        Args:
            logits: (B, K).
            grades: (B,) int64, 0 to `num_grades` - 1.

        Returns:
            The mean loss, a scalar.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turns logits into a distribution over the grades.

        Args:
            logits: (B, K).

        Returns:
            (B, num_grades) float32, no entry negative, every row with sum 1.
        """

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Reads the grade.

        Args:
            logits: (B, K).

        Returns:
            (B,) int64, 0 to `num_grades` - 1.
        """


class CumulativeHead(Head):
    """One sigmoid per grade for "at least this grade"; the published head.

    Grade 2 of 5 is learnt as 1, 1, 1, 0, 0 with binary cross-entropy (Taleb et al., NeurIPS 2020, after Cheng
    et al., "A neural network approach to ordinal regression", IJCNN 2008).
    """

    def __init__(
        self, in_features: int, hidden: int = 1024, dropout: float = 0.5, num_grades: int = NUM_GRADES
    ) -> None:
        """Builds the head with K = `num_grades` logits; arguments as in `Head`."""
        super().__init__(in_features, hidden, dropout, num_grades, num_outputs=num_grades)

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
        return F.binary_cross_entropy_with_logits(logits.float(), self.targets(grades))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Differences of P(grade >= k); see `Head.probabilities`.

        The sigmoids need not fall from grade to grade, so each is first cut down to the lowest before it.
        P(grade >= 0) is 1, whatever the first sigmoid says.
        """
        at_least = torch.sigmoid(logits[:, 1:].float()).cummin(dim=1).values  # (B, num_grades - 1)
        return _differences(at_least)

    def predict(self, logits: Tensor) -> Tensor:
        """The number of sigmoids above 0.5, less one, but not below 0; see `Head.predict`."""
        # A logit above 0 is a sigmoid above 0.5, without the rounding of the sigmoid.
        return ((logits > 0).sum(dim=1) - 1).clamp(min=0)


class CornHead(Head):
    """Conditional ordinal regression: logit k is for "at least k + 1, given at least k".

    Shi, Cao and Raschka, "Deep neural networks for rank-consistent ordinal regression based on conditional
    probabilities", Pattern Analysis and Applications 26, 2023.
    """

    def __init__(
        self, in_features: int, hidden: int = 1024, dropout: float = 0.5, num_grades: int = NUM_GRADES
    ) -> None:
        """Builds the head with K = `num_grades` - 1 logits; arguments as in `Head`."""
        super().__init__(in_features, hidden, dropout, num_grades, num_outputs=num_grades - 1)

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Binary cross-entropy of every threshold over the photographs that reach it; see `Head.loss`."""
        thresholds = torch.arange(self.num_grades - 1, device=grades.device)
        targets = (grades[:, None] > thresholds).float()  # (B, K)
        reached = grades[:, None] >= thresholds  # (B, K)
        losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        # Equation 7 of the paper divides the sum over all thresholds by the number of terms in it.
        return (losses * reached).sum() / reached.sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Differences of P(grade >= k), the products of the conditionals; see `Head.probabilities`."""
        return _differences(self._at_least(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """The number of thresholds with P(grade > k) above 0.5; see `Head.predict`."""
        return (self._at_least(logits) > 0.5).sum(dim=1)

    def _at_least(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float()).cumprod(dim=1)  # (B, num_grades - 1), P(grade >= 1), ...


class SoftmaxHead(Head):
    """Plain classification: softmax and cross-entropy, blind to the order of the grades."""

    def __init__(
        self, in_features: int, hidden: int = 1024, dropout: float = 0.5, num_grades: int = NUM_GRADES
    ) -> None:
        """Builds the head with K = `num_grades` logits; arguments as in `Head`."""
        super().__init__(in_features, hidden, dropout, num_grades, num_outputs=num_grades)

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Cross-entropy; see `Head.loss`."""
        return F.cross_entropy(logits.float(), grades)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax; see `Head.probabilities`."""
        return torch.softmax(logits.float(), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """The most probable grade; see `Head.predict`."""
        return logits.argmax(dim=1)


class RegressionHead(Head):
    """One number, the grade itself."""

    def __init__(
        self,
        in_features: int,
        hidden: int = 1024,
        dropout: float = 0.5,
        num_grades: int = NUM_GRADES,
        loss: Literal["smooth_l1", "mse"] = "smooth_l1",
    ) -> None:
        """Builds the head with K = 1.

        Args:
            in_features: as in `Head`.
            hidden: as in `Head`.
            dropout: as in `Head`.
            num_grades: as in `Head`.
            loss: `smooth_l1` (Huber's with its bend at one grade) or `mse`.

        Raises:
            ConfigError: the loss has another name.
        """
        super().__init__(in_features, hidden, dropout, num_grades, num_outputs=1)
        if loss not in ("smooth_l1", "mse"):
            raise ConfigError(f"the regression head knows loss=smooth_l1 and loss=mse, not {loss!r}")
        self._loss = F.smooth_l1_loss if loss == "smooth_l1" else F.mse_loss

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Smooth L1 or squared error of the unclipped number; see `Head.loss`."""
        return self._loss(logits[:, 0].float(), grades.float())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Splits 1 between the two nearest grades in proportion to nearness; see `Head.probabilities`.

        1.25 gives 0.75 to grade 1 and 0.25 to grade 2: a triangle one grade wide about the clipped value,
        whose mean is that value. No calibration is claimed.
        """
        grades = torch.arange(self.num_grades, device=logits.device)
        return (1 - (self._clipped(logits)[:, None] - grades).abs()).clamp(min=0)

    def predict(self, logits: Tensor) -> Tensor:
        """The nearest grade, halves to the higher one; see `Head.predict`."""
        return torch.floor(self._clipped(logits) + 0.5).long()

    def _clipped(self, logits: Tensor) -> Tensor:
        return logits[:, 0].float().clamp(0, self.num_grades - 1)  # (B,)


def _differences(at_least: Tensor) -> Tensor:
    """P(grade = k) = P(grade >= k) - P(grade >= k + 1).

    Args:
        at_least: (B, num_grades - 1), P(grade >= 1), P(grade >= 2), ...; no row rises.

    Returns:
        (B, num_grades), rows with sum 1.
    """
    one, zero = torch.ones_like(at_least[:, :1]), torch.zeros_like(at_least[:, :1])
    probabilities = torch.cat((one, at_least), dim=1) - torch.cat((at_least, zero), dim=1)
    return probabilities / probabilities.sum(dim=1, keepdim=True)
