"""Measures of light, contrast and focus inside the recorded disc of a fundus photograph.

Focus is the ratio of fine to coarse detail. Detail is the logarithm of the green channel, where vessels have
the most contrast, in a band of spatial frequencies (a difference of two Gaussians). The logarithm makes it
independent of exposure, the ratio independent of the amount of structure. Blur removes fine detail first.
Noise adds to it; its variance is estimated (Immerkaer 1996, with a robust median) and subtracted. The measure
follows Crete et al. 2007 ("The blur effect") and Marrugo et al. 2012 (focus of fundus photographs).
"""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_SCALES = (0.8, 1.6, 3.2)  # standard deviations in px; fine detail between the first two, coarse after them
_WITHIN = 0.9  # measured share of the radius: rims may glow, and are a strong edge
_OFFSET = 8.0  # grey levels added before the logarithm, which would amplify noise in dark regions
_WHITE = 250
_MIN_PIXELS = 200
_MIN_SIDE = 24

_SECOND_DIFFERENCES = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_GAIN = 6.0  # of the second differences on the standard deviation of white noise
_MEDIAN_OF_NORMAL = 0.6745  # median of |x| for a standard normal x


class Quality(NamedTuple):
    """Quality measures of one photograph.

    Attributes:
        diameter: Diameter of the disc in pixels of the file.
        level: 95th percentile of the brightness (grey, 0-255) in the disc.
        over_exposed: Share of the disc whose green channel is at its upper end.
        contrast: Standard deviation of the coarse detail, in log units, noise subtracted.
        focus: Ratio of fine to coarse detail, about 0.8 in focus; NaN if the disc is too small.
    """

    diameter: float
    level: float
    over_exposed: float
    contrast: float
    focus: float


def measure(pixels: Pixels, recorded: Mask, diameter: float) -> Quality:
    """Measure one photograph.

    Args:
        pixels: Crop, RGB, uint8 (S, S, 3), whose disc touches the four sides.
        recorded: (T, T), True where the camera recorded the disc.
        diameter: Diameter of the disc in pixels of the file. If it is below S, the crop was enlarged and is
            reduced to the original size: it is small, not out of focus.
    """
    side = max(_MIN_SIDE, min(len(pixels), round(diameter)))
    if side < len(pixels):
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    disc = cv2.resize(recorded.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    within = (disc > 0) & _inner(side)
    if int(within.sum()) < _MIN_PIXELS:
        return Quality(diameter, *[float("nan")] * 4)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    green = pixels[..., 1]
    contrast, focus = _detail(green, disc)
    level = float(np.percentile(grey[within], 95))
    return Quality(diameter, level, float((green[within] >= _WHITE).mean()), contrast, focus)


def _detail(green: Pixels, disc: cv2.typing.MatLike) -> tuple[float, float]:
    """Compute contrast and focus (see :class:`Quality`) where ``disc``, uint8 (S, S), is 1."""
    reach = 2 * round(2 * _SCALES[-1]) + 1  # reach of the widest Gaussian
    window = np.ones((reach, reach), np.uint8)
    eroded = cv2.erode(disc, window, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside = (eroded > 0) & _inner(len(green))
    if int(inside.sum()) < _MIN_PIXELS:
        return float("nan"), float("nan")
    logarithm = np.log(green.astype(np.float32) + np.float32(_OFFSET))
    rough = cv2.filter2D(logarithm, -1, _SECOND_DIFFERENCES)[inside]
    noise = float(np.median(np.abs(rough))) / (_MEDIAN_OF_NORMAL * _GAIN)
    levels = [_blur(logarithm, scale) for scale in _SCALES]
    fine, coarse = (
        np.sqrt(max(float(np.square(a[inside] - b[inside]).mean()) - noise**2 * gain, 0.0))
        for a, b, gain in zip(levels[:-1], levels[1:], _noise_gains(), strict=True)
    )
    return float(coarse), float(fine / coarse) if coarse > 0 else float("nan")


def _blur(image: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


@cache
def _noise_gains() -> tuple[float, ...]:
    """Compute the variance of white noise of variance 1 after each band filter."""
    impulse = np.zeros((65, 65), np.float32)
    impulse[32, 32] = 1
    levels = [_blur(impulse, scale) for scale in _SCALES]
    return tuple(float(np.square(a - b).sum()) for a, b in pairwise(levels))


@cache
def _inner(side: int) -> Mask:
    offsets = np.arange(side) + 0.5 - side / 2
    return np.asarray(np.square(offsets)[:, None] + np.square(offsets) < (_WITHIN * side / 2) ** 2)
