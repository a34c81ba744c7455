"""What the photographs show: light, contrast and focus, measured inside the disc that the camera recorded.

Focus is the ratio of fine to coarse detail. Detail is what a band of spatial frequencies (a difference of two
Gaussians) leaves of the logarithm of the green channel, where vessels have the most contrast; the logarithm
makes it independent of exposure, the ratio of how much there is to see. Blur takes fine detail away first.
Noise adds to it: its variance is estimated (Immerkaer 1996, with the median that makes it robust) and what it
contributes to each band is subtracted. The principle, to compare with a blurred copy, is that of Crete et al.
2007 ("The blur effect"); that band-passed energy tells the focus of fundus photographs is from Marrugo et al.
2012.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.audit.findings import Finding, plain
from drgrade.audit.settings import Settings
from drgrade.data.store import Store
from drgrade.progress import track

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
_LEAST_RANKED = 20  # photographs that an outlier can be told from

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


def measure_all(store: Store) -> pd.DataFrame:
    """Measure every photograph of a store, one in memory at a time.

    Returns:
        Columns of :class:`Quality`; row i is image i.
    """
    diameters = 2 * store.manifest["circle_r"].to_numpy(dtype=float)
    rows = track(range(len(store)), len(store), "looking at", f"photographs of {store.name}")
    found = [measure(np.asarray(store.images[i]), store.thumbnails[i] > 0, diameters[i]) for i in rows]
    return pd.DataFrame(found, columns=list(Quality._fields), dtype="float64")


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


def quality_findings(
    manifest: pd.DataFrame, qualities: pd.DataFrame, image_size: int, settings: Settings
) -> Iterator[Finding]:
    """Judge what was measured; of each kind the worst come first.

    Args:
        manifest: Row i describes photograph i.
        qualities: Columns of :class:`Quality`, row i of photograph i.
        image_size: Side of the prepared photographs in pixels.
        settings: The thresholds.
    """
    least = max(settings.tiny_below, image_size)
    blank = qualities["contrast"] < settings.blank_below
    tests = {
        "blank": (blank, qualities["contrast"], "contrast {:.4f}"),
        "dark": (qualities["level"] < settings.dark_below, qualities["level"], "level {:.0f} of 255"),
        "over_exposed": (
            qualities["over_exposed"] > settings.over_exposed_above,
            -qualities["over_exposed"],
            "{:.0%} of the disc",
        ),
        "out_of_focus": (
            _out_of_focus(manifest["dataset"], qualities["focus"], settings) & ~blank,
            qualities["focus"],
            "focus {:.2f}",
        ),
        "tiny": (
            qualities["diameter"] < least,
            qualities["diameter"],
            f"disc {{:.0f}} px across, {least:.0f} wanted",
        ),
    }
    for kind, (found, badness, text) in tests.items():
        for row in badness[found].sort_values(kind="stable").index:
            yield _finding(kind, manifest, int(row), text.format(abs(badness[row])))


def _out_of_focus(datasets: pd.Series, focus: pd.Series, settings: Settings) -> pd.Series:
    """Blurred outright, or an outlier among the photographs of its data set."""
    found = focus < settings.blurred_below
    logarithm = np.log(focus.where(focus > 0))
    for _, values in logarithm.groupby(datasets):
        known = values.dropna()
        if len(known) >= _LEAST_RANKED:
            spread = 1.4826 * float((known - known.median()).abs().median())
            limit = float(known.median()) - settings.outlying_deviations * spread
            outlying = known.index[(known < limit) & (focus[known.index] < settings.outlying_below)]
            found[outlying] = True
    return found


def _finding(kind: str, manifest: pd.DataFrame, row: int, detail: str) -> Finding:
    values = {
        name: plain(manifest[name].iloc[row]) for name in ("image_id", "dataset", "grade", "split", "path")
    }
    return Finding(kind, **values, detail=detail, row=row)
