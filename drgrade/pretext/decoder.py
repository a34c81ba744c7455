"""From an encoder's feature map to a map of the picture: what the pretexts that predict a map share."""

import math

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.models.msssl import resize
from drgrade.pretext.base import require_map

GROUP = 16
"""Channels that are normalised together. Few of them, in a map of a single cell, would lose what they say."""


class Decoder(nn.Module):
    """A convolution, as many doublings as it takes from the encoder's map to the one asked for, a last layer.

    A doubling is a transposed convolution of 2 x 2 with stride 2, so that what one cell knows can differ from
    one of its four parts to the next (a map of a single cell has no neighbours to interpolate between), and a
    3 x 3 convolution. Group normalisation (Wu and He, ECCV 2018) has no statistics of the batch: a single map
    of a single cell is normalised like any other, and nothing is shared between processes.
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
            pretext: Its name in ``conf/pretext``, for messages.
            encoder: Whose maps are decoded; it is tried on one black image to see how large they are.
            out_channels: Channels of the result.
            image_size: Side of the views in pixels. Others work, too: the map is resized at the end.
            stride: Pixels of the view from one cell of the result to the next.
            width: Channels of all layers between; a multiple of 16.

        Raises:
            EncoderError: If the encoder has no feature map.
            ConfigError: If a value is out of range.
        """
        super().__init__()
        channels = require_map(pretext, encoder)
        if width < GROUP or width % GROUP:
            raise ConfigError(f"pretext.head.width={width} is not a multiple of {GROUP}")
        if not 1 <= stride <= image_size:
            raise ConfigError(f"pretext.head.stride={stride} is not in [1, {image_size}], the side of a view")
        self.stride = stride
        apart = image_size / map_side(encoder, image_size)  # pixels from one cell of the map to the next
        doublings = max(0, round(math.log2(apart / stride)))
        self.enter = _convolution(channels, width)
        self.doublings = nn.Sequential(*(_doubling(width) for _ in range(doublings)))
        self.leave = nn.Conv2d(width, out_channels, kernel_size=1)

    def forward(self, features: Tensor, view: Tensor) -> Tensor:
        """Decode.

        Args:
            features: (B, C, h, w), the encoder's map.
            view: (B, 3, H, W), what it was made from; only its size counts.

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        size = (math.ceil(view.shape[-2] / self.stride), math.ceil(view.shape[-1] / self.stride))
        decoded: Tensor = self.leave(resize(self.doublings(self.enter(features)), size))
        return decoded


def map_side(encoder: Encoder, image_size: int) -> int:
    """Cells along one side of an encoder's feature map.

    Args:
        encoder: With a feature map; nothing in it changes, and no random number is drawn.
        image_size: Side of the images in pixels.

    Returns:
        Number of cells.
    """
    parameter = next(encoder.parameters())
    image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        side = encoder.feature_map(image).shape[-1]
    encoder.train(training)
    return side


def exact(values: Tensor) -> Tensor:
    """Half precision made single: what losses are computed in.

    Args:
        values: Of any floating type.

    Returns:
        The same in float32, or in float64 if they are.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _convolution(before: int, after: int) -> nn.Sequential:
    """3 x 3, without a bias: the normalisation has one."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(after // GROUP, after),
        nn.ReLU(),
    )


def _doubling(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, kernel_size=2, stride=2, bias=False), *_convolution(width, width)
    )
