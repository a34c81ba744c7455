"""Normalisation of pixels for encoders."""

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""ImageNet channel means (RGB, values in [0, 1]), expected by timm weights."""

STD = (0.229, 0.224, 0.225)
"""ImageNet channel standard deviations."""


def normalise(images: Tensor) -> Tensor:
    """Scale stored pixels to [0, 1] and standardise each channel with the ImageNet statistics.

    Args:
        images: (..., 3, H, W) uint8.

    Returns:
        (..., 3, H, W) float32.

    Example:
        >>> normalise(torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten().round(decimals=2)
        tensor([-2.1200, -2.0400, -1.8000])
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std
