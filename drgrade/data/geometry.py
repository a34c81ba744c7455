"""The disc of the fundus in a photograph, and the square crop and thumbnail of it.

Coordinates are continuous, in pixels, from the upper left corner of the photograph: pixel ``i`` covers
``[i, i + 1)``. :mod:`drgrade.data.disc_detection` finds the disc; see ``docs/geometry.md``.
"""

from dataclasses import dataclass, field, replace
from math import ceil

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.errors import DataError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

Thumbnail = npt.NDArray[np.uint8]
"""(T, T) uint8: 0 where the camera recorded nothing, 1-255 in the disc of the fundus."""

THUMBNAIL_SIZE = 128
"""Side T of a thumbnail in pixels. It does not depend on the image size, so that splits do not either.

A larger image size may decode photographs at a finer scale, which changes a thumbnail by less than JPEG
noise.
"""

_GREEN = 1  # channel with the most contrast of vessels and lesions and the least JPEG noise
_LAST_REDUCTION = 1.5  # the last resize of a crop reduces at least by this, which hides artefacts of halving

_INNER = 0.9  # share of the radius in which noise is looked for: the rim is structure
_FEWEST_PAIRS = 200
_ONE_COLOUR = 0.5  # standard deviation in levels
_RELATED = 0.5  # least correlation of neighbouring pixels; real photographs have 0.8 and more


class NoFundus(DataError):
    """An image is no fundus photograph: black, of one colour, noise or a strip. The message is the reason."""


@dataclass(frozen=True)
class Disc:
    """The disc of the fundus in a photograph and the rectangle in which the camera recorded it.

    All lengths are pixels of the file. In a squashed file the disc is an ellipse with upright axes:
    ``radius`` is its vertical semi-axis, ``stretch * radius`` its horizontal one.

    Attributes:
        x: Centre from the left edge.
        y: Centre from the top edge.
        radius: Vertical radius. The disc may extend beyond the photograph.
        left: Left edge of the recorded rectangle: the photograph without black bands that cut off the disc.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
        stretch: Horizontal over vertical semi-axis; exactly 1 unless the rim shows that the file was
            squashed.
        doubt: Why the disc may be wrong; empty if its rim was found.
        framed: True if a bright surround, such as paper or a window, was removed to find it.
    """

    x: float
    y: float
    radius: float
    left: float
    top: float
    right: float
    bottom: float
    stretch: float = 1.0
    doubt: str = field(default="", compare=False)
    framed: bool = field(default=False, compare=False)

    @property
    def clear_radius(self) -> float:
        """Radius of the largest circle around the centre inside the disc and the recorded rectangle.

        It is vertical and squashed like ``radius``; ``clear_radius / radius`` is its share of the disc.
        """
        across = min(self.x - self.left, self.right - self.x) / self.stretch
        return min(self.radius, self.y - self.top, self.bottom - self.y, across)

    def scaled(self, fx: float, fy: float) -> "Disc":
        """Return the disc after the photograph was resized by ``fx`` horizontally and ``fy`` vertically."""
        return replace(
            self,
            x=fx * self.x,
            y=fy * self.y,
            radius=(fx + fy) / 2 * self.radius,
            left=fx * self.left,
            top=fy * self.top,
            right=fx * self.right,
            bottom=fy * self.bottom,
        )


def halve(pixels: Pixels) -> Pixels:
    """Average two by two pixels, much faster than other reductions; an odd last row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def crop_disc(pixels: Pixels, disc: Disc, size: int) -> Pixels:
    """Crop the square around the disc and resize it.

    The centre of the disc becomes the centre of the square and its radius half the side; a squashed disc
    becomes round.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        disc: The disc in these pixels.
        size: Side of the result in pixels.

    Returns:
        uint8 (size, size, 3), black outside the photograph.
    """
    across, down = 2 * disc.radius * disc.stretch, 2 * disc.radius
    reduction = min(across, down) / size
    halvings = int(np.log2(max(reduction / _LAST_REDUCTION, 1)))
    unit = 2**halvings
    width, height = max(1, round(across / unit)) * unit, max(1, round(down / unit)) * unit
    left, top = round(disc.x - width / 2), round(disc.y - height / 2)
    square = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if square.shape[:2] != (height, width):
        y, x, inside = max(-top, 0), max(-left, 0), square
        square = np.zeros((height, width, 3), np.uint8)
        square[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    for _ in range(halvings):
        square = halve(square)
    method = cv2.INTER_AREA if reduction >= 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=method), dtype=np.uint8)


def recorded_mask(disc: Disc, size: int) -> Mask:
    """Return the pixels of a crop that show the recorded disc, not surround, black bands or padding.

    Args:
        disc: The disc in the pixels that were cropped.
        size: Side of the crop in pixels.

    Returns:
        (size, size), True where the centre of a pixel is inside the disc and the whole pixel is inside the
        recorded rectangle, less half a pixel of the photograph for the rounding in :func:`crop_disc`.
    """
    place = (np.arange(size) + 0.5) / (size / 2) - 1  # in radii
    inside = place[:, None] ** 2 + place**2 <= 1
    for axis, middle, semi_axis, first, last in (
        (0, disc.y, disc.radius, disc.top, disc.bottom),
        (1, disc.x, disc.radius * disc.stretch, disc.left, disc.right),
    ):
        offset, reach = middle + semi_axis * place, semi_axis / size + 0.5
        recorded = (offset - reach >= first) & (offset + reach <= last)
        inside &= np.expand_dims(recorded, 1 - axis)
    return np.asarray(inside)


def make_thumbnail(pixels: Pixels, disc: Disc) -> Thumbnail:
    """Compute the thumbnail of a photograph: the green channel of the square around its disc.

    Args:
        pixels: RGB, uint8 (H, W, 3), decoded at any size.
        disc: The disc in these pixels.
    """
    green = crop_disc(pixels, disc, THUMBNAIL_SIZE)[..., _GREEN]
    offsets = np.linspace(-1, 1, 2 * THUMBNAIL_SIZE + 1)[1::2]  # pixel centres, in units of the radius
    x, y = disc.x + disc.radius * disc.stretch * offsets, disc.y + disc.radius * offsets
    in_disc = np.square(offsets)[:, None] + np.square(offsets) < 1
    recorded = in_disc & _between(disc.top, y, disc.bottom)[:, None] & _between(disc.left, x, disc.right)
    return np.where(recorded, np.maximum(green, 1), 0).astype(np.uint8)


def refuse_noise(thumbnail: Thumbnail, diameter: float) -> None:
    """Refuse an image whose neighbouring pixels have nothing in common, or that has one colour in its disc.

    Args:
        thumbnail: Its thumbnail.
        diameter: Diameter of the disc in the pixels of which it was made; fewer than T were enlarged.

    Raises:
        NoFundus: If it is one.
    """
    step = ceil(max(1, len(thumbnail) / diameter))
    y, x = np.mgrid[: len(thumbnail), : len(thumbnail)] + 0.5 - len(thumbnail) / 2
    inside = (thumbnail > 0) & (np.hypot(x, y) < _INNER * len(thumbnail) / 2)
    pairs = inside[:, step:] & inside[:, :-step]
    if pairs.sum() < _FEWEST_PAIRS:
        return
    left, right = thumbnail[:, :-step][pairs].astype(float), thumbnail[:, step:][pairs].astype(float)
    spread = left.std() * right.std()
    if spread < _ONE_COLOUR**2:
        raise NoFundus("no fundus photograph: one colour in the disc")
    if ((left - left.mean()) * (right - right.mean())).mean() < _RELATED * spread:
        raise NoFundus("no fundus photograph: noise without structure")


def _between(low: float, values: npt.NDArray[np.floating], high: float) -> Mask:
    return np.asarray((low < values) & (values < high))
