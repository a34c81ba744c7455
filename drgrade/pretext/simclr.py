"""SimCLR (Chen et al., ICML 2020): find the other view of the same photograph among all views of a batch."""

from collections.abc import Sequence

import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional

from drgrade.errors import check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD
from drgrade.pretext.contrastive import (
    ContrastivePretext,
    embed,
    full_precision,
    gather_rows,
    projection_head,
)


class SimCLR(ContrastivePretext):
    """Pull the two views of a photograph together and away from the views of all others (NT-Xent loss).

    In training the others come from all processes, in validation from the batch of the process. Validation
    scores therefore depend on the batch size.
    """

    scores = ("accuracy",)

    def __init__(
        self,
        encoder: Encoder,
        hidden: Sequence[int] | None = None,
        embedding: int = 128,
        temperature: float = 0.5,
        batch_norm: bool = True,
    ) -> None:
        """Build the head.

        Args:
            encoder: Any encoder.
            hidden: Widths of the hidden layers of the head; None for one as wide as the features, as in the
                paper.
            embedding: Length of the embeddings.
            temperature: Divisor of the cosine similarities, above 0.
            batch_norm: Normalise every layer of the head.
        """
        super().__init__()
        check_range("(0, inf)", HEAD, temperature=temperature)
        width = encoder.num_features
        self.head = projection_head([width, *([width] if hidden is None else hidden), embedding], batch_norm)
        # lightly's gather_distributed=True indexes a CPU mask with CUDA indices (1.6), so views are gathered
        # here.
        self._loss = NTXentLoss(temperature)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss; see :class:`Pretext`.

        ``accuracy`` is the share of views whose partner is nearer than all other views.
        """
        with full_precision(*embed(encoder, self.head, views)) as (first, second):
            pairs = torch.stack([first, second], dim=1).detach()  # (B, 2, P)
            all_pairs, start = self.gather(pairs)
            if self.training:
                # Every process computes the loss of the joined batch. The gather sums the gradients of all
                # processes, and DDP divides by their number.
                first, second = (gather_rows(each)[0] for each in (first, second))
            loss: Tensor = self._loss(first, second)
            return loss, {"accuracy": partner_accuracy(pairs, all_pairs, start)}


def partner_accuracy(pairs: Tensor, all_pairs: Tensor, start: int = 0) -> Tensor:
    """Compute how often the other view of a photograph is nearer than every view of all other photographs.

    Args:
        pairs: (B, 2, P), embeddings of the two views of each photograph.
        all_pairs: (M, 2, P), embeddings of all photographs, including these.
        start: Index of the first of these photographs.

    Returns:
        Scalar, a share of the 2B views. Views are compared by their cosine, and a tie counts as an error.
    """
    own, others = (functional.normalize(each, dim=-1).flatten(0, 1) for each in (pairs, all_pairs))
    cosines = own @ others.T  # (2B, 2M); view v of photograph i in row 2i + v
    rows = torch.arange(len(own), device=own.device)
    itself, partner = 2 * start + rows, 2 * start + (rows ^ 1)
    cosines[rows, itself] = -torch.inf
    with_partner = cosines[rows, partner]
    cosines[rows, partner] = -torch.inf
    return (with_partner > cosines.amax(dim=1)).float().mean()
