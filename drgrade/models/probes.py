"""Probes: heads that are fitted to frozen features at once, instead of trained by steps.

What is fitted is kept in buffers and parameters, so that a checkpoint holds it and a fitted probe can be used
like any head. :mod:`drgrade.models.linear_probe` has the linear one.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.heads import NUM_GRADES, Head
from drgrade.models.neighbours import TEMPERATURE, shares_of_nearest

_NEVER = 1e-12
"""Probability of what has no vote at all, so that its loss is finite."""


class FittedHead(Head):
    """A head that is fitted to the features of all labelled photographs.

    Attributes:
        needs_features: Whether the features mean anything to it; if not, nobody has to compute them.
        sized_by_data: Buffers whose first dimension is the number of labelled photographs.
    """

    needs_features: ClassVar[bool] = True
    sized_by_data: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_grades: int) -> None:
        """Make a head without layers; it has to be fitted, or loaded, before it is used.

        Args:
            num_grades: How many grades there are.
        """
        nn.Module.__init__(self)  # a probe has none of the layers that `Head` builds, and no training loss
        self.num_grades, self.weighting, self._gamma = num_grades, "none", 0.0

    @abstractmethod
    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Fit to labelled photographs.

        Args:
            features: (N, D) float32, N at least 1.
            grades: (N,) int64, 0 to ``num_grades`` - 1.
            val_features: (M, D) of photographs to choose settings by, M at least 1; None: choose nothing.
            val_grades: (M,) int64.

        Returns:
            What it has settled on, by name; empty if there was nothing to settle.
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for as many labelled photographs as the checkpoint has."""
        for name in self.sized_by_data:
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class VotingProbe(FittedHead):
    """A probe whose logits are the logarithms of probabilities."""

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Cross-entropy; see `Head.loss`."""
        return F.cross_entropy(logits.float(), grades)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax, which for logarithms of probabilities gives these back; see `Head.probabilities`."""
        return torch.softmax(logits.float(), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """The most probable grade, of equal ones the lowest; see `Head.predict`."""
        return logits.argmax(dim=1)


class KnnProbe(VotingProbe):
    """The nearest labelled photographs vote, each weighted by exp(cosine similarity / temperature).

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section
    3.4, as DINO uses it (Caron et al., ICCV 2021): k = 20, temperature 0.07.
    """

    sized_by_data = ("bank", "votes")
    bank: Tensor
    votes: Tensor

    def __init__(
        self, in_features: int, k: int = 20, temperature: float = TEMPERATURE, num_grades: int = NUM_GRADES
    ) -> None:
        """Make the probe.

        Args:
            in_features: Length D of the feature vectors.
            k: Neighbours that vote; all labelled photographs if there are fewer.
            temperature: Of the weights, above 0.
            num_grades: How many grades there are.

        Raises:
            ConfigError: If `k` or `temperature` is out of range.
        """
        super().__init__(num_grades)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"protocol.probe.k={k} is not a whole number of at least 1")
        if not temperature > 0:
            raise ConfigError(f"protocol.probe.temperature={temperature} is not above 0")
        self.k, self.temperature = k, temperature
        self.register_buffer("bank", torch.zeros(0, in_features))  # (N, D), of length 1 each
        self.register_buffer("votes", torch.zeros(0, num_grades))  # (N, G), one-hot

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Remember the photographs; see `FittedHead.fit`."""
        self.bank = F.normalize(features, dim=1).to(self.bank)
        self.votes = F.one_hot(grades, self.num_grades).to(self.votes)
        return {"k": float(min(self.k, len(grades)))}

    def forward(self, features: Tensor) -> Tensor:
        """Logarithms of the shares of the votes; see `Head.forward`."""
        # Under autocast the similarities would be rounded to two or three digits.
        with torch.autocast(features.device.type, enabled=False):
            similarities = F.normalize(features.to(self.bank), dim=1) @ self.bank.T  # (B, N)
            neighbours = min(self.k, len(self.bank))
            shares = shares_of_nearest(similarities, self.votes, neighbours, self.temperature)  # (B, G)
        return shares.clamp(min=_NEVER).log()


class PrototypeProbe(VotingProbe):
    """The nearest class mean.

    Snell, Swersky and Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017: the prototype of a
    grade is the mean of the features of its labelled photographs, and the logits are minus the squared
    Euclidean distances to the prototypes. Features that were not learnt for it have no unit in which one is
    far, so distances are measured in the root mean square distance of the labelled photographs from their
    common mean: this changes the probabilities, and never which prototype is nearest.
    """

    prototypes: Tensor
    present: Tensor
    unit: Tensor

    def __init__(self, in_features: int, num_grades: int = NUM_GRADES) -> None:
        """Make the probe.

        Args:
            in_features: Length D of the feature vectors.
            num_grades: How many grades G there are.
        """
        super().__init__(num_grades)
        self.register_buffer("prototypes", torch.zeros(num_grades, in_features))
        self.register_buffer("present", torch.zeros(num_grades, dtype=torch.bool))
        self.register_buffer("unit", torch.ones(()))

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Take the means; see `FittedHead.fit`."""
        members = F.one_hot(grades, self.num_grades).double()  # (N, G)
        counts = members.sum(dim=0)  # (G,)
        means = members.T @ features.double() / counts.clamp(min=1)[:, None]  # (G, D)
        spread = (features.double() - features.double().mean(dim=0)).square().sum(dim=1).mean()
        self.prototypes, self.present = means.to(self.prototypes), counts > 0
        self.unit = (spread.sqrt() if spread > 0 else torch.ones(())).to(self.unit)
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """Log-softmax of minus the squared distances; see `Head.forward`.

        A grade without a labelled photograph has no prototype and is never predicted.
        """
        with torch.autocast(features.device.type, enabled=False):
            # Differences, not the product formula: it cancels where features are far from 0 and alike.
            apart = (features.to(self.prototypes)[:, None] - self.prototypes) / self.unit  # (B, G, D)
            logits = -apart.square().sum(dim=2)
            shares = torch.softmax(logits.masked_fill(~self.present, -torch.inf), dim=1)
        return shares.clamp(min=_NEVER).log()


class MajorityProbe(VotingProbe):
    """The most frequent training grade, whatever the photograph: what a figure has to beat.

    Its probabilities are the shares of the grades among the labelled photographs.
    """

    needs_features = False
    shares: Tensor

    def __init__(self, in_features: int, num_grades: int = NUM_GRADES) -> None:
        """Make the probe.

        Args:
            in_features: Length of the feature vectors, which are not looked at.
            num_grades: How many grades there are.
        """
        super().__init__(num_grades)
        self.register_buffer("shares", torch.zeros(num_grades))

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Count; see `FittedHead.fit`."""
        counts = torch.bincount(grades, minlength=self.num_grades).double()
        self.shares = (counts / counts.sum()).to(self.shares)
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """The same logarithms for every photograph; see `Head.forward`."""
        return self.shares.clamp(min=_NEVER).log().expand(len(features), -1)
