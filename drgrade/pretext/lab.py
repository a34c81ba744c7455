"""Pixels of normalised views, their colours in CIE Lab, and means over cells of pixels."""

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.data.normalisation import MEAN, STD

# IEC 61966-2-1: linear sRGB to CIE XYZ, and the white D65 of the 2 degree observer.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)

_EPSILON, _KAPPA = 0.008856, 7.787
"""CIE 1976: for what is darker, a line takes the place of the cube root."""


def pixels(views: Tensor) -> Tensor:
    """Undo :func:`drgrade.data.datamodules.normalise`.

    Args:
        views: (B, 3, H, W), normalised, of any floating type.

    Returns:
        (B, 3, H, W) float32, RGB in [0, 1].
    """
    return (views.float() * imagenet(STD, views) + imagenet(MEAN, views)).clamp(0, 1)


def imagenet(values: tuple[float, ...], images: Tensor) -> Tensor:
    """ImageNet's mean or standard deviation, ready to be combined with images.

    Args:
        values: One number for each channel.
        images: (B, 3, H, W), for the device.

    Returns:
        (3, 1, 1) float32.
    """
    return torch.tensor(values, device=images.device).view(3, 1, 1)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Colours in CIE 1976 L*a*b*, of sRGB under D65.

    Args:
        rgb: (..., 3, H, W) float32 or float64 in [0, 1].

    Returns:
        (..., 3, H, W): L in [0, 100]; a and b in about -110 to 110, 0 for grey.
    """
    # The clamps keep the branch not taken away from powers of numbers that it is not for.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    red, green, blue = linear.unbind(dim=-3)
    # A sum of products and not a matrix product, which autocast would take in bfloat16.
    shares = [(r * red + g * green + b * blue) / w for (r, g, b), w in zip(_XYZ, _WHITE, strict=True)]
    x, y, z = (
        torch.where(share > _EPSILON, share.clamp(min=_EPSILON) ** (1 / 3), _KAPPA * share + 16 / 116)
        for share in shares
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def cell_means(maps: Tensor, stride: int) -> Tensor:
    """Means over squares of ``stride`` x ``stride`` pixels; the last of a row or column may be smaller.

    Args:
        maps: (B, C, H, W) float.
        stride: Side of a square in pixels.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)).
    """
    return functional.avg_pool2d(maps, stride, ceil_mode=True, count_include_pad=False)
