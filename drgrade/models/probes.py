"""Probes: heads fitted to frozen features in one go, instead of trained by steps.

Everything fitted is kept in buffers and parameters, so a fitted probe is saved and used like any head.
"""

import copy
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.artefacts import is_number
from drgrade.errors import ConfigError
from drgrade.grades import NUM_GRADES
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.heads import Head, SoftmaxHead

log = logging.getLogger(__name__)

TEMPERATURE = 0.07
"""Temperature of the kNN votes, as in Wu et al. (CVPR 2018) and Caron et al. (DINO, ICCV 2021)."""

_MIN_SHARE = 1e-12
"""Lower bound of a share of votes, so that the loss is finite."""

_MAX_STEPS = 1000
"""Maximum number of L-BFGS steps; usually a tenth of them suffices."""

_GRADIENT_TOLERANCE = 1e-3
"""Largest gradient component at an optimum; for smaller penalties, the penalty. Where the loss is flat, the
penalty alone curves the objective, and a gradient g leaves the weights g / penalty away from the optimum."""

_CONSTANT = 1e-5
"""Features with a standard deviation below this fraction of their mean are constant up to rounding."""


Graded = tuple[Tensor, Tensor]
"""Features (N, D) and grades (N,) int64."""


class FittedHead(Head):
    """Base class: a head fitted to the features of all labelled photographs.

    Attributes:
        needs_features: Whether the features are used; if not, they need not be computed.
        sized_by_data: Buffers whose first dimension is the number of labelled photographs.
    """

    needs_features: ClassVar[bool] = True
    sized_by_data: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_grades: int) -> None:
        """Create a head without layers; it must be fitted or loaded before use."""
        nn.Module.__init__(self)  # skips the layers and the training loss of `Head`
        self.num_grades, self.weighting, self._gamma = num_grades, "none", 0.0

    @abstractmethod
    def fit(self, features: Tensor, grades: Tensor, validation: Graded | None = None) -> dict[str, float]:
        """Fit to labelled photographs.

        Args:
            features: (N, D) float32, N at least 1.
            grades: (N,) int64, 0 to ``num_grades`` - 1.
            validation: Features and grades of at least one validation photograph, for model selection; None
                for no selection.

        Returns:
            Selected hyper-parameters by name.
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the buffers to the number of labelled photographs of the checkpoint."""
        stored = [state_dict.get(prefix + name) for name in self.sized_by_data]
        if len({None if each is None else each.shape[:1] for each in stored}) == 1:
            for name, given in zip(self.sized_by_data, stored, strict=True):
                own = getattr(self, name)
                if given is not None and given.shape[1:] == own.shape[1:]:
                    setattr(self, name, own.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class VotingProbe(FittedHead, SoftmaxHead):
    """Base class of probes whose logits are logarithms of probabilities, which the softmax inverts."""


class KnnProbe(VotingProbe):
    """k-nearest-neighbour classifier with votes weighted by exp(cosine similarity / temperature).

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section
    3.4, as in DINO (Caron et al., ICCV 2021): k = 20, temperature 0.07.
    """

    sized_by_data = ("bank", "votes")
    bank: Tensor
    votes: Tensor

    def __init__(
        self, in_features: int, k: int = 20, temperature: float = TEMPERATURE, num_grades: int = NUM_GRADES
    ) -> None:
        """Create the probe.

        Args:
            in_features: Length D of the feature vectors.
            k: Number of neighbours; at most all labelled photographs are used.
            temperature: Temperature of the weights, above 0.
            num_grades: Number of grades G.

        Raises:
            ConfigError: If ``k`` or ``temperature`` is out of range.
        """
        super().__init__(num_grades)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"protocol.probe.k={k} is not a whole number of at least 1")
        if not temperature > 0:
            raise ConfigError(f"protocol.probe.temperature={temperature} is not above 0")
        self.k, self.temperature = k, temperature
        self.register_buffer("bank", torch.zeros(0, in_features))  # (N, D), of unit length
        self.register_buffer("votes", torch.zeros(0, num_grades))  # (N, G), one-hot

    def fit(self, features: Tensor, grades: Tensor, validation: Graded | None = None) -> dict[str, float]:
        """Store the photographs; see :meth:`FittedHead.fit`."""
        self.bank = F.normalize(features, dim=1).to(self.bank)
        self.votes = F.one_hot(grades, self.num_grades).to(self.votes)
        return {"k": float(min(self.k, len(grades)))}

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logarithms of the shares of votes; see :meth:`Head.forward`."""
        # Autocast would round the similarities to two or three digits.
        with torch.autocast(features.device.type, enabled=False):
            similarities = F.normalize(features.to(self.bank), dim=1) @ self.bank.T  # (B, N)
            shares = _vote(similarities, self.votes, min(self.k, len(self.bank)), self.temperature)  # (B, G)
        return shares.clamp(min=_MIN_SHARE).log()


def knn_shares(
    features: Tensor, bank: Tensor, grades: Tensor, neighbours: int, num_grades: int = NUM_GRADES
) -> Tensor:
    """Compute the shares of votes (N, G) of the nearest photographs, weighted as in :class:`KnnProbe`.

    Args:
        features: (N, D) of the photographs to grade.
        bank: (M, D) of graded photographs.
        grades: (M,) int64, 0 to G - 1.
        neighbours: Number of neighbours, 1 to M.
        num_grades: Number of grades G.
    """
    similarity = F.normalize(features.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    return _vote(similarity, F.one_hot(grades, num_grades).float(), neighbours, TEMPERATURE)


def _vote(similarity: Tensor, votes: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Return shares (N, G) of the one-hot votes (M, G), weighted by similarity (N, M)."""
    nearest = similarity.topk(neighbours, dim=1)
    # The shares are divided by the sum of the weights, which softmax does without overflow.
    weights = torch.softmax(nearest.values / temperature, dim=1)  # (N, neighbours)
    return (weights[:, :, None] * votes[nearest.indices]).sum(dim=1)


class PrototypeProbe(VotingProbe):
    """Nearest-class-mean classifier.

    Snell, Swersky and Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017: the prototype of a
    grade is the mean of the features of its labelled photographs, and the logits are minus the squared
    Euclidean distances to the prototypes. Distances are divided by the root mean square distance of the
    labelled photographs from their common mean, because features that were not learnt for this have no
    natural scale; this affects the probabilities, but not which prototype is nearest.
    """

    prototypes: Tensor
    present: Tensor
    unit: Tensor

    def __init__(self, in_features: int, num_grades: int = NUM_GRADES) -> None:
        """Create the probe for features of length ``in_features``."""
        super().__init__(num_grades)
        self.register_buffer("prototypes", torch.zeros(num_grades, in_features))
        self.register_buffer("present", torch.zeros(num_grades, dtype=torch.bool))
        self.register_buffer("unit", torch.ones(()))

    def fit(self, features: Tensor, grades: Tensor, validation: Graded | None = None) -> dict[str, float]:
        """Compute the class means; see :meth:`FittedHead.fit`."""
        members = F.one_hot(grades, self.num_grades).double()  # (N, G)
        counts = members.sum(dim=0)  # (G,)
        means = members.T @ features.double() / counts.clamp(min=1)[:, None]  # (G, D)
        spread = (features.double() - features.double().mean(dim=0)).square().sum(dim=1).mean()
        self.prototypes, self.present = means.to(self.prototypes), counts > 0
        self.unit = (spread.sqrt() if spread > 0 else torch.ones(())).to(self.unit)
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """Compute the log-softmax of minus the squared distances; see :meth:`Head.forward`.

        A grade without a labelled photograph has no prototype and is never predicted.
        """
        with torch.autocast(features.device.type, enabled=False):
            # Differences, not the product formula, which cancels for similar features far from 0.
            apart = (features.to(self.prototypes)[:, None] - self.prototypes) / self.unit  # (B, G, D)
            logits = -apart.square().sum(dim=2)
            shares = torch.softmax(logits.masked_fill(~self.present, -torch.inf), dim=1)
        return shares.clamp(min=_MIN_SHARE).log()


class MajorityProbe(VotingProbe):
    """Baseline that predicts the most frequent training grade; its probabilities are the grades' shares."""

    needs_features = False
    shares: Tensor

    def __init__(self, in_features: int, num_grades: int = NUM_GRADES) -> None:
        """Create the probe; ``in_features`` is not used."""
        super().__init__(num_grades)
        self.register_buffer("shares", torch.zeros(num_grades))

    def fit(self, features: Tensor, grades: Tensor, validation: Graded | None = None) -> dict[str, float]:
        """Count the grades; see :meth:`FittedHead.fit`."""
        counts = torch.bincount(grades, minlength=self.num_grades).double()
        self.shares = (counts / counts.sum()).to(self.shares)
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """Return the same logarithms for every photograph; see :meth:`Head.forward`."""
        return self.shares.clamp(min=_MIN_SHARE).log().expand(len(features), -1)


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
                photographs is selected, the largest of several; without validation, the middle one.
            num_grades: Number of grades.

        Raises:
            ConfigError: If a penalty is negative or infinite, there is none, or the head is not linear.
        """
        super().__init__(num_grades)
        chosen = list(penalties) if penalty is None else [penalty]
        if not chosen or not all(is_number(each, 0) for each in chosen):
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

    def fit(self, features: Tensor, grades: Tensor, validation: Graded | None = None) -> dict[str, float]:
        """Fit by full-batch L-BFGS; see :meth:`FittedHead.fit`.

        Raises:
            ConfigError: If thresholds are to be fitted without validation photographs.
        """
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
                self.head.fit_thresholds(self(validation[0]), validation[1])
        return {"penalty": selected}

    def _select(
        self, model: Head, scaling: "_Standardisation", labelled: Graded, validation: Graded | None
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
