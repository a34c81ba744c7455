"""What the photographs show: light, contrast and focus, measured inside the disc that the camera recorded.

Focus is the ratio of fine to coarse detail. Detail is what a band of spatial frequencies (a difference of two
Gaussians) leaves of the logarithm of the green channel, where vessels have the most contrast; the logarithm
makes it independent of exposure, the ratio of how much there is to see. Blur takes fine detail away first.
Noise adds to it: its variance is estimated (Immerkaer 1996, with the median that makes it robust) and what it
contributes to each band is subtracted. The principle, to compare with a blurred copy, is that of Crete et al.
2007 ("The blur effect"); that band-passed energy tells the focus of fundus photographs is from Marrugo et al.
2012.
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

_SCALES = (
    0.8,
    1.6,
    3.2,
)  # standard deviations in px: fine detail lies between the first two, coarse between the last
_RIM = 0.9  # share of the radius that is looked at: rims glow, and are the strongest edge there is
_DARK = 8.0  # grey levels; added before the logarithm, which would magnify noise in the dark
_WHITE = 250
_FEWEST = 200  # pixels
_LEAST_SIDE = 24

_SECOND_DIFFERENCES = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_GAIN = 6.0  # of these, for the standard deviation of white noise
_MEDIAN_OF_NORMAL = 0.6745  # median of |x| for a standard normal x


class Quality(NamedTuple):
    """What is measured of one photograph.

    Attributes:
        diameter: Of the disc, in pixels of the file.
        level: Brightness (grey, 0-255) that the brightest twentieth of the disc exceeds.
        over_exposed: Share of the disc whose green channel is at its upper end.
        contrast: Standard deviation of the coarse detail, in log units, noise subtracted.
        focus: Fine over coarse detail: about 0.8 in focus; NaN where there is too little to tell.
    """

    diameter: float
    level: float
    over_exposed: float
    contrast: float
    focus: float


def measure(pixels: Pixels, recorded: Mask, diameter: float) -> Quality:
    """Measure one photograph.

    Args:
        pixels: RGB, uint8 of shape (S, S, 3): its disc touches the four sides.
        recorded: (T, T): where the camera recorded the disc.
        diameter: Of the disc, in pixels of the file. If that is less than S the photograph was enlarged, and
            is brought back to its size: it is tiny, not out of focus.
    """
    side = max(_LEAST_SIDE, min(len(pixels), round(diameter)))
    if side < len(pixels):
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    disc = cv2.resize(recorded.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    within = (disc > 0) & _inner(side)
    if int(within.sum()) < _FEWEST:
        return Quality(diameter, *[float("nan")] * 4)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    green = pixels[..., 1]
    contrast, focus = _detail(green, disc)
    level = float(np.percentile(grey[within], 95))
    return Quality(diameter, level, float((green[within] >= _WHITE).mean()), contrast, focus)


def _detail(green: Pixels, disc: cv2.typing.MatLike) -> tuple[float, float]:
    """Contrast and focus (see :class:`Quality`) where ``disc``, uint8 (S, S), is 1."""
    reach = 2 * round(2 * _SCALES[-1]) + 1  # beyond it, the last Gaussian does not see the edge
    window = np.ones((reach, reach), np.uint8)
    eroded = cv2.erode(disc, window, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside = (eroded > 0) & _inner(len(green))
    if int(inside.sum()) < _FEWEST:
        return float("nan"), float("nan")
    logarithm = np.log(green.astype(np.float32) + np.float32(_DARK))
    rough = cv2.filter2D(logarithm, -1, _SECOND_DIFFERENCES)[inside]
    noise = float(np.median(np.abs(rough))) / (_MEDIAN_OF_NORMAL * _GAIN)
    levels = [_blur(logarithm, scale) for scale in _SCALES]
    fine, coarse = (
        np.sqrt(max(float(np.square(a[inside] - b[inside]).mean()) - noise**2 * gain, 0.0))
        for a, b, gain in zip(levels[:-1], levels[1:], _noise_gains(), strict=True)
    )
    return float(coarse), float(fine / coarse) if coarse > 0 else float("nan")


def _blur(picture: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)


@cache
def _noise_gains() -> tuple[float, ...]:
    """Variance that white noise of variance 1 has after each of the bands."""
    impulse = np.zeros((65, 65), np.float32)
    impulse[32, 32] = 1
    levels = [_blur(impulse, scale) for scale in _SCALES]
    return tuple(float(np.square(a - b).sum()) for a, b in pairwise(levels))


@cache
def _inner(side: int) -> Mask:
    offsets = np.arange(side) + 0.5 - side / 2
    return np.asarray(np.square(offsets)[:, None] + np.square(offsets) < (_RIM * side / 2) ** 2)
