"""Verification of candidate pairs by alignment and comparison."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.duplicates.features import (
    COARSE_SIZE,
    FINE_SIZE,
    LIGHT_SIZE,
    Detail,
    Floats,
    brightness,
    coarse_detail,
    fine_detail,
    light,
)
from drgrade.data.duplicates.thumbnail import Thumbnail

LEAST_SIMILARITY = 0.8
"""Smallest correlation of the fine detail of copies."""

MOST_LIGHT = 0.012
"""Largest difference of the illumination of copies in log units (1.2 %); two flashes rarely agree so well."""

MOST_ROTATION = 0.4
"""Largest measured rotation of copies in degrees."""

MOST_SCALE = 0.03
"""Largest logarithm of the ratio of the disc sizes of copies."""

MOST_SHIFT = 0.02
"""Largest shift between the discs of copies as a share of the diameter."""

_LEAST_COARSE_SIMILARITY = 0.75
_LEAST_COMMON = 0.3  # share of the square that both must show
_ITERATIONS, _STEP = 20, 1e-4

Affine = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Portrait:
    """Features of one photograph for comparison.

    Attributes:
        coarse: See :func:`~drgrade.data.duplicates.features.coarse_detail`.
        fine: See :func:`~drgrade.data.duplicates.features.fine_detail`.
        brightness: See :func:`~drgrade.data.duplicates.features.brightness`.
        lit: Where the brightness is known.
    """

    coarse: Detail
    fine: Detail
    brightness: Floats
    lit: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, thumbnail: Thumbnail) -> "Portrait":
        """Compute the features of a thumbnail."""
        return cls(coarse_detail(thumbnail), fine_detail(thumbnail), *brightness(thumbnail))


@dataclass(frozen=True)
class CopyMatch:
    """Alignment and similarity of two photographs.

    Attributes:
        similarity: Correlation of the fine detail where both show something, -1..1.
        light: Standard deviation of the difference of their light, in log units, after the best tone curve.
        scale: How much larger the second shows the retina, in units of the disc's radius.
        rotation: In degrees.
        shift: Of the centre, as a share of the disc's diameter.
    """

    similarity: float
    light: float
    scale: float
    rotation: float
    shift: float

    @property
    def one_exposure(self) -> bool:
        """Whether they are copies of one exposure."""
        return (
            self.similarity >= LEAST_SIMILARITY
            and self.light <= MOST_LIGHT
            and abs(self.rotation) <= MOST_ROTATION
            and abs(np.log(self.scale)) <= MOST_SCALE
            and self.shift <= MOST_SHIFT
        )


def compare(first: Portrait, second: Portrait) -> CopyMatch | None:
    """Lay the second photograph over the first and compare.

    Args:
        first: The one that stays.
        second: The one that is moved, already mirrored and turned as it has to be.

    Returns:
        None if they cannot be laid over each other.
    """
    warp = _align(first.coarse, second.coarse)
    if warp is None:
        return None
    moved, known = _moved(second.fine.values, second.fine.known, _at_size(warp, FINE_SIZE))
    common = known & first.fine.known
    if common.mean() < _LEAST_COMMON:
        return None
    similarity = _correlation(first.fine.values[common], moved[common])
    moved, known = _moved(second.brightness, second.lit, _at_size(warp, LIGHT_SIZE))
    common = known & first.lit
    residual = _tone_residual(light(first.brightness, common), light(moved, common))
    linear = warp[:, :2].astype(np.float64)
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    rotation = float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])))
    centre = np.full(2, (COARSE_SIZE - 1) / 2)
    shift = float(np.hypot(*(linear @ centre + warp[:, 2] - centre))) / COARSE_SIZE
    return CopyMatch(similarity, residual, scale, rotation, shift)


def _align(first: Detail, second: Detail) -> Affine | None:
    """Find the affine map from the first picture's pixels to the second's that correlates them best.

    Enhanced correlation coefficient, Evangelidis and Psarakis 2008. It starts from the identity: retrieval
    has found them to correlate as they are.

    Returns:
        float32 (2, 3), at the coarse size; None if they do not correlate.
    """
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, _STEP)
    mask = second.known.astype(np.uint8) * np.uint8(255)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        correlation, warp = cv2.findTransformECC(
            first.values, second.values, start, cv2.MOTION_AFFINE, criteria, mask, 1
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return None
    return np.asarray(warp, np.float32) if correlation >= _LEAST_COARSE_SIMILARITY else None


def _at_size(warp: Affine, size: int) -> Affine:
    """The same map between pictures of another size; pixel centres are at whole numbers."""
    linear, centre, new_centre = warp[:, :2], (COARSE_SIZE - 1) / 2, (size - 1) / 2
    offset = linear.sum(axis=1) * centre + warp[:, 2] - centre
    return np.column_stack(
        (linear, new_centre + offset * size / COARSE_SIZE - linear.sum(axis=1) * new_centre)
    )


def _moved(
    values: Floats, known: npt.NDArray[np.bool_], warp: Affine
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    size = values.shape[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(values, warp, size, flags=flags)
    share = cv2.warpAffine(known.astype(np.float32), warp, size, flags=flags)
    return np.asarray(moved, np.float32), share > 0.99


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), 1e-6))


def _tone_residual(x: Floats, y: Floats) -> float:
    """Standard deviation of what a curve of second order leaves of y given x, or of x given y."""
    return max(_residual_of(x, y), _residual_of(y, x))


def _residual_of(x: Floats, y: Floats) -> float:
    x = x - x.mean()
    design = np.stack((np.ones_like(x), x, x * x), axis=1)
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.std(y - design @ solution))
