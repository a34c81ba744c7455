"""Bright surrounds of a photograph, and a second photograph beside it.

Scans of prints, pages and screenshots surround the disc with paper or parts of a window. Such a surround
has few colours and reaches the edge of the file, so that it can be filled from there.
"""

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, Mask, Pixels

_LONGEST = 1024  # longer side in pixels at which the surround is filled
_BRIGHT = 60  # level from which a surround is not taken for the black one of a camera
_TOLERANCE = 24  # levels between a pixel of the surround and the one where filling begins
_SHARE = 0.5  # share of the edge of the file that must have one colour
_RETINA = 40  # levels of red above blue at the edge of a file that shows retina up to there
_LAYERS = 3  # frames within frames
_SECOND = 0.35  # area of a second disc as a share of that of the first
_INNER = 0.99  # share of the radius beyond which a bright surround is made black


def has_bright_surround(pixels: Pixels) -> bool:
    """Return True if most of the edge of a photograph, (H, W, 3), has one bright colour, not a retina's."""
    edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])).astype(int)
    red, green, blue = colour = np.median(edge, axis=0)
    alike = (np.abs(edge - colour) <= _TOLERANCE).all(axis=1).mean()
    return bool(colour.max() >= _BRIGHT and alike >= _SHARE and not (red - blue > _RETINA and red > green))


def black_surrounds(pixels: Pixels) -> list[Pixels]:
    """Return copies of a photograph with a black surround: without one, two and three frames.

    Args:
        pixels: RGB, uint8 (H, W, 3).
    """
    height, width = pixels.shape[:2]
    factor = min(1.0, _LONGEST / max(height, width))
    size = (max(3, round(width * factor)), max(3, round(height * factor)))
    small = np.asarray(cv2.medianBlur(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), 3), np.uint8)
    filled = np.ones((size[1] + 2, size[0] + 2), np.uint8)  # floodFill needs a border of 1
    filled[1:-1, 1:-1] = 0
    results = []
    for _ in range(_LAYERS):
        before = int(filled.sum())
        _fill(small, filled)
        if int(filled.sum()) == before:
            break
        # Pixels beside the surround are mixtures with it.
        mask = cv2.dilate(filled, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        results.append(np.where(large[..., None] > 0, 0, pixels).astype(np.uint8))
        filled = np.pad(mask, 1, constant_values=1)
    return results


def _fill(pixels: Pixels, filled: npt.NDArray[np.uint8]) -> None:
    """Fill the areas of the most frequent colour beside what is filled already (1), in place."""
    near = (cv2.dilate(filled, np.ones((3, 3), np.uint8)) - filled)[1:-1, 1:-1] > 0
    if not near.any():
        return
    colour = np.median(pixels[near], axis=0)
    near &= (np.abs(pixels - colour) <= _TOLERANCE).all(axis=2)
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
    tolerance = (_TOLERANCE,) * 3
    for y, x in np.argwhere(near):
        if not filled[y + 1, x + 1]:
            cv2.floodFill(pixels, filled, (int(x), int(y)), 0, tolerance, tolerance, flags)


def only_disc(pixels: Pixels, disc: Disc) -> Pixels:
    """Return a copy of a photograph, uint8 (H, W, 3), that is black outside the disc."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    axes = (max(1, round(_INNER * disc.radius * disc.stretch)), max(1, round(_INNER * disc.radius)))
    cv2.ellipse(mask, (round(disc.x - 0.5), round(disc.y - 0.5)), axes, 0, 0, 360, 1, cv2.FILLED)
    return np.asarray(cv2.bitwise_and(pixels, pixels, mask=mask), np.uint8)


def has_second_disc(bright: Mask, disc: Disc) -> bool:
    """Return True if a region as large as a disc lies outside the disc.

    Args:
        bright: (H, W), True where the photograph is brighter than its surround.
        disc: The disc in these pixels.
    """
    rest = bright.astype(np.uint8)
    axes = (round(1.06 * disc.radius * disc.stretch + 1), round(1.06 * disc.radius + 1))
    cv2.ellipse(rest, (round(disc.x), round(disc.y)), axes, 0, 0, 360, 0, cv2.FILLED)
    side = max(5, round(disc.radius / 2))  # bars and text are thinner than half a radius
    rest = np.asarray(cv2.morphologyEx(rest, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)), np.uint8)
    areas = cv2.connectedComponentsWithStats(rest, connectivity=4)[2][1:, cv2.CC_STAT_AREA]
    return bool((areas > _SECOND * np.pi * disc.radius**2 * disc.stretch).any())
