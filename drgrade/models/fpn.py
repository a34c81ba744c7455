"""Feature Pyramid Network: every level of a CNN gets the meaning of the levels above it.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """1x1 laterals, nearest-neighbour top-down path, 3x3 smoothing; no non-linearities, as in the paper."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        """Builds a lateral and a smoothing convolution per level.

        Args:
            in_channels: channels of the CNN's maps, the finest first (C2, C3, C4, C5).
            channels: channels of every map of the pyramid.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Builds the pyramid.

        Args:
            maps: C2-C5, level i of shape (B, in_channels[i], H_i, W_i), the finest first.

        Returns:
            P2-P5, level i of shape (B, channels, H_i, W_i).
        """
        merged = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            # To the finer level's own size: twice the coarser one is a cell too many where that is odd.
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
