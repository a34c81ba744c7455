"""Convolutional Block Attention Module: which channels matter, then which places.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equations 1-3.
"""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Weighs channels: sigmoid(MLP(average over the map) + MLP(maximum over the map)), equation 2."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Builds the shared MLP, which has no biases, as in the paper.

        Args:
            channels: channels C of the map.
            reduction: the hidden layer has C / reduction units, at least one.
        """
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scales the channels.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        # mean and amax rather than adaptive pooling, whose gradient is not deterministic on CUDA.
        average: Tensor = self.mlp(features.mean(dim=(2, 3)))  # (B, C)
        largest: Tensor = self.mlp(features.amax(dim=(2, 3)))  # (B, C)
        return features * torch.sigmoid(average + largest)[:, :, None, None]


class SpatialAttention(nn.Module):
    """Weighs places: sigmoid(conv7x7([average over channels; maximum over channels])), equation 3."""

    def __init__(self, kernel_size: int = 7) -> None:
        """Builds the convolution.

        Args:
            kernel_size: odd side of the convolution in cells of the map.
        """
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Scales the places.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        average = features.mean(dim=1, keepdim=True)  # (B, 1, H, W)
        largest = features.amax(dim=1, keepdim=True)  # (B, 1, H, W)
        return features * torch.sigmoid(self.conv(torch.cat((average, largest), dim=1)))


class CBAM(nn.Module):
    """Channel attention followed by spatial attention, equation 1."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        """Builds both attentions.

        Args:
            channels: channels C of the map.
            reduction: of the channel attention's hidden layer.
            kernel_size: odd side of the spatial attention's convolution.
        """
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        """Scales channels, then places.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        attended: Tensor = self.spatial(self.channel(features))
        return attended
