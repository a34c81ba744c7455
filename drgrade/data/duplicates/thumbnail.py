"""Thumbnails for the search for duplicates."""

import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, crop_disc

Thumbnail = npt.NDArray[np.uint8]
"""(T, T) uint8: 0 where the camera recorded nothing, 1-255 in the disc of the fundus."""

THUMBNAIL_SIZE = 128
"""Side T of a thumbnail in pixels. It does not depend on the image size, so that splits do not either.

A larger image size may decode photographs at a finer scale, which changes a thumbnail by less than JPEG
noise.
"""

DECODED_OVER = 1.5
"""Smallest shorter side of a decoded photograph, as a multiple of T."""

_GREEN = 1  # channel with the most contrast of vessels and lesions and the least JPEG noise


def make_thumbnail(pixels: npt.NDArray[np.uint8], disc: Disc) -> Thumbnail:
    """Compute the thumbnail of a photograph: the green channel of the square around its disc.

    Args:
        pixels: RGB, uint8 of shape (H, W, 3), decoded at any size.
        disc: Disc in the coordinates of ``pixels``.

    Returns:
        uint8 of shape (T, T), T = :data:`THUMBNAIL_SIZE`. 0 outside the disc and outside the rectangle that
        the camera recorded, at least 1 elsewhere.
    """
    green = crop_disc(pixels, disc, THUMBNAIL_SIZE)[..., _GREEN]
    offsets = np.linspace(-1, 1, 2 * THUMBNAIL_SIZE + 1)[1::2]  # pixel centres, in units of the radius
    x, y = disc.x + disc.radius * disc.stretch * offsets, disc.y + disc.radius * offsets
    in_disc = np.square(offsets)[:, None] + np.square(offsets) < 1
    recorded = in_disc & _between(disc.top, y, disc.bottom)[:, None] & _between(disc.left, x, disc.right)
    return np.where(recorded, np.maximum(green, 1), 0).astype(np.uint8)


def _between(low: float, values: npt.NDArray[np.floating], high: float) -> npt.NDArray[np.bool_]:
    return np.asarray((low < values) & (values < high))
