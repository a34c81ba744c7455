"""The small picture that is kept of every photograph, to find duplicates by."""

import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, crop_disc

Thumbnail = npt.NDArray[np.uint8]
"""(T, T) uint8: 0 where the camera recorded nothing, 1-255 in the disc of the fundus."""

THUMBNAIL_SIZE = 128
"""Side T of a thumbnail in pixels, whatever size a run trains at: splits must not depend on that.

A larger size may decode photographs at a finer scale, which changes a thumbnail by less than a JPEG's noise.
"""

DECODED_OVER = 1.5
"""Photographs should be decoded at this multiple of T, or more, over their shorter side."""

_GREEN = 1  # vessels and lesions have the most contrast there, and JPEG the least noise


def make_thumbnail(pixels: npt.NDArray[np.uint8], disc: Disc) -> Thumbnail:
    """Make the thumbnail of a photograph: the green channel of the square around its disc.

    Args:
        pixels: RGB, uint8 of shape (H, W, 3), decoded at any size.
        disc: The disc in these pixels.

    Returns:
        uint8 of shape (T, T), T = :data:`THUMBNAIL_SIZE`. 0 outside the disc and outside the rectangle that
        the camera recorded, at least 1 elsewhere.
    """
    green = crop_disc(pixels, disc, THUMBNAIL_SIZE)[..., _GREEN]
    offsets = np.linspace(-1, 1, 2 * THUMBNAIL_SIZE + 1)[1::2]  # of pixel centres, in units of the radius
    x, y = disc.x + disc.radius * disc.stretch * offsets, disc.y + disc.radius * offsets
    in_disc = np.square(offsets)[:, None] + np.square(offsets) < 1
    recorded = in_disc & _between(disc.top, y, disc.bottom)[:, None] & _between(disc.left, x, disc.right)
    return np.where(recorded, np.maximum(green, 1), 0).astype(np.uint8)


def _between(low: float, values: npt.NDArray[np.floating], high: float) -> npt.NDArray[np.bool_]:
    return np.asarray((low < values) & (values < high))
