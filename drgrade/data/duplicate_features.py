"""Features of photographs for the search for duplicates: detail and illumination.

Detail (vessels, lesions, the edge of the optic disc) is a narrow band of spatial frequencies of the
logarithm of the thumbnail, divided by its local contrast. Re-encoding, resizing, brightness and gamma hardly
change it. The illumination remains when detail is blurred away. Two exposures of one eye agree in detail but
not in illumination, because eye and flash are never aligned twice in the same way; copies agree in both.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from drgrade.data.geometry import Thumbnail

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COARSE_SIZE, FINE_SIZE, LIGHT_SIZE = 64, 128, 32
"""Sides in pixels of the images for retrieval and alignment, for fine detail, and for illumination."""

LEAST_DIAMETER = 64.0
"""Smallest diameter of the disc in pixels of the original that shows enough detail."""

LEAST_CONTRAST = 0.0135
"""Smallest standard deviation of the coarse detail in log units; below it there is little but noise."""

LEAST_SPREAD = 0.08
"""Smallest participation ratio of the spectrum; below it the detail is a regular pattern, not a retina."""

TURNS = 8
"""Orientations of a square: turned by 0, 90, 180, 270 degrees, and the same mirrored."""

_COARSE_BAND = (0.8, 2.0)  # standard deviations in pixels of the two Gaussians of a band
_FINE_BAND = (1.5, 4.0)
_LIGHT_BLUR = 2.0
_WITHIN = 0.95  # share of the radius that is used: rims glow, and fits of the disc differ
_OFFSET = 8.0  # grey levels added before the logarithm, which would amplify noise in dark regions
_LEAST_LOCAL_CONTRAST = 0.01
_LOWEST, _HIGHEST = 8, 24  # band of a descriptor in half cycles across the square


@dataclass(frozen=True)
class Detail:
    """Detail of a thumbnail.

    Attributes:
        signal: float32 (S, S), mean 0 and about unit variance where known, 0 elsewhere.
        known: bool (S, S), True in the recorded disc.
        contrast: Standard deviation before the division by the local contrast, in log units.
    """

    signal: Floats
    known: Mask
    contrast: float


def coarse_detail(thumbnail: Thumbnail) -> Detail:
    """Compute the detail for retrieval and alignment, S = 64."""
    return _detail(thumbnail, COARSE_SIZE, _COARSE_BAND)


def fine_detail(thumbnail: Thumbnail) -> Detail:
    """Compute the detail for the comparison of aligned photographs, S = 128."""
    return _detail(thumbnail, FINE_SIZE, _FINE_BAND)


def brightness(thumbnail: Thumbnail) -> tuple[Floats, Mask]:
    """Return the logarithm of the brightness, float32 (32, 32), and the mask of known pixels."""
    return _scaled(thumbnail, LIGHT_SIZE)


def light(brightness: Floats, known: Mask) -> Floats:
    """Blur brightness until no detail is left, and return the values of the known pixels.

    The known pixels must be the same for two photographs that are compared.
    """
    return _blur(brightness, known, _LIGHT_BLUR)[known]


def _scaled(thumbnail: Thumbnail, size: int) -> tuple[Floats, Mask]:
    """Return the logarithm of a resized thumbnail, (S, S), and the mask of known pixels."""
    share = cv2.resize((thumbnail > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    grey = cv2.resize(thumbnail, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.log(grey + np.float32(_OFFSET)), (share > 0.999) & _inner(size)


@cache
def _inner(size: int) -> Mask:
    """Return the disc without its rim, (S, S)."""
    offsets = np.arange(size) + 0.5 - size / 2
    return np.asarray(np.square(offsets)[:, None] + np.square(offsets) < (_WITHIN * size / 2) ** 2)


def _blur(image: Floats, known: Mask, sigma: float) -> Floats:
    """Blur known pixels with a Gaussian (normalised convolution, Knutsson and Westin 1993)."""
    weights = known.astype(np.float32)
    total = cv2.GaussianBlur(image * weights, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    weight = cv2.GaussianBlur(weights, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(total / np.maximum(weight, np.float32(1e-3)), np.float32)


def _detail(thumbnail: Thumbnail, size: int, band: tuple[float, float]) -> Detail:
    logarithm, known = _scaled(thumbnail, size)
    if not known.any():
        return Detail(np.zeros((size, size), np.float32), known, 0.0)
    fine, coarse = band
    detail = _blur(logarithm, known, fine) - _blur(logarithm, known, coarse)
    local = np.sqrt(np.maximum(_blur(detail * detail, known, 2 * coarse), 0) + _LEAST_LOCAL_CONTRAST**2)
    signal = detail / local
    centred = np.where(known, signal - signal[known].mean(), np.float32(0))
    return Detail(np.asarray(centred, np.float32), known, float(detail[known].std()))


def descriptor(detail: Detail) -> Floats:
    """Compute the spectrum of the coarse detail between 4 and 12 cycles across the disc.

    Higher frequencies differ between the discs found in a photograph and in its cropped copy. The spectrum
    is a discrete cosine transform, so that a mirror image only changes signs.

    Returns:
        float32 (D,) of unit length; zeros if there is no detail.
    """
    spectrum = fft.dctn(detail.signal, norm="ortho")
    values = np.asarray(spectrum[_band()], np.float32)
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


@cache
def _band() -> tuple[Ints, Ints]:
    """Return rows and columns of the descriptor in the spectrum, sorted by parity."""
    row, column = np.divmod(np.arange(_HIGHEST**2), _HIGHEST)
    inside = (row**2 + column**2 >= _LOWEST**2) & (row**2 + column**2 < _HIGHEST**2)
    order = np.lexsort((column, row, column % 2, row % 2, ~inside))[: inside.sum()]
    return row[order], column[order]


@cache
def parities() -> tuple[slice, slice, slice, slice]:
    """Return the parts of a descriptor by parity of row and column: both even, ..., both odd.

    Mirroring left to right changes the sign of the parts with odd columns; mirroring upside down changes that
    of odd rows.
    """
    row, column = _band()
    start = np.searchsorted(2 * (row % 2) + column % 2, np.arange(5))
    even_even, even_odd, odd_even, odd_odd = (slice(int(a), int(b)) for a, b in pairwise(start))
    return even_even, even_odd, odd_even, odd_odd


def distinctive_descriptor(thumbnail: Thumbnail) -> Floats | None:
    """Return the descriptor of a thumbnail; None if it shows too little detail to identify a photograph."""
    detail = coarse_detail(thumbnail)
    spectrum = descriptor(detail)
    # Participation ratio: 1 / (D sum v^4) is k / D if k of the D numbers are equal and the others 0.
    spread = 1 / (len(spectrum) * float((spectrum.astype(np.float64) ** 4).sum()) + 1e-12)
    return spectrum if detail.contrast >= LEAST_CONTRAST and LEAST_SPREAD <= spread <= 1 else None


def orient_descriptors(descriptors: Floats, turn: int) -> Floats:
    """Convert descriptors (..., D) to those of the thumbnails after :func:`orient`."""
    order, signs = _orientation_of_spectrum(turn)
    return descriptors[..., order] * signs


def orient(image: Thumbnail, turn: int) -> Thumbnail:
    """Turn and mirror a square image.

    Args:
        image: (S, S).
        turn: 0-3: number of counter-clockwise quarter turns; 4-7: ``turn - 4`` quarter turns after mirroring
            left to right.
    """
    return np.ascontiguousarray(np.rot90(np.fliplr(image) if turn >= 4 else image, turn % 4))


@cache
def _orientation_of_spectrum(turn: int) -> tuple[Ints, Floats]:
    """Return the permutation and signs of a descriptor under :func:`orient`."""
    band = _band()
    order = np.zeros((_HIGHEST, _HIGHEST), np.int64)
    order[band] = np.arange(len(band[0]))
    signs = np.ones(order.shape, np.float32)
    odd = np.where(np.arange(_HIGHEST) % 2, -1, 1).astype(np.float32)
    if turn >= 4:
        signs = signs * odd  # cosines of odd frequency are odd about the middle
    for _ in range(turn % 4):
        order, signs = order.T, signs.T * odd[:, None]  # a quarter turn: transpose, then upside down
    return order[band], signs[band]
