"""Rotation prediction (Gidaris et al., ICLR 2018; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.patches import classifier

TURNS = 4


def four_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """All four rotations of every image, exact: pixels move, none is interpolated.

    Args:
        images: (B, C, S, S), square.

    Returns:
        views: (4B, C, S, S); view k * B + i is image i after k quarter turns counter-clockwise.
        targets: (4B,) int64, k.
    """
    views = torch.cat([torch.rot90(images, k, dims=(2, 3)) for k in range(TURNS)])
    targets = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return views, targets


class Rotation(Pretext):
    """Tell which of 0, 90, 180, 270 degrees (counter-clockwise) a view was turned by."""

    scores = ("accuracy", "confusion_0_180", "confusion_90_270", "quarter_error")
    encoder_inputs = float(TURNS)

    def __init__(self, encoder: Encoder, hidden: Sequence[int] = (2048, 1024), dropout: float = 0.0) -> None:
        """Build the head.

        Args:
            encoder: What is to be trained; any encoder can carry the task.
            hidden: Widths of the head's hidden layers.
            dropout: Before the last layer.

        Raises:
            ConfigError: If a width is not at least 1.
        """
        super().__init__()
        self.head = classifier(encoder.num_features, hidden, dropout, TURNS)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`. The batch is four times as large inside."""
        (images,) = views
        turned, targets = four_turns(images)
        logits = self.head(encoder(turned))
        return functional.cross_entropy(logits, targets), rotation_scores(logits.detach(), targets)


def rotation_scores(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Accuracy, and which turns are confused.

    Args:
        logits: (N, 4).
        targets: (N,) quarter turns; as many of each.

    Returns:
        Scalars. ``accuracy``; ``confusion_0_180``: share of the views turned by 0 or 180 degrees that are
        taken for the other of the two; ``confusion_90_270`` likewise; ``quarter_error``: share of all views
        that are taken for a neighbouring turn.
    """
    away = (logits.argmax(dim=1) - targets) % TURNS  # 0 right, 2 upside down, 1 and 3 a quarter off
    opposite, upright = (away == 2).float(), targets % 2 == 0
    return {
        "accuracy": (away == 0).float().mean(),
        "confusion_0_180": opposite[upright].mean(),
        "confusion_90_270": opposite[~upright].mean(),
        "quarter_error": (away % 2 == 1).float().mean(),
    }
