"""Relative patch location (Doersch et al., ICCV 2015; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD, accuracy, classifier
from drgrade.pretext.patches import Patches, PatchPretext

GRID, NEIGHBOURS, MIDDLE = 3, 8, 4


class RelativePatch(PatchPretext):
    """Predict which of the eight neighbours of the middle patch another patch is.

    Target 0 is the upper left neighbour, 1 the one above the middle, and so on in reading order.
    """

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
            encoder: Encoder that accepts images of any size.
            patches: Cuts 3 x 3 patches.
            neighbours: Number of neighbours per photograph and step, 1 to 8; drawn at random if fewer than 8.
            hidden: Widths of the hidden layers of the head.
            dropout: Dropout probability before the last layer.
        """
        super().__init__("relative_patch", encoder, patches, 1 + neighbours, GRID)
        check_range(f"[1, {NEIGHBOURS}]", HEAD, neighbours=neighbours)
        self.neighbours = neighbours
        self.head = classifier(2 * encoder.num_features, hidden, dropout, NEIGHBOURS)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy over all chosen neighbours; see :class:`Pretext`."""
        batch, device = len(views[0]), views[0].device
        generator = self.generator(device)
        targets = self.draw_targets(batch, device, generator)  # (B, M)
        cells = functional.pad(cell_of(targets), (1, 0), value=MIDDLE)  # (B, 1 + M), the middle one first
        features = self.encode(encoder, views, generator, cells)  # (B, 1 + M, D)
        middle, others = features[:, :1], features[:, 1:]
        logits = self.head(torch.cat([middle.expand_as(others), others], dim=-1))  # (B, M, 8)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, {"accuracy": accuracy(logits, targets)}

    def draw_targets(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draw M different neighbours for each photograph, (B, M) int64."""
        if self.neighbours == NEIGHBOURS:
            return torch.arange(NEIGHBOURS, device=device).expand(batch, -1)
        order = torch.rand((batch, NEIGHBOURS), device=device, generator=generator).argsort(dim=1)
        return order[:, : self.neighbours]


def cell_of(targets: Tensor) -> Tensor:
    """Return the cells of the 3 x 3 grid, 0 to 8 without the middle one, of neighbours 0 to 7 (int64)."""
    return targets + (targets >= MIDDLE).long()
