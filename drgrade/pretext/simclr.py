"""SimCLR (Chen et al., ICML 2020): which of all views is of the same photograph?"""

from collections.abc import Sequence

import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.projection import FEWEST, embed, full_precision, mlp, of_all_processes, require_company


class SimCLR(Pretext):
    """Bring the two views of a photograph together, and away from the views of all others (NT-Xent).

    In training the others are those of all processes; in validation those of the process' own batch, so that
    what is logged there depends on the size of the batch.
    """

    scores = ("accuracy",)
    num_views = 2
    encoder_inputs = 2.0
    fewest = FEWEST

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
            encoder: What is to be trained; any encoder can carry the task.
            hidden: Widths of the head's hidden layers; None for one that is as wide as the features, the
                published one.
            embedding: Length of what is compared.
            temperature: The similarities, which are cosines, are divided by it; above 0.
            batch_norm: Normalise every layer of the head.

        Raises:
            ConfigError: If a value is out of range.
        """
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"pretext.head.temperature={temperature} is not above 0")
        width = encoder.num_features
        self.head = mlp([width, *([width] if hidden is None else hidden), embedding], batch_norm)
        # Gathered here: with gather_distributed=True lightly 1.6 makes its mask on the CPU and indexes it by
        # numbers on the device, which CUDA refuses.
        self._loss = NTXentLoss(temperature)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`; ``accuracy`` is the share of views whose partner is nearer than all others.

        Raises:
            ConfigError: If there is but one photograph.
        """
        with full_precision(*embed(encoder, self.head, views)) as (first, second):
            pairs = torch.stack([first, second], dim=1).detach()  # (B, 2, P)
            everyone, start = of_all_processes(pairs) if self.training else (pairs, 0)
            require_company("simclr", len(everyone))
            if self.training:
                # Every process has the loss of the joined batch: the sum of its gradients, which the gather
                # brings back, over the number of processes is the gradient of that batch.
                first, second = (of_all_processes(each)[0] for each in (first, second))
            loss: Tensor = self._loss(first, second)
            return loss, {"accuracy": partner_nearest(pairs, everyone, start)}


def partner_nearest(pairs: Tensor, everyone: Tensor, start: int = 0) -> Tensor:
    """How often the other view of a photograph is nearer than every view of all other photographs.

    Args:
        pairs: (B, 2, P), embeddings of the two views of each photograph.
        everyone: (M, 2, P), the same of all photographs, these among them.
        start: Where these begin.

    Returns:
        Scalar, the share of the 2B views, nearness being the cosine; a tie is not nearer.
    """
    own, others = (functional.normalize(each, dim=-1).flatten(0, 1) for each in (pairs, everyone))
    cosines = own @ others.T  # (2B, 2M); view v of photograph i in row 2i + v
    rows = torch.arange(len(own), device=own.device)
    itself = 2 * start + rows
    partner = 2 * start + (rows ^ 1)
    cosines[rows, itself] = -torch.inf
    with_partner = cosines[rows, partner]
    cosines[rows, partner] = -torch.inf
    return (with_partner > cosines.amax(dim=1)).float().mean()
