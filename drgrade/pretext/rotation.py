"""Rotation prediction (Gidaris et al., ICLR 2018; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, classifier

TURNS = 4


class Rotation(Pretext):
    """Predict which of 0, 90, 180, 270 degrees (counter-clockwise) a view was rotated by."""

    scores = ("accuracy", "confusion_0_180", "confusion_90_270", "quarter_error")
    encoder_inputs = float(TURNS)

    def __init__(self, encoder: Encoder, hidden: Sequence[int] = (2048, 1024), dropout: float = 0.0) -> None:
        """Build the head.

        Args:
            encoder: Any encoder.
            hidden: Widths of the hidden layers of the head.
            dropout: Dropout probability before the last layer.
        """
        super().__init__()
        self.head = classifier(encoder.num_features, hidden, dropout, TURNS)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy over all four rotations of every view; see :class:`Pretext`."""
        (images,) = views
        rotated, targets = four_turns(images)
        logits = self.head(encoder(rotated))
        return functional.cross_entropy(logits, targets), rotation_scores(logits.detach(), targets)


def four_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate square images (B, C, S, S) by all four multiples of 90 degrees, without interpolation.

    Returns:
        (4B, C, S, S), where view k * B + i is image i after k quarter turns counter-clockwise; (4B,) int64 k.

    Example:
        >>> views, targets = four_turns(torch.tensor([[[[1, 2], [3, 4]]]]))
        >>> views[1, 0].tolist(), targets.tolist()
        ([[2, 4], [1, 3]], [0, 1, 2, 3])
    """
    views = torch.cat([torch.rot90(images, k, dims=(2, 3)) for k in range(TURNS)])
    targets = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return views, targets


def rotation_scores(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Compute accuracy and confusions of logits (N, 4) with equally many views of each target.

    ``confusion_0_180`` is the share of views rotated by 0 or 180 degrees that are predicted as the other of
    the two, ``confusion_90_270`` likewise; ``quarter_error`` is the share of all views that are predicted as
    a neighbouring rotation.
    """
    error = (logits.argmax(dim=1) - targets) % TURNS  # 2: opposite rotation, 1 and 3: a quarter turn off
    opposite, upright = (error == 2).float(), targets % 2 == 0
    return {
        "accuracy": (error == 0).float().mean(),
        "confusion_0_180": opposite[upright].mean(),
        "confusion_90_270": opposite[~upright].mean(),
        "quarter_error": (error % 2 == 1).float().mean(),
    }
