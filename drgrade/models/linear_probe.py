"""The linear probe: a head without hidden layer, fitted to its optimum on frozen features."""

import copy
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.metrics import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.heads import NUM_GRADES, Head, RegressionHead
from drgrade.models.probes import FittedHead

log = logging.getLogger(__name__)

_STEPS = 1000
"""Most steps of L-BFGS; it is mostly at the optimum after a tenth of them."""

_AT_MOST = 1e-3
"""Largest component of the gradient that counts as the optimum; at penalties below it, the penalty. Where the
loss is flat, the penalty alone bends the objective, and a gradient g leaves the weights g / penalty away."""

_FLAT = 1e-5
"""Features whose standard deviation is a smaller share of their mean are constant up to rounding."""


class LinearProbe(FittedHead):
    """One linear layer with any head's loss and reading, an L2 penalty, and the optimum of both together.

    Minimises ``training loss + penalty / 2 * |weights|^2`` over features with mean 0 and standard deviation 1
    (the labelled photographs'); intercepts are not penalised. With the softmax head that is multinomial
    logistic regression, scikit-learn's with ``C = 1 / (penalty * N)``. Standardisation is folded into the
    layer, so that what is kept is an ordinary head. Weights of the grades and focusing are the head's, and so
    are fitted thresholds.
    """

    def __init__(
        self,
        in_features: int,
        head: Callable[..., Head],
        penalty: float | None = None,
        penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        num_grades: int = NUM_GRADES,
    ) -> None:
        """Make the head.

        Args:
            in_features: Length D of the feature vectors.
            head: Makes the head for a number of features; it is asked for one without hidden layer.
            penalty: The penalty; None to choose it.
            penalties: To choose from, by the quadratic weighted kappa of the validation photographs (of equal
                ones the largest penalty); without validation photographs the middle one is taken.
            num_grades: How many grades there are.

        Raises:
            ConfigError: If a penalty is negative or infinite, or none is given, or the head is not linear.
        """
        super().__init__(num_grades)
        chosen = list(penalties) if penalty is None else [penalty]
        if not chosen or not all(map(_is_penalty, chosen)):
            raise ConfigError(
                f"protocol.probe.penalty={penalty}, protocol.probe.penalties={list(penalties)}: a penalty is "
                "a finite number of at least 0, and one at least has to be given"
            )
        self.penalties = sorted(map(float, chosen), reverse=True)
        self.head = head(in_features, hidden=0)
        layers = [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)]
        if len(layers) != 1 or layers[0].in_features != in_features:
            raise ConfigError(f"a linear probe needs one linear layer, {type(self.head).__name__} has others")
        self.fits_thresholds = self.head.fits_thresholds

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Fit by full-batch L-BFGS, each penalty from the optimum of the next larger one.

        See `FittedHead.fit`.

        Raises:
            ConfigError: If thresholds are to be fitted without validation photographs.
        """
        validation = None if val_features is None or val_grades is None else (val_features, val_grades)
        if self.fits_thresholds and validation is None:
            raise ConfigError(
                "head.thresholds=fitted needs validation photographs that the probe may see: "
                "protocol.probe_sees_val=true and protocol.val_fraction above 0, or head.thresholds=half"
            )
        if self.head.weighting != "none":
            self.head.set_counts(torch.bincount(grades, minlength=self.num_grades))
        scaling = _Scaling(features)
        model = copy.deepcopy(self.head).double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        settled = self._settle(model, scaling, (features, grades), validation)
        scaling.fold_into(_linear(model))
        self.head.load_state_dict(model.state_dict())  # rounded to the head's own precision
        if validation is not None and self.fits_thresholds:
            with torch.no_grad():
                self.fit_thresholds(self(validation[0]), validation[1])
        return {"penalty": settled}

    def _settle(
        self,
        model: Head,
        scaling: "_Scaling",
        labelled: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor] | None,
    ) -> float:
        """Bring a head to the optimum of the best penalty; returns that penalty."""
        penalties = self.penalties if validation else [self.penalties[len(self.penalties) // 2]]
        best, settled, kept = -torch.inf, penalties[0], model.state_dict()
        features, grades = scaling(labelled[0]), labelled[1]
        for penalty in penalties:
            _minimise(model, features, grades, penalty)
            qwk = _qwk(model, scaling(validation[0]), validation[1]) if validation else 0.0
            if qwk > best:
                best, settled = qwk, penalty
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(kept)
        return settled

    def forward(self, features: Tensor) -> Tensor:
        """The head's logits; see `Head.forward`."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.to(_linear(self.head).weight.dtype))
        return logits

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """The head's own; see `Head.loss`."""
        return self.head.loss(logits, grades)

    def loss_terms(self, grades: Tensor) -> int:
        """The head's own; see `Head.loss_terms`."""
        return self.head.loss_terms(grades)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The head's own; see `Head.probabilities`."""
        return self.head.probabilities(logits)

    def severity(self, logits: Tensor) -> Tensor:
        """The head's own; see `Head.severity`."""
        return self.head.severity(logits)

    def predict(self, logits: Tensor) -> Tensor:
        """The head's own; see `Head.predict`."""
        return self.head.predict(logits)

    def predict_unfitted(self, logits: Tensor) -> Tensor:
        """The head's own; see `Head.predict_unfitted`."""
        return self.head.predict_unfitted(logits)

    def fit_thresholds(self, logits: Tensor, grades: Tensor) -> None:
        """The head's own, for a head that has thresholds; see `RegressionHead.fit_thresholds`."""
        assert isinstance(self.head, RegressionHead)
        self.head.fit_thresholds(logits, grades)


class _Scaling:
    """Standardisation by the labelled photographs; features that are constant among them become 0."""

    def __init__(self, features: Tensor) -> None:
        wide = features.double()
        self.mean, deviation = wide.mean(dim=0), wide.std(dim=0, correction=0)
        varies = deviation > _FLAT * self.mean.abs()
        self.inverse = torch.where(varies, 1 / deviation, torch.zeros_like(deviation))

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.inverse

    def fold_into(self, layer: nn.Linear) -> None:
        """Let a layer for standardised features take features as they are."""
        with torch.no_grad():
            layer.weight.mul_(self.inverse)
            layer.bias.sub_(layer.weight @ self.mean)


def _is_penalty(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _linear(head: nn.Module) -> nn.Linear:
    return next(layer for layer in head.modules() if isinstance(layer, nn.Linear))


def _minimise(model: Head, features: Tensor, grades: Tensor, penalty: float) -> None:
    """Move a head to the optimum of its loss with a penalty.

    Args:
        model: Where to start; changed.
        features: (N, D) float64, standardised.
        grades: (N,) int64.
        penalty: At least 0.
    """
    parameters = list(model.parameters())
    converged = min(_AT_MOST, penalty) if penalty else _AT_MOST
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_STEPS,
        history_size=100,
        tolerance_grad=converged / 100,
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
    if not steepest < converged:
        log.warning(
            "the linear probe is not at its optimum with penalty %g: gradient %.1e", penalty, steepest
        )


@torch.no_grad()
def _qwk(model: Head, features: Tensor, grades: Tensor) -> float:
    predicted = model.predict_unfitted(model(features))
    return float(quadratic_weighted_kappa(confusion_matrix(predicted, grades, model.num_grades)))
