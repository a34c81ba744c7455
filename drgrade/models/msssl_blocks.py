"""Building blocks of MsSSL: CBAM attention, a Feature Pyramid Network, and the Deep Learner.

The abstract of Almattar et al., Scientific Reports 15:33742, 2025, names the Deep Learner only; its layers
are this project's choice (docs/msssl.md).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Channel attention of CBAM: sigmoid(MLP(average over the map) + MLP(maximum over the map)).

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 2. As in the paper, the
    shared MLP has no biases.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Build the MLP, with ``channels / reduction`` hidden units, at least one."""
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of a map (B, C, H, W)."""
        # mean and amax rather than adaptive pooling, whose gradient is not deterministic on CUDA.
        average: Tensor = self.mlp(features.mean(dim=(2, 3)))  # (B, C)
        largest: Tensor = self.mlp(features.amax(dim=(2, 3)))  # (B, C)
        return features * torch.sigmoid(average + largest)[:, :, None, None]


class SpatialAttention(nn.Module):
    """Spatial attention of CBAM, equation 3: sigmoid(conv([average; maximum over channels]))."""

    def __init__(self, kernel_size: int = 7) -> None:
        """Build the convolution; ``kernel_size`` is odd."""
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Scale the positions of a map (B, C, H, W)."""
        average = features.mean(dim=1, keepdim=True)  # (B, 1, H, W)
        largest = features.amax(dim=1, keepdim=True)  # (B, 1, H, W)
        return features * torch.sigmoid(self.conv(torch.cat((average, largest), dim=1)))


class CBAM(nn.Module):
    """Channel attention followed by spatial attention, equation 1."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        """Build both attentions; see :class:`ChannelAttention` and :class:`SpatialAttention`."""
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        """Scale channels, then positions, of a map (B, C, H, W)."""
        attended: Tensor = self.spatial(self.channel(features))
        return attended


class FeaturePyramid(nn.Module):
    """Feature Pyramid Network: 1x1 laterals, nearest-neighbour top-down path, 3x3 smoothing.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3; without
    non-linearities, as in the paper.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        """Build a lateral and a smoothing convolution per level.

        Args:
            in_channels: Channels of the CNN's maps, the finest first (C2, C3, C4, C5).
            channels: Channels of every map of the pyramid.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the pyramid.

        Args:
            maps: C2-C5, level i of shape (B, in_channels[i], H_i, W_i), the finest first.

        Returns:
            P2-P5, level i of shape (B, channels, H_i, W_i).
        """
        merged = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            # To the size of the finer level: where that is odd, a scale factor of 2 gives one cell too many.
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


class ResidualAttentionBlock(nn.Module):
    """3x3 conv-BN-ReLU, 3x3 conv-BN, CBAM and a skip connection; no activation after the addition."""

    def __init__(self, channels: int, reduction: int = 16, use_cbam: bool = True) -> None:
        """Build the block.

        Args:
            channels: Channels C of the map, in and out.
            reduction: Reduction of CBAM's channel attention.
            use_cbam: False omits the attention.
        """
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.attention = CBAM(channels, reduction) if use_cbam else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Refine a map (B, C, H, W)."""
        refined: Tensor = self.attention(self.body(features))
        return features + refined


class DeepLearner(nn.Module):
    """Refines the fused map: two residual attention blocks, 2x transposed convolution, conv-BN-ReLU, CBAM."""

    def __init__(
        self, in_channels: int = 256, out_channels: int = 128, reduction: int = 16, use_cbam: bool = True
    ) -> None:
        """Build the module.

        Args:
            in_channels: Channels C of the fused map.
            out_channels: Channels R of the refined map.
            reduction: Reduction of CBAM's channel attention.
            use_cbam: False omits every attention.
        """
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualAttentionBlock(in_channels, reduction, use_cbam),
            ResidualAttentionBlock(in_channels, reduction, use_cbam),
        )
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.refine = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.attention = CBAM(out_channels, reduction) if use_cbam else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Refine a map (B, C, H, W) to (B, R, 2H, 2W)."""
        refined: Tensor = self.attention(self.refine(self.upsample(self.blocks(features))))
        return refined
