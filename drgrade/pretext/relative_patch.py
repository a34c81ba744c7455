"""Relative patch location (Doersch et al., ICCV 2015; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, require_any_size
from drgrade.pretext.patches import Patches, classifier, encoded, require_grid

GRID, NEIGHBOURS, MIDDLE = 3, 8, 4


class RelativePatch(Pretext):
    """Tell which of the eight neighbours of the middle patch another patch is.

    Target 0 is the upper left neighbour, 1 the one above, and so on in reading order.
    """

    scores = ("accuracy",)

    def __init__(
        self,
        encoder: Encoder,
        patches: Patches,
        neighbours: int = NEIGHBOURS,
        hidden: Sequence[int] = (2048, 1024),
        dropout: float = 0.0,
    ) -> None:
        """Build the head.

        Args:
            encoder: What is to be trained; it must take images of any size.
            patches: Cuts 3 x 3 patches.
            neighbours: How many of the eight are asked for in each photograph and step, 1 to 8; drawn unless
                all are.
            hidden: Widths of the head's hidden layers.
            dropout: Before the last layer.

        Raises:
            ConfigError: If the grid is not 3 x 3, or there are not that many neighbours.
            EncoderError: If the encoder cannot carry the task.
        """
        super().__init__()
        require_any_size("relative_patch", encoder)
        require_grid("relative_patch", patches, GRID)
        if not 1 <= neighbours <= NEIGHBOURS:
            raise ConfigError(f"pretext.head.neighbours={neighbours} is not in 1..{NEIGHBOURS}")
        self.patches, self.neighbours = patches, neighbours
        self.encoder_inputs = (1 + neighbours) * patches.share
        self.head = classifier(2 * encoder.num_features, hidden, dropout, NEIGHBOURS)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`."""
        (images,) = views
        generator = self.generator(images.device)
        targets = self._targets(len(images), images.device, generator)  # (B, M)
        cells = functional.pad(cell_of(targets), (1, 0), value=MIDDLE)  # (B, 1 + M), the middle one first
        features = encoded(encoder, self.patches(images, generator, cells))  # (B, 1 + M, D)
        middle, others = features[:, :1], features[:, 1:]
        logits = self.head(torch.cat([middle.expand_as(others), others], dim=-1))  # (B, M, 8)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, {"accuracy": (logits.detach().argmax(dim=-1) == targets).float().mean()}

    def _targets(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Which neighbours are asked for, (B, M) int64; none twice in a photograph."""
        if self.neighbours == NEIGHBOURS:
            return torch.arange(NEIGHBOURS, device=device).expand(batch, -1)
        order = torch.rand((batch, NEIGHBOURS), device=device, generator=generator).argsort(dim=1)
        return order[:, : self.neighbours]


def cell_of(targets: Tensor) -> Tensor:
    """Cells of the 3 x 3 grid in which neighbours lie.

    Args:
        targets: int64, 0 to 7.

    Returns:
        int64 of the same shape, 0 to 8 without the middle one.
    """
    return targets + (targets >= MIDDLE).long()
