"""Exemplar networks (Dosovitskiy et al., NeurIPS 2014) as triplets (Taleb et al., NeurIPS 2020).

Dosovitskiy et al. make a class of every image and its transformed versions. With a triplet loss no layer
grows with the number of photographs: a photograph is to lie nearer to a transformed version of itself than to
another photograph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.projection import FEWEST, embed, full_precision, mlp, of_all_processes, require_company

NEGATIVES = ("semi_hard", "random")


class Exemplar(Pretext):
    """A photograph nearer to a transformed version of itself than to another photograph, by a margin.

    In training the other photographs are those of all processes; in validation those of the process' own
    batch.
    """

    scores = ("accuracy", "active")
    num_views = 2
    encoder_inputs = 2.0
    fewest = FEWEST

    def __init__(
        self,
        encoder: Encoder,
        hidden: Sequence[int] = (),
        embedding: int = 128,
        margin: float = 0.2,
        negatives: str = "semi_hard",
        batch_norm: bool = False,
    ) -> None:
        """Build the head.

        Args:
            encoder: What is to be trained; any encoder can carry the task.
            hidden: Widths of the head's hidden layers.
            embedding: Length of what is compared.
            margin: By how much the squared distance of the negative has to be the larger, in (0, 4]: squared
                distances of unit vectors are at most 4.
            negatives: Which other photograph: ``semi_hard`` (:func:`semi_hard`) or ``random``.
            batch_norm: Normalise every layer of the head.

        Raises:
            ConfigError: If a value is out of range.
        """
        super().__init__()
        if not 0 < margin <= 4:
            raise ConfigError(f"pretext.head.margin={margin} is not in (0, 4]")
        if negatives not in NEGATIVES:
            raise ConfigError(f"pretext.head.negatives={negatives} is none of {', '.join(NEGATIVES)}")
        self.head = mlp([encoder.num_features, *hidden, embedding], batch_norm)
        self.margin, self.negatives = margin, negatives

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`; the first view is the photograph, the second its transformed version.

        ``accuracy``: of all triplets there are, each other photograph as the negative, the share in which the
        transformed version is the nearer; chance is 0.5. ``active``: of the triplets that were chosen, the
        share that is not yet apart by the margin and so teaches something.

        Raises:
            ConfigError: If there is but one photograph.
        """
        with full_precision(*embed(encoder, self.head, views)) as embeddings:
            anchor, positive = (functional.normalize(each, dim=1) for each in embeddings)
            everyone, start = of_all_processes(anchor) if self.training else (anchor, 0)
            require_company("exemplar", len(everyone))
            near = 2 - 2 * (anchor * positive).sum(dim=1)  # (B,) squared distances
            far = 2 - 2 * anchor @ everyone.T  # (B, M)
            itself = torch.zeros_like(far, dtype=torch.bool)
            itself[:, start : start + len(far)].fill_diagonal_(True)
            excess = functional.relu(
                near - far.gather(1, self._chosen(near, far, itself))[:, 0] + self.margin
            )
            right = (near[:, None] < far)[~itself]
            return excess.mean(), {"accuracy": right.float().mean(), "active": (excess > 0).float().mean()}

    def _chosen(self, near: Tensor, far: Tensor, itself: Tensor) -> Tensor:
        if self.negatives == "semi_hard":
            return semi_hard(near.detach(), far.detach(), itself)
        chances = (~itself).to(far.dtype)
        return torch.multinomial(chances, 1, generator=self.generator(far.device))


def semi_hard(near: Tensor, far: Tensor, itself: Tensor) -> Tensor:
    """The nearest of the negatives that lie further away than the positive (Schroff et al., CVPR 2015).

    Random negatives are soon all apart by the margin and teach nothing. The hardest ones of all make every
    embedding the same in their experiments; on fundus photographs they are also the other photographs of the
    same eye, and the fellow eye.

    Args:
        near: (B,) distance of each anchor to its positive.
        far: (B, M) distance of each anchor to every photograph.
        itself: (B, M) True where that is the anchor's own; every row has one that is False.

    Returns:
        (B, 1) columns of ``far``; the furthest negative where none lies further away than the positive.
    """
    further = far.masked_fill(itself | (far <= near[:, None]), torch.inf)
    found, nearest = further.min(dim=1, keepdim=True)
    furthest = far.masked_fill(itself, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.where(found.isfinite(), nearest, furthest)
