"""Heads: features to logits, a loss, a probability for every grade, and a grade. Formulae: docs/heads.md."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.grades import NUM_GRADES
from drgrade.models.encoder import to_float32
from drgrade.models.thresholds import best_thresholds, rounding_thresholds

WEIGHTINGS = ("none", "balanced", "effective")
"""Class weightings; see :func:`class_weights`."""


class Head(nn.Module, ABC):
    """Base class: maps features to logits and interprets them.

    Attributes:
        num_grades: Grades run from 0 to ``num_grades`` - 1.
        weighting: Class weighting of the training loss; see :func:`class_weights`.
        fits_thresholds: Whether ``predict`` uses thresholds fitted on the validation photographs.
    """

    grade_weights: Tensor
    fits_thresholds: bool = False

    def __init__(
        self,
        in_features: int,
        hidden: int = 1024,
        dropout: float = 0.5,
        num_grades: int = NUM_GRADES,
        num_outputs: int | None = None,
        weighting: str = "none",
        beta: float = 0.999,
        focal_gamma: float = 0.0,
    ) -> None:
        """Build the published layers: Dense-ReLU, BatchNorm, Dropout, Dense.

        Args:
            in_features: Length D of the feature vectors.
            hidden: Units of the hidden layer; 0 for the last Dense layer alone.
            dropout: Dropout rate of the hidden units, in [0, 1].
            num_grades: Number of grades.
            num_outputs: Number of logits K; None for ``num_grades``.
            weighting: Class weighting of the training loss: ``none``, ``balanced`` or ``effective``.
            beta: Parameter of ``effective``, in [0, 1).
            focal_gamma: Focusing parameter of the focal loss; 0 for none.

        Raises:
            ConfigError: If a setting of the loss is out of range.
        """
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ConfigError(f"head.weighting={weighting} is not one of {', '.join(WEIGHTINGS)}")
        if not 0 <= beta < 1:
            raise ConfigError(f"head.beta={beta} is not in [0, 1)")
        if not 0 <= focal_gamma < math.inf:
            raise ConfigError(
                f"head.focal_gamma={focal_gamma} is not a finite number of at least 0; 0 disables focusing, "
                "the paper uses 2"
            )
        self.num_grades = num_grades
        self.weighting, self._beta, self._gamma = weighting, beta, focal_gamma
        outputs = num_grades if num_outputs is None else num_outputs
        self.layers = (
            nn.Sequential(
                nn.Linear(in_features, hidden),
                nn.ReLU(),
                nn.BatchNorm1d(hidden),
                nn.Dropout(dropout),
                nn.Linear(hidden, outputs),
            )
            if hidden
            else nn.Sequential(nn.Linear(in_features, outputs))
        )
        if weighting != "none":
            # Kept in checkpoints for resumed runs. Without weighting no checkpoint has this buffer.
            self.register_buffer("grade_weights", torch.full((num_grades,), torch.nan))

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits (B, K) of features (B, D); their meaning depends on the head."""
        logits: Tensor = self.layers(features)
        return logits

    def set_counts(self, counts: Tensor) -> None:
        """Set the class weights by the training photographs of each grade, ``counts`` (num_grades,).

        Required before :meth:`training_loss` unless ``weighting`` is ``none``.
        """
        self.grade_weights.copy_(class_weights(counts, self.weighting, self._beta))

    def training_loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the loss that training minimises: :meth:`loss` with class weights and focusing.

        Args:
            logits: (B, K).
            grades: (B,) int64, 0 to ``num_grades`` - 1.

        Returns:
            Scalar: the mean, over the same terms as in :meth:`loss`, of each term times the weight of its
            photograph's grade. It is not divided by the sum of the weights in the batch, which would vary
            between batches and processes.
        """
        if self.weighting == "none" and self._gamma == 0:
            return self.loss(logits, grades)
        weights = torch.ones_like(grades, dtype=torch.float32)
        if self.weighting != "none":
            weights = self.grade_weights[grades]
        return self._weighted_loss(to_float32(logits), grades, weights)

    def _weighted_loss(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        """Compute the training loss with the weight (B,) of each photograph and with focusing."""
        raise ConfigError(f"{type(self).__name__} supports neither weighting nor focal_gamma")

    @abstractmethod
    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, K) for grades (B,), without class weights or focusing."""

    def loss_terms(self, grades: Tensor) -> int:
        """Return the number of terms averaged in the batch loss: B, unless photographs have several terms."""
        return len(grades)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute distributions over the grades, (B, num_grades) float32 with row sum 1, of logits (B, K)."""

    def severity(self, logits: Tensor) -> Tensor:
        """Compute a score (B,) float32 that rises with the grade: the mean of :meth:`probabilities`.

        Gradient-based explanations differentiate it.
        """
        probabilities = self.probabilities(logits)
        return probabilities @ torch.arange(self.num_grades, device=logits.device, dtype=probabilities.dtype)

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Read the grades (B,) int64 from logits (B, K)."""

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """Read the grades without thresholds fitted on validation photographs, for use on these."""
        return self.predict(logits)

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """Fit the thresholds of :meth:`predict` on logits (N, K) and grades (N,) of validation photographs.

        Raises:
            ConfigError: If the head has no thresholds to fit.
        """
        raise ConfigError(f"{type(self).__name__} has no thresholds to fit")


class CumulativeHead(Head):
    """The published head: one sigmoid per grade for "at least this grade".

    Grade 2 of 5 is encoded as 1, 1, 1, 0, 0 and learnt with binary cross-entropy (Taleb et al., NeurIPS 2020,
    after Cheng et al., "A neural network approach to ordinal regression", IJCNN 2008).
    """

    def targets(self, grades: Tensor) -> Tensor:
        """Encode grades (B,) cumulatively as (B, num_grades) float32; grade 2 of 5 is 1, 1, 1, 0, 0."""
        thresholds = torch.arange(self.num_grades, device=grades.device)
        return (grades[:, None] >= thresholds).float()

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the binary cross-entropy, averaged over batch and thresholds; see :meth:`Head.loss`."""
        logits = to_float32(logits)
        return F.binary_cross_entropy_with_logits(logits, self.targets(grades).to(logits.dtype))

    def _weighted_loss(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        losses = binary_focal(logits, self.targets(grades), self._gamma)  # (B, K)
        return (losses * weights[:, None]).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute differences of P(grade >= k); see :meth:`Head.probabilities`.

        The sigmoids need not fall from grade to grade, so each is replaced by the lowest one so far.
        P(grade >= 0) is 1; the first sigmoid is not used.
        """
        at_least = torch.sigmoid(logits[:, 1:].float()).cummin(dim=1).values  # (B, num_grades - 1)
        return differences(at_least)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the number of sigmoids above 0.5 minus one, at least 0; see :meth:`Head.predict`."""
        # A logit above 0 is a sigmoid above 0.5, without the rounding of the sigmoid.
        return ((logits > 0).sum(dim=1) - 1).clamp(min=0)


class CornHead(Head):
    """Conditional ordinal regression: logit k is for "at least k + 1, given at least k".

    Shi, Cao and Raschka, "Deep neural networks for rank-consistent ordinal regression based on conditional
    probabilities", Pattern Analysis and Applications 26, 2023.
    """

    def __init__(self, in_features: int, *, num_grades: int = NUM_GRADES, **settings: Any) -> None:
        """Build the head with K = ``num_grades`` - 1 logits; arguments as in :class:`Head`."""
        super().__init__(in_features, num_grades=num_grades, num_outputs=num_grades - 1, **settings)

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the binary cross-entropy of each threshold over the photographs that reach it."""
        targets, reached = self._conditions(grades)
        logits = to_float32(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        # Equation 7 of the paper divides the sum over all thresholds by the number of its terms.
        return (losses * reached).sum() / reached.sum()

    def loss_terms(self, grades: Tensor) -> int:
        """Return the number of pairs of a photograph and a threshold that it reaches."""
        return int(self._conditions(grades)[1].sum())

    def _weighted_loss(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        targets, reached = self._conditions(grades)
        losses = binary_focal(logits, targets, self._gamma) * weights[:, None]  # (B, K)
        return (losses * reached).sum() / reached.sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute differences of P(grade >= k), the products of the conditional probabilities."""
        return differences(self._at_least(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """Return the number of thresholds with P(grade > k) above 0.5; see :meth:`Head.predict`."""
        return (self._at_least(logits) > 0.5).sum(dim=1)

    def _conditions(self, grades: Tensor) -> tuple[Tensor, Tensor]:
        """Return "lies above the threshold" (B, K) float32 and "reaches the threshold" (B, K) bool."""
        thresholds = torch.arange(self.num_grades - 1, device=grades.device)
        return (grades[:, None] > thresholds).float(), grades[:, None] >= thresholds

    def _at_least(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float()).cumprod(dim=1)  # (B, num_grades - 1), P(grade >= 1), ...


class SoftmaxHead(Head):
    """Multi-class classification with softmax and cross-entropy; ignores the order of the grades."""

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the cross-entropy; see :meth:`Head.loss`."""
        return F.cross_entropy(to_float32(logits), grades)

    def _weighted_loss(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        return (multiclass_focal(logits, grades, self._gamma) * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute the softmax; see :meth:`Head.probabilities`."""
        return torch.softmax(logits.float(), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the most probable grade; see :meth:`Head.predict`."""
        return logits.argmax(dim=1)


class RegressionHead(Head):
    """Regression of the grade as one number.

    Attributes:
        thresholds: (num_grades - 1,) float32, rising: lower bounds of grades 1, 2, ...; only with
            ``thresholds=fitted``. Until :meth:`fit_thresholds` is called they round to the nearest grade.
    """

    thresholds: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        loss: Literal["smooth_l1", "mse"] = "smooth_l1",
        thresholds: Literal["half", "fitted"] = "half",
        focal_gamma: float = 0.0,
        **settings: Any,
    ) -> None:
        """Build the head with K = 1.

        Args:
            in_features: As in :class:`Head`.
            loss: ``smooth_l1`` (Huber's, quadratic below an error of one grade) or ``mse``.
            thresholds: ``half`` to round to the nearest grade; ``fitted`` for the thresholds with the highest
                quadratic weighted kappa on the validation photographs.
            focal_gamma: Must be 0: the head has no probability of the true grade.
            **settings: As in :class:`Head`.

        Raises:
            ConfigError: If ``loss`` or ``thresholds`` is unknown or a setting is out of range.
        """
        super().__init__(in_features, num_outputs=1, focal_gamma=focal_gamma, **settings)
        if loss not in ("smooth_l1", "mse"):
            raise ConfigError(f"head.loss={loss!r} of the regression head is neither smooth_l1 nor mse")
        if thresholds not in ("half", "fitted"):
            raise ConfigError(f"head.thresholds={thresholds} is neither half nor fitted")
        if focal_gamma > 0:
            raise ConfigError(
                f"head.focal_gamma={focal_gamma}: focal loss needs probabilities, which the regression head "
                "does not have; set it to 0 or choose another head"
            )
        self._loss = F.smooth_l1_loss if loss == "smooth_l1" else F.mse_loss
        self.fits_thresholds = thresholds == "fitted"
        if self.fits_thresholds:
            self.register_buffer("thresholds", rounding_thresholds(self.num_grades))

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the smooth L1 or squared error of the unclipped number; see :meth:`Head.loss`."""
        return self._loss(to_float32(logits[:, 0]), grades.float())

    def _weighted_loss(self, logits: Tensor, grades: Tensor, weights: Tensor) -> Tensor:
        return (self._loss(logits[:, 0], grades.float(), reduction="none") * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Split 1 between the two nearest grades by linear interpolation; see :meth:`Head.probabilities`.

        1.25 gives 0.75 to grade 1 and 0.25 to grade 2, so the mean is the clipped value. These are not
        calibrated. Fitted thresholds do not change them, so the most probable grade can differ from
        :meth:`predict`.
        """
        grades = torch.arange(self.num_grades, device=logits.device)
        return (1 - (self._clipped(logits)[:, None] - grades).abs()).clamp(min=0)

    def severity(self, logits: Tensor) -> Tensor:
        """Return the unclipped number, whose gradient does not vanish; see :meth:`Head.severity`."""
        return logits[:, 0].float()

    def predict(self, logits: Tensor) -> Tensor:
        """Return the nearest grade, or the grade by fitted thresholds; see :meth:`Head.predict`."""
        if not self.fits_thresholds:
            return self.predict_unfitted(logits)
        return (logits[:, :1].float() >= self.thresholds).sum(dim=1)

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """Return the nearest grade, halves rounded up; see :meth:`Head.predict_unfitted`."""
        return torch.floor(self._clipped(logits) + 0.5).long()

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """Set the thresholds with the highest quadratic weighted kappa; see :meth:`Head.fit_thresholds`."""
        if not self.fits_thresholds:
            raise ConfigError("head.thresholds=half has nothing to fit; set head.thresholds=fitted")
        self.thresholds.copy_(best_thresholds(logits[:, 0].float().cpu(), grades.cpu(), self.num_grades))

    def _clipped(self, logits: Tensor) -> Tensor:
        return logits[:, 0].float().clamp(0, self.num_grades - 1)  # (B,)


def differences(at_least: Tensor) -> Tensor:
    """Compute P(grade = k) = P(grade >= k) - P(grade >= k + 1), (B, G) with rows of sum 1.

    Args:
        at_least: (B, G - 1), P(grade >= 1), P(grade >= 2), ...; rows do not rise.
    """
    one, zero = torch.ones_like(at_least[:, :1]), torch.zeros_like(at_least[:, :1])
    probabilities = torch.cat((one, at_least), dim=1) - torch.cat((at_least, zero), dim=1)
    return probabilities / probabilities.sum(dim=1, keepdim=True)


def class_weights(counts: Tensor, weighting: str, beta: float) -> Tensor:
    """Compute class weights (G,) float32 that compensate for rare grades; 0 for a grade that does not occur.

    ``balanced`` is n / (K n_k), as in scikit-learn (King and Zeng, "Logistic regression in rare events data",
    Political Analysis 9(2), 2001), so the mean weight of a photograph is 1. ``effective`` is
    (1 - beta) / (1 - beta^n_k), scaled to the sum K (Cui et al., "Class-balanced loss based on effective
    number of samples", CVPR 2019, equation 4): equal weights for beta = 0, proportional to 1 / n_k as beta
    approaches 1. n_k is the number of photographs of grade k, n their sum, and K the number of grades that
    occur.

    Args:
        counts: (G,) photographs of each grade.
        weighting: ``balanced`` or ``effective``.
        beta: Parameter of ``effective``, in [0, 1).
    """
    present = counts > 0
    number = counts[present].double()
    if weighting == "balanced":
        of_present = number.sum() / (len(number) * number)
    else:
        of_present = (1 - beta) / (1 - beta**number)
        of_present = of_present * len(number) / of_present.sum()
    weights = torch.zeros(len(counts))
    weights[present] = of_present.float()
    return weights


def binary_focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Compute binary cross-entropy times (1 - p_t)^gamma, with p_t the probability of the true class.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 4, without alpha. One loss per
    logit; ``targets`` are zeros and ones, ``gamma`` is at least 0.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma == 0:
        return losses
    # Via the logarithm of 1 - p_t: where p_t rounds to 1, the gradient of (1 - p_t)^gamma is not finite.
    return losses * torch.exp(gamma * F.logsigmoid(logits * (1 - 2 * targets)))


def multiclass_focal(logits: Tensor, grades: Tensor, gamma: float) -> Tensor:
    """Compute cross-entropy (B,) times (1 - p_t)^gamma; p_t is the softmax probability of the true grade."""
    losses = F.cross_entropy(logits, grades, reduction="none")
    if gamma == 0:
        return losses
    true = F.one_hot(grades, logits.shape[1]).bool()  # (B, G)
    others = torch.logsumexp(logits.masked_fill(true, -torch.inf), dim=1)  # log of the numerator of 1 - p_t
    return losses * torch.exp(gamma * (others - torch.logsumexp(logits, dim=1)))
