"""Inpainting: reconstruct holes in a view, as the context encoder of Pathak et al. (CVPR 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.data.transforms import STD
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder, to_float32
from drgrade.pretext.base import HEAD, Pretext
from drgrade.pretext.dense import Decoder, per_channel

_SMALLEST = 1e-8
"""Squared error of a perfect prediction, for the logarithm: 80 dB."""

_RIDGE = 1e-4
"""Keeps the surface finite where the visible pixels do not determine it."""


class Inpainting(Pretext):
    """Reconstruct holes in a view from their surroundings.

    Holes are filled with ImageNet's mean colour (zero after normalisation), which no retina has, so that they
    are recognisable. The loss is computed inside the holes only: copying visible pixels gains nothing. The
    prediction is added to a smooth surface through the visible pixels, because otherwise the fall of light
    towards the edges of fundus photographs would dominate the loss.
    """

    scores = ("psnr", "psnr_of_surface")

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        holes: int = 3,
        side: Sequence[float] = (0.2, 0.4),
        degree: int = 2,
        stride: int = 4,
        width: int = 64,
    ) -> None:
        """Build the decoder.

        Args:
            encoder: Encoder with a feature map.
            image_size: Side of the views in pixels.
            holes: Number of rectangles per view.
            side: Range of the sides of the rectangles, relative to the side of the view, in (0, 1).
            degree: Degree of the surface, 0 to 3; 0 for the mean colour.
            stride: Side in pixels of the square that each cell of the decoder's map predicts.
            width: Channels of the decoder.
        """
        super().__init__()
        if len(side) != 2 or not 0 < side[0] <= side[1] < 1:
            raise ConfigError(f"{HEAD}side={list(side)} is not a range [low, high] in (0, 1)")
        if holes < 1 or holes * side[1] ** 2 >= 1:
            raise ConfigError(
                f"pretext.head: holes={holes} with sides of up to {side[1]} is not at least one hole that "
                "leaves some of the view visible; use fewer or smaller ones"
            )
        if degree not in range(4):
            raise ConfigError(f"{HEAD}degree={degree} is not 0, 1, 2 or 3; 0 is the mean colour")
        self.holes, self.side, self.degree = holes, (side[0], side[1]), degree
        self.decoder = Decoder("inpainting", encoder, 3 * stride**2, image_size, stride, width)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean squared error in the holes; see :class:`Pretext`.

        It is averaged over the holes of a view, then over views. ``psnr`` is the peak signal-to-noise ratio
        in the holes in dB, for colours in [0, 1]; ``psnr_of_surface`` is that of the surface alone, which
        needs no encoder.
        """
        (images,) = views
        size = (images.shape[-2], images.shape[-1])
        generator = self.generator(images.device)
        holes = draw_holes(len(images), size, self.holes, self.side, images.device, generator)[:, None]
        predicted, surface = self.fill(encoder, images, holes)
        targets = to_float32(images)
        loss = mean_over(holes, (predicted - targets).square()).mean()
        scores = {
            "psnr": _psnr(predicted.detach(), targets, holes).mean(),
            "psnr_of_surface": _psnr(surface, targets, holes).mean(),
        }
        return loss, scores

    def fill(self, encoder: Encoder, images: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict images (B, 3, H, W) whose pixels in the holes are hidden from the encoder.

        Args:
            encoder: Maps images to features.
            images: (B, 3, H, W), normalised.
            holes: (B, 1, H, W), True in a hole.

        Returns:
            The normalised prediction, inside and outside the holes, and the surface it is added to, both
            (B, 3, H, W).
        """
        visible = images.masked_fill(holes, 0)
        surface = smooth_surface(to_float32(images), ~holes, self.degree)
        cells = self.decoder(encoder.feature_map(visible), visible)  # (B, 3 stride², H / stride, W / stride)
        details = functional.pixel_shuffle(to_float32(cells), self.decoder.stride)
        return surface + details[..., : images.shape[-2], : images.shape[-1]], surface


def draw_holes(
    batch: int,
    size: tuple[int, int],
    count: int,
    side: tuple[float, float],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw rectangles at random positions inside each view, (B, H, W) True in a hole; they may overlap.

    Args:
        batch: Number of views B.
        size: Height and width of the views in pixels.
        count: Number of rectangles per view.
        side: Range of their sides, relative to those of the view.
        device: Device of the result.
        generator: Random generator; None for torch's own.
    """
    drawn = torch.rand(2, 2, batch, count, 1, generator=generator, device=device)
    inside = []
    for pixels, (extent, place) in zip(size, drawn.unbind(), strict=True):  # rows, then columns
        length = ((side[0] + (side[1] - side[0]) * extent) * pixels).floor().clamp(min=1)  # (B, count, 1)
        start = (place * (pixels - length + 1)).floor()
        line = torch.arange(pixels, device=device)
        inside.append((line >= start) & (line < start + length))  # (B, count, pixels)
    rows, columns = inside
    holes: Tensor = (rows[..., :, None] & columns[..., None, :]).any(dim=1)
    return holes


@torch.no_grad()
def smooth_surface(images: Tensor, where: Tensor, degree: int) -> Tensor:
    """Fit a polynomial in row and column to some pixels by least squares; return its value at all pixels.

    Args:
        images: (B, 3, H, W) float32 or float64.
        where: (B, 1, H, W), True at the fitted pixels, at least one.
        degree: Degree of the polynomial; 0 for the mean.
    """
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)[:, None]
    x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)[None, :]
    terms = torch.stack([y**i * x**j for i in range(degree + 1) for j in range(degree + 1 - i)]).flatten(1)
    fitted = where.flatten(2).to(images.dtype) * terms  # (B, terms, H W)
    count = where.sum(dim=(1, 2, 3)).view(-1, 1, 1)
    with torch.autocast(images.device.type, enabled=False):
        mean = mean_over(where, images)[..., None]  # (B, 3, 1); the ridge shrinks towards it
        squares = fitted @ terms.T / count + _RIDGE * torch.eye(len(terms)).to(fitted)
        weights = torch.linalg.solve(squares, fitted @ (images.flatten(2) - mean).mT / count)
        surface: Tensor = mean + weights.mT @ terms  # (B, 3, H W)
    return surface.view_as(images)


def mean_over(where: Tensor, values: Tensor) -> Tensor:
    """Average each channel of each view (B, C, H, W) over the pixels where (B, 1, H, W) is True: (B, C)."""
    return values.masked_fill(~where, 0).sum(dim=(2, 3)) / where.sum(dim=(2, 3))


def _psnr(predicted: Tensor, targets: Tensor, holes: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio inside the holes, (B,) in dB."""
    errors = ((predicted - targets) * per_channel(STD, targets)).square()
    return -10 * mean_over(holes, errors).mean(dim=1).clamp(min=_SMALLEST).log10()
