"""Inpainting: what stood in the holes? The context encoder of Pathak et al. (CVPR 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.data.normalisation import STD
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.decoder import Decoder, exact
from drgrade.pretext.lab import imagenet

_SMALLEST = 1e-8
"""Squared error of a perfect prediction, for the logarithm: 80 dB."""

_RIDGE = 1e-4
"""Keeps a surface finite where what is seen of a view does not determine it."""


def draw_holes(
    batch: int,
    size: tuple[int, int],
    count: int,
    side: tuple[float, float],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rectangles at random places, all of them inside the view; they may overlap.

    Args:
        batch: Number of views B; each has its own holes.
        size: Height and width of the views in pixels.
        count: Rectangles in a view.
        side: Range of their sides, as a share of the view's.
        device: On which they are drawn.
        generator: Draws them; None for torch's own.

    Returns:
        (B, H, W), True in a hole.
    """
    drawn = torch.rand(2, 2, batch, count, 1, generator=generator, device=device)
    inside = []
    for pixels, (long, place) in zip(size, drawn.unbind(), strict=True):  # rows, then columns
        length = ((side[0] + (side[1] - side[0]) * long) * pixels).floor().clamp(min=1)  # (B, count, 1)
        start = (place * (pixels - length + 1)).floor()
        line = torch.arange(pixels, device=device)
        inside.append((line >= start) & (line < start + length))  # (B, count, pixels)
    rows, columns = inside
    holes: Tensor = (rows[..., :, None] & columns[..., None, :]).any(dim=1)
    return holes


class Inpainting(Pretext):
    """Reconstruct holes in a view from what surrounds them.

    A hole is filled with ImageNet's mean colour, zero after normalisation, which no retina has: it can be
    seen where something is missing. The loss is taken inside the holes only, so that nothing is gained by
    passing pixels on. The prediction is what is added to a smooth surface through the pixels outside the
    holes: on fundus photographs, light that falls off towards the sides would be most of the loss otherwise.
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
            encoder: What is to be trained.
            image_size: Side of the views in pixels.
            holes: Rectangles in a view.
            side: Range of the rectangles' sides, as a share of the view's, in (0, 1).
            degree: Of the surface, 0 to 3; 0 for the mean colour.
            stride: Side of the square of pixels that each cell of the decoder's map predicts.
            width: Channels of the decoder.

        Raises:
            EncoderError: If the encoder has no feature map.
            ConfigError: If a value is out of range, or the holes could leave nothing of a view.
        """
        super().__init__()
        if len(side) != 2 or not 0 < side[0] <= side[1] < 1:
            raise ConfigError(f"pretext.head.side={list(side)} is not a range [low, high] in (0, 1)")
        if holes < 1 or holes * side[1] ** 2 >= 1:
            raise ConfigError(
                f"pretext.head: holes={holes} with sides of up to {side[1]} is not at least one hole that "
                "leaves some of the view; use fewer or smaller ones"
            )
        if degree not in range(4):
            raise ConfigError(f"pretext.head.degree={degree} is not 0, 1, 2 or 3; 0 is the mean colour")
        self.holes, self.side, self.degree = holes, (side[0], side[1]), degree
        self.decoder = Decoder("inpainting", encoder, 3 * stride**2, image_size, stride, width)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`.

        The loss is the mean squared error in a view's holes, normalised colours, and then the mean over
        views. ``psnr`` is the peak signal-to-noise ratio there in dB, of colours in [0, 1];
        ``psnr_of_surface`` that of the surface alone, which takes no encoder.
        """
        (images,) = views
        size = (images.shape[-2], images.shape[-1])
        generator = self.generator(images.device)
        holes = draw_holes(len(images), size, self.holes, self.side, images.device, generator)[:, None]
        predicted, surface = self.fill(encoder, images, holes)
        targets = exact(images)
        loss = mean_over(holes, (predicted - targets).square()).mean()
        scores = {
            "psnr": _psnr(predicted.detach(), targets, holes).mean(),
            "psnr_of_surface": _psnr(surface, targets, holes).mean(),
        }
        return loss, scores

    def fill(self, encoder: Encoder, images: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict views of which the holes are not seen.

        Args:
            encoder: Images to features.
            images: (B, 3, H, W), normalised; nothing inside the holes is used.
            holes: (B, 1, H, W), True in a hole.

        Returns:
            (B, 3, H, W) the prediction, normalised, in the holes and elsewhere; (B, 3, H, W) the surface
            through what is outside the holes, to which the prediction adds something.
        """
        seen = images.masked_fill(holes, 0)
        surface = smooth_surface(exact(images), ~holes, self.degree)
        cells = exact(self.decoder(encoder.feature_map(seen), seen))  # (B, 3 stride², H / stride, W / stride)
        added = functional.pixel_shuffle(cells, self.decoder.stride)
        return surface + added[..., : images.shape[-2], : images.shape[-1]], surface


@torch.no_grad()
def smooth_surface(images: Tensor, where: Tensor, degree: int) -> Tensor:
    """The polynomial in row and column that fits some pixels best, in the sense of least squares.

    Args:
        images: (B, 3, H, W) float32 or float64.
        where: (B, 1, H, W), True at the pixels that are fitted, one at least.
        degree: Of the polynomial; 0 for the mean.

    Returns:
        (B, 3, H, W), at all pixels.
    """
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)[:, None]
    x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)[None, :]
    terms = torch.stack([y**i * x**j for i in range(degree + 1) for j in range(degree + 1 - i)]).flatten(1)
    seen = where.flatten(2).to(images.dtype) * terms  # (B, terms, H W)
    count = where.sum(dim=(1, 2, 3)).view(-1, 1, 1)
    with torch.autocast(images.device.type, enabled=False):
        mean = mean_over(where, images)[..., None]  # (B, 3, 1); the ridge pulls towards it
        squares = seen @ terms.T / count + _RIDGE * torch.eye(len(terms)).to(seen)
        weights = torch.linalg.solve(squares, seen @ (images.flatten(2) - mean).mT / count)  # (B, terms, 3)
        surface: Tensor = mean + weights.mT @ terms  # (B, 3, H W)
    return surface.view_as(images)


def mean_over(where: Tensor, values: Tensor) -> Tensor:
    """Mean of each channel of each view over some of its pixels.

    Args:
        where: (B, 1, H, W), True at one pixel at least.
        values: (B, C, H, W).

    Returns:
        (B, C).
    """
    chosen = values.masked_fill(~where, 0).sum(dim=(2, 3))
    return chosen / where.sum(dim=(2, 3))


def _psnr(predicted: Tensor, targets: Tensor, holes: Tensor) -> Tensor:
    """(B,) in dB, inside the holes."""
    errors = ((predicted - targets) * imagenet(STD, targets)).square()
    return -10 * mean_over(holes, errors).mean(dim=1).clamp(min=_SMALLEST).log10()
