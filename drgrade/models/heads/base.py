"""What every head has."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.heads.losses import WEIGHTINGS, class_weights

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
        weighting: how the grades are weighted in training; see `drgrade.models.heads.losses.class_weights`.
        fits_thresholds: whether `predict` uses thresholds that are fitted on the validation photographs.
    """

    grade_weights: Tensor
    fits_thresholds: bool = False

    def __init__(
        self,
        in_features: int,
        hidden: int,
        dropout: float,
        num_grades: int,
        num_outputs: int,
        weighting: str = "none",
        beta: float = 0.999,
        focal_gamma: float = 0.0,
    ) -> None:
        """Builds the layers: Dense-ReLU, BatchNorm, Dropout, Dense.

        Args:
            in_features: length D of the feature vectors.
            hidden: units of the hidden layer; 0 for a linear head without hidden layer and dropout.
            dropout: share of the hidden units that training drops, 0 to 1.
            num_grades: how many grades there are.
            num_outputs: how many logits K the kind of head needs.
            weighting: of the grades in the training loss: `none`, `balanced` or `effective`.
            beta: of `effective`, in [0, 1).
            focal_gamma: how much the training loss looks away from what is easy; 0 for not at all.

        Raises:
            ConfigError: a setting of the loss is out of range.
        """
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ConfigError(f"head.weighting={weighting} is none of {', '.join(WEIGHTINGS)}")
        if not 0 <= beta < 1:
            raise ConfigError(f"head.beta={beta} is not in [0, 1)")
        if not 0 <= focal_gamma < math.inf:
            raise ConfigError(
                f"head.focal_gamma={focal_gamma} is below 0 or not a number; 0 is no focusing, 2 the paper's"
            )
        self.num_grades = num_grades
        self.weighting, self._beta, self._gamma = weighting, beta, focal_gamma
        self.layers = _layers(in_features, hidden, dropout, num_outputs)
        if weighting != "none":
            # A resumed run finds them in its checkpoint. Without weighting no checkpoint has them.
            self.register_buffer("grade_weights", torch.full((num_grades,), torch.nan))

    def forward(self, features: Tensor) -> Tensor:
        """Computes logits.

        Args:
            features: (B, D).

        Returns:
            (B, K) logits; what they mean is the head's own business.
        """
        logits: Tensor = self.layers(features)
        return logits

    def set_counts(self, counts: Tensor) -> None:
        """Computes the weights of the grades; needed before `training_loss` unless `weighting` is `none`.

        Args:
            counts: (num_grades,) training photographs of each grade.
        """
        weights = class_weights(counts, self.weighting, self._beta)
        self.grade_weights.copy_(weights)

    def training_loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """What training minimises: `loss`, with the grades weighted and with focusing where that is set.

        Args:
            logits: (B, K).
            grades: (B,) int64, 0 to `num_grades` - 1.

        Returns:
            A scalar: the mean, over the same terms as in `loss`, of each term times the weight of its
            photograph's grade. It is not divided by the sum of the weights in the batch, which would change
            from batch to batch and from process to process.
        """
        if self.weighting == "none" and self._gamma == 0:
            return self.loss(logits, grades)
        weights = torch.ones_like(grades, dtype=torch.float32)
        if self.weighting != "none":
            weights = self.grade_weights[grades]
        return self._reweighted(full_precision(logits), grades, weights)

    def _reweighted(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        """The training loss with the weight (B,) of each photograph and with focusing."""
        raise ConfigError(f"{type(self).__name__} knows neither weighting nor focal_gamma")

    @abstractmethod
    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compares logits with the true grades; every photograph counts alike.

        Args:
            logits: (B, K).
            grades: (B,) int64, 0 to `num_grades` - 1.

        Returns:
            The mean loss, a scalar.
        """

    def loss_terms(self, grades: Tensor) -> int:
        """What the loss of a batch weighs beside that of another: so many terms is it the mean of.

        Args:
            grades: (B,) int64.

        Returns:
            B, where every photograph has equally many.
        """
        return len(grades)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turns logits into a distribution over the grades.

        Args:
            logits: (B, K).

        Returns:
            (B, num_grades) float32, no entry negative, every row with sum 1.
        """

    def severity(self, logits: Tensor) -> Tensor:
        """A number that rises with the grade, for explanations by gradients: the mean of `probabilities`.

        Args:
            logits: (B, K).

        Returns:
            (B,) float32.
        """
        probabilities = self.probabilities(logits)
        return probabilities @ torch.arange(self.num_grades, device=logits.device, dtype=probabilities.dtype)

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Reads the grade.

        Args:
            logits: (B, K).

        Returns:
            (B,) int64, 0 to `num_grades` - 1.
        """

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """Reads the grade without anything that was fitted on validation photographs, for use on these.

        Args:
            logits: (B, K).

        Returns:
            As `predict`, which it is where nothing is fitted.
        """
        return self.predict(logits)

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """Fits the thresholds of `predict` to validation photographs; only where `fits_thresholds`.

        Args:
            logits: (N, K), of all of them, in any order.
            grades: (N,) int64.

        Raises:
            ConfigError: this head has none.
        """
        raise ConfigError(f"{type(self).__name__} has no thresholds that could be fitted")


def full_precision(logits: Tensor) -> Tensor:
    """Logits as losses are computed from them: single precision at least.

    Args:
        logits: of any shape and floating type.

    Returns:
        The same in float32; in float64 if they were.
    """
    return logits if logits.dtype == torch.float64 else logits.float()


def differences(at_least: Tensor) -> Tensor:
    """P(grade = k) = P(grade >= k) - P(grade >= k + 1).

    Args:
        at_least: (B, num_grades - 1), P(grade >= 1), P(grade >= 2), ...; no row rises.

    Returns:
        (B, num_grades), rows with sum 1.
    """
    one, zero = torch.ones_like(at_least[:, :1]), torch.zeros_like(at_least[:, :1])
    probabilities = torch.cat((one, at_least), dim=1) - torch.cat((at_least, zero), dim=1)
    return probabilities / probabilities.sum(dim=1, keepdim=True)
