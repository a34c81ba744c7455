"""The linear probe: a head without hidden layer, fitted to its optimum on frozen features."""

import copy
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.grades import NUM_GRADES
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.heads import Head, RegressionHead
from drgrade.models.probes import FittedHead

log = logging.getLogger(__name__)

_MAX_STEPS = 1000
"""Maximum number of L-BFGS steps; usually a tenth of them suffices."""

_GRADIENT_TOLERANCE = 1e-3
"""Largest gradient component at an optimum; for smaller penalties, the penalty. Where the loss is flat, the
penalty alone curves the objective, and a gradient g leaves the weights g / penalty away from the optimum."""

_CONSTANT = 1e-5
"""Features with a standard deviation below this fraction of their mean are constant up to rounding."""


class LinearProbe(FittedHead):
    """One linear layer with the loss and prediction rule of any head, and an L2 penalty.

    Minimises ``training loss + penalty / 2 * |weights|^2`` over features standardised by the labelled
    photographs; intercepts are not penalised. With the softmax head this is multinomial logistic regression,
    in scikit-learn with ``C = 1 / (penalty * N)``. Standardisation is folded into the layer, so the result is
    an ordinary head. Class weights, focusing and fitted thresholds are those of the head.
    """

    def __init__(
        self,
        in_features: int,
        head: Callable[..., Head],
        penalty: float | None = None,
        penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        num_grades: int = NUM_GRADES,
    ) -> None:
        """Build the head.

        Args:
            in_features: Length D of the feature vectors.
            head: Builds the head from a number of features and ``hidden=0``.
            penalty: The penalty; None to select it.
            penalties: Candidates; the one with the highest quadratic weighted kappa on the validation
                photographs is selected, the largest of several. Without validation photographs it is the
                middle one.
            num_grades: Number of grades.

        Raises:
            ConfigError: If a penalty is negative or infinite, there is none, or the head is not linear.
        """
        super().__init__(num_grades)
        chosen = list(penalties) if penalty is None else [penalty]
        if not chosen or not all(map(_is_penalty, chosen)):
            raise ConfigError(
                f"protocol.probe.penalty={penalty}, protocol.probe.penalties={list(penalties)}: give "
                "at least one penalty, a finite number of at least 0"
            )
        self.penalties = sorted(map(float, chosen), reverse=True)
        self.head = head(in_features, hidden=0)
        layers = [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)]
        if len(layers) != 1 or layers[0].in_features != in_features:
            raise ConfigError(
                f"a linear probe needs a head of one linear layer, {type(self.head).__name__} has others"
            )
        self.fits_thresholds = self.head.fits_thresholds

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Fit by full-batch L-BFGS; see :meth:`FittedHead.fit`.

        Raises:
            ConfigError: If thresholds are to be fitted without validation photographs.
        """
        validation = None if val_features is None or val_grades is None else (val_features, val_grades)
        if self.fits_thresholds and validation is None:
            raise ConfigError(
                "head.thresholds=fitted needs validation photographs that the probe may use: set "
                "protocol.probe_sees_val=true and protocol.val_fraction above 0, or head.thresholds=half"
            )
        if self.head.weighting != "none":
            self.head.set_counts(torch.bincount(grades, minlength=self.num_grades))
        scaling = _Standardisation(features)
        model = copy.deepcopy(self.head).double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        selected = self._select(model, scaling, (features, grades), validation)
        scaling.fold_into(_linear(model))
        self.head.load_state_dict(model.state_dict())  # rounded to the head's own precision
        if validation is not None and self.fits_thresholds:
            with torch.no_grad():
                self.fit_thresholds(self(validation[0]), validation[1])
        return {"penalty": selected}

    def _select(
        self,
        model: Head,
        scaling: "_Standardisation",
        labelled: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor] | None,
    ) -> float:
        """Fit a head with each penalty, from the optimum of the next larger one, and keep the best."""
        penalties = self.penalties if validation else [self.penalties[len(self.penalties) // 2]]
        best, selected, kept = -torch.inf, penalties[0], model.state_dict()
        features, grades = scaling(labelled[0]), labelled[1]
        for penalty in penalties:
            _minimise(model, features, grades, penalty)
            qwk = _qwk(model, scaling(validation[0]), validation[1]) if validation else 0.0
            if qwk > best:
                best, selected = qwk, penalty
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(kept)
        return selected

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits of the head; see :meth:`Head.forward`."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.to(_linear(self.head).weight.dtype))
        return logits

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Delegate to the head; see :meth:`Head.loss`."""
        return self.head.loss(logits, grades)

    def loss_terms(self, grades: Tensor) -> int:
        """Delegate to the head; see :meth:`Head.loss_terms`."""
        return self.head.loss_terms(grades)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Delegate to the head; see :meth:`Head.probabilities`."""
        return self.head.probabilities(logits)

    def severity(self, logits: Tensor) -> Tensor:
        """Delegate to the head; see :meth:`Head.severity`."""
        return self.head.severity(logits)

    def predict(self, logits: Tensor) -> Tensor:
        """Delegate to the head; see :meth:`Head.predict`."""
        return self.head.predict(logits)

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """Delegate to the head; see :meth:`Head.predict_unfitted`."""
        return self.head.predict_unfitted(logits)

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """Delegate to the head; see :meth:`Head.fit_thresholds`."""
        assert isinstance(self.head, RegressionHead)
        self.head.fit_thresholds(logits, grades)


class _Standardisation:
    """Standardisation by the labelled photographs; features that are constant among them become 0."""

    def __init__(self, features: Tensor) -> None:
        wide = features.double()
        self.mean, deviation = wide.mean(dim=0), wide.std(dim=0, correction=0)
        varies = deviation > _CONSTANT * self.mean.abs()
        self.inverse = torch.where(varies, 1 / deviation, torch.zeros_like(deviation))

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.inverse

    def fold_into(self, layer: nn.Linear) -> None:
        """Convert a layer for standardised features into one for the original features."""
        with torch.no_grad():
            layer.weight.mul_(self.inverse)
            layer.bias.sub_(layer.weight @ self.mean)


def _is_penalty(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _linear(head: nn.Module) -> nn.Linear:
    return next(layer for layer in head.modules() if isinstance(layer, nn.Linear))


def _minimise(model: Head, features: Tensor, grades: Tensor, penalty: float) -> None:
    """Move a head to the optimum of its penalised loss on standardised features (N, D) float64."""
    parameters = list(model.parameters())
    tolerance = min(_GRADIENT_TOLERANCE, penalty) if penalty else _GRADIENT_TOLERANCE
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_STEPS,
        history_size=100,
        tolerance_grad=tolerance / 100,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )
    weight = _linear(model).weight

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.training_loss(model(features), grades).double() + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    steepest = max(float(each.grad.abs().max()) for each in parameters if each.grad is not None)
    if not steepest < tolerance:
        log.warning("the linear probe has not converged with penalty %g: gradient %.1e", penalty, steepest)


@torch.no_grad()
def _qwk(model: Head, features: Tensor, grades: Tensor) -> float:
    predicted = model.predict_unfitted(model(features))
    return float(quadratic_weighted_kappa(confusion_matrix(predicted, grades, model.num_grades)))
