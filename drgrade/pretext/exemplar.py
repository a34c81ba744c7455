"""Exemplar networks (Dosovitskiy et al., NeurIPS 2014) with a triplet loss (Taleb et al., NeurIPS 2020).

Dosovitskiy et al. treat every image and its transformed versions as one class. With a triplet loss no layer
grows with the number of photographs: a photograph must be nearer to a transformed version of itself than to
another photograph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD
from drgrade.pretext.contrastive import ContrastivePretext, embed, full_precision, projection_head

NEGATIVES = ("semi_hard", "random")


class Exemplar(ContrastivePretext):
    """Separate a photograph and its transformed version from other photographs by a margin.

    In training the other photographs come from all processes, in validation from the batch of the process.
    """

    scores = ("accuracy", "active")

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
            encoder: Any encoder.
            hidden: Widths of the hidden layers of the head.
            embedding: Length of the embeddings.
            margin: Required difference of squared distances between unit vectors, in (0, 4].
            negatives: Choice of the other photograph: ``semi_hard`` (:func:`semi_hard`) or ``random``.
            batch_norm: Normalise every layer of the head.
        """
        super().__init__()
        check_range("(0, 4]", HEAD, margin=margin)
        if negatives not in NEGATIVES:
            raise ConfigError(f"{HEAD}negatives={negatives} is not one of {', '.join(NEGATIVES)}")
        self.head = projection_head([encoder.num_features, *hidden, embedding], batch_norm)
        self.margin, self.negatives = margin, negatives

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the triplet loss; see :class:`Pretext`.

        The first view is the photograph, the second its transformed version. ``accuracy`` is the share of all
        triplets, with every other photograph as the negative, in which the transformed version is the nearer
        one; chance is 0.5. ``active`` is the share of the chosen triplets that violate the margin and so
        contribute to the loss.
        """
        with full_precision(*embed(encoder, self.head, views)) as embeddings:
            anchor, positive = (functional.normalize(each, dim=1) for each in embeddings)
            candidates, start = self.gather(anchor)
            near = 2 - 2 * (anchor * positive).sum(dim=1)  # (B,) squared distances
            far = 2 - 2 * anchor @ candidates.T  # (B, M)
            itself = torch.zeros_like(far, dtype=torch.bool)
            itself[:, start : start + len(far)].fill_diagonal_(True)
            chosen = far.gather(1, self.choose_negatives(near, far, itself))[:, 0]
            excess = functional.relu(near - chosen + self.margin)
            correct = (near[:, None] < far)[~itself]
            return excess.mean(), {
                "accuracy": correct.float().mean(),
                "active": (excess > 0).float().mean(),
            }

    def choose_negatives(self, near: Tensor, far: Tensor, itself: Tensor) -> Tensor:
        """Choose a negative for each anchor; see :func:`semi_hard` for arguments and result."""
        if self.negatives == "semi_hard":
            return semi_hard(near.detach(), far.detach(), itself)
        weights = (~itself).to(far.dtype)
        return torch.multinomial(weights, 1, generator=self.generator(far.device))


def semi_hard(near: Tensor, far: Tensor, itself: Tensor) -> Tensor:
    """Choose the nearest of the negatives that are further away than the positive, else the furthest.

    This is the semi-hard negative of Schroff et al., CVPR 2015. Random negatives soon satisfy the margin and
    contribute nothing. The hardest negatives collapsed the embeddings in their experiments; on fundus
    photographs these are often other photographs of the same eye, or the fellow eye.

    Args:
        near: (B,) distance of each anchor to its positive.
        far: (B, M) distance of each anchor to every photograph.
        itself: (B, M) True at the anchor's own photograph; every row has at least one False.

    Returns:
        (B, 1) columns of ``far``.
    """
    further = far.masked_fill(itself | (far <= near[:, None]), torch.inf)
    found, nearest = further.min(dim=1, keepdim=True)
    furthest = far.masked_fill(itself, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.where(found.isfinite(), nearest, furthest)
