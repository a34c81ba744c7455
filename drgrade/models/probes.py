"""Probes: heads fitted to frozen features in one go, instead of trained by steps.

Everything fitted is kept in buffers and parameters, so it is part of a checkpoint and a fitted probe is used
like any head. The linear probe is in :mod:`drgrade.models.linear_probe`.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.grades import NUM_GRADES
from drgrade.models.heads import Head

TEMPERATURE = 0.07
"""Temperature of the kNN votes, as in Wu et al. (CVPR 2018) and Caron et al. (DINO, ICCV 2021)."""

_MIN_SHARE = 1e-12
"""Lower bound of a share of votes, so that the loss is finite."""


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
            val_features: (M, D) of validation photographs for model selection, M at least 1; None for no
                selection.
            val_grades: (M,) int64.

        Returns:
            Selected hyper-parameters by name.
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the buffers to the number of labelled photographs of the checkpoint."""
        for name in self.sized_by_data:
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class VotingProbe(FittedHead):
    """Base class of probes whose logits are logarithms of probabilities."""

    def loss(self, logits: Tensor, grades: Tensor) -> Tensor:
        """Compute the cross-entropy; see :meth:`Head.loss`."""
        return F.cross_entropy(logits.float(), grades)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute the softmax, which inverts the logarithm; see :meth:`Head.probabilities`."""
        return torch.softmax(logits.float(), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the most probable grade, the lowest of several; see :meth:`Head.predict`."""
        return logits.argmax(dim=1)


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

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
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
    """Compute the votes of the nearest photographs of a bank, weighted as in :class:`KnnProbe`.

    Args:
        features: (N, D) of the photographs to grade.
        bank: (M, D) of graded photographs.
        grades: (M,) int64, 0 to ``num_grades`` - 1.
        neighbours: Number of neighbours, 1 to M.
        num_grades: Number of grades.

    Returns:
        (N, num_grades) float32, share of the votes of each grade; rows with sum 1.
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
    Euclidean distances to the prototypes. As the features were not learnt for this and have no natural scale,
    distances are divided by the root mean square distance of the labelled photographs from their common mean:
    this affects the probabilities, but not which prototype is nearest.
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

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
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
    """Baseline that predicts the most frequent training grade for every photograph.

    Its probabilities are the shares of the grades among the labelled photographs.
    """

    needs_features = False
    shares: Tensor

    def __init__(self, in_features: int, num_grades: int = NUM_GRADES) -> None:
        """Create the probe; ``in_features`` is not used."""
        super().__init__(num_grades)
        self.register_buffer("shares", torch.zeros(num_grades))

    def fit(
        self,
        features: Tensor,
        grades: Tensor,
        val_features: Tensor | None = None,
        val_grades: Tensor | None = None,
    ) -> dict[str, float]:
        """Count the grades; see :meth:`FittedHead.fit`."""
        counts = torch.bincount(grades, minlength=self.num_grades).double()
        self.shares = (counts / counts.sum()).to(self.shares)
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """Return the same logarithms for every photograph; see :meth:`Head.forward`."""
        return self.shares.clamp(min=_MIN_SHARE).log().expand(len(features), -1)
