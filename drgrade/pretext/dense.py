"""Shared parts of the pretexts that predict a map: the decoder, pixels and colours."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.data.transforms import MEAN, STD
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.models.feature_maps import resize
from drgrade.pretext.base import HEAD, frozen_evaluation, require_map

GROUP = 16
"""Channels per group of the group normalisation."""

# IEC 61966-2-1: linear sRGB to CIE XYZ, and the D65 white of the 2 degree observer.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)

_EPSILON, _KAPPA = 0.008856, 7.787
"""CIE 1976: below epsilon the cube root is replaced by a line of slope kappa."""


class Decoder(nn.Module):
    """Decode a feature map: a convolution, upsampling blocks to the size of the output map, and a last layer.

    An upsampling block is a 2 x 2 transposed convolution with stride 2, so that the four parts of a cell can
    differ even if the map is a single cell, and a 3 x 3 convolution. Group normalisation (Wu and He, ECCV
    2018) needs no batch statistics: it works on a single map of a single cell, and nothing is shared between
    processes.
    """

    def __init__(
        self,
        pretext: str,
        encoder: Encoder,
        out_channels: int,
        image_size: int,
        stride: int = 4,
        width: int = 64,
    ) -> None:
        """Build the layers.

        Args:
            pretext: Name of the pretext, for messages.
            encoder: Encoder whose maps are decoded. One black image is encoded to find the size of the map.
            out_channels: Channels of the output.
            image_size: Side of the views in pixels. Other sizes work too: the map is resized before the last
                layer.
            stride: Pixels of the view per cell of the output.
            width: Channels of all layers between, a multiple of 16.

        Raises:
            EncoderError: If the encoder has no feature map.
            ConfigError: If a value is out of range.
        """
        super().__init__()
        channels = require_map(pretext, encoder)
        if width < GROUP or width % GROUP:
            raise ConfigError(f"{HEAD}width={width} is not a multiple of {GROUP}")
        if not 1 <= stride <= image_size:
            raise ConfigError(f"{HEAD}stride={stride} is not in [1, {image_size}], the side of a view")
        self.stride = stride
        cell = image_size / map_side(encoder, image_size)  # pixels of the view per cell of the map
        doublings = max(0, round(math.log2(cell / stride)))
        self.enter = _convolution(channels, width)
        self.doublings = nn.Sequential(*(_doubling(width) for _ in range(doublings)))
        self.leave = nn.Conv2d(width, out_channels, kernel_size=1)

    def forward(self, features: Tensor, view: Tensor) -> Tensor:
        """Decode the feature map (B, C, h, w) of a view (B, 3, H, W), of which only the size is used.

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        size = (math.ceil(view.shape[-2] / self.stride), math.ceil(view.shape[-1] / self.stride))
        decoded: Tensor = self.leave(resize(self.doublings(self.enter(features)), size))
        return decoded


def _convolution(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(width // GROUP, width),
        nn.ReLU(),
    )


def _doubling(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, kernel_size=2, stride=2, bias=False), *_convolution(width, width)
    )


def map_side(encoder: Encoder, image_size: int) -> int:
    """Return the number of cells along one side of an encoder's feature map of square images.

    The encoder is not changed, and no random number is drawn.
    """
    parameter = next(encoder.parameters())
    image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    with frozen_evaluation(encoder):
        return encoder.feature_map(image).shape[-1]


def pixels(views: Tensor) -> Tensor:
    """Undo the normalisation of views (B, 3, H, W): RGB in [0, 1], float32."""
    return (views.float() * per_channel(STD, views) + per_channel(MEAN, views)).clamp(0, 1)


def per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """Return one number per channel as a (3, 1, 1) float32 tensor on the device of the images."""
    return torch.tensor(values, device=images.device).view(3, 1, 1)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (..., 3, H, W) in [0, 1] under D65 to CIE 1976 L*a*b*.

    L is in [0, 100]; a and b are between about -110 and 110, and 0 for grey.
    """
    # The clamps keep powers of invalid numbers out of the branch that is not taken.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    red, green, blue = linear.unbind(dim=-3)
    # A sum of products, because autocast would compute a matrix product in bfloat16.
    shares = [(r * red + g * green + b * blue) / w for (r, g, b), w in zip(_XYZ, _WHITE, strict=True)]
    x, y, z = (
        torch.where(share > _EPSILON, share.clamp(min=_EPSILON) ** (1 / 3), _KAPPA * share + 16 / 116)
        for share in shares
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def cell_means(maps: Tensor, stride: int) -> Tensor:
    """Average maps (B, C, H, W) over squares of ``stride`` pixels, smaller ones at right and bottom."""
    return functional.avg_pool2d(maps, stride, ceil_mode=True, count_include_pad=False)
