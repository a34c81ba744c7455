"""Normalisation of the illumination of a crop, selected by ``data.illumination``.

The functions take a crop, RGB, uint8 (S, S, 3), and the mask (S, S) of the recorded disc
(:func:`drgrade.data.geometry.recorded_mask`). They ignore pixels outside the mask and return black there.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, recorded_mask
from drgrade.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Illumination = Callable[[Pixels, Mask], Pixels]

GRAHAM_GAIN, GRAHAM_SIGMA, GRAHAM_GREY = 4.0, 1 / 30, 128.0
"""Factor on the difference from the local mean, standard deviation of the blur in radii of the disc, and
level that the local mean is mapped to."""

CLAHE_CLIP, CLAHE_GRID = 2.0, 8
"""Clip limit as a multiple of the mean count of a level in a tile; number of tiles along each side."""

_RIM = 0.03  # width, in radii, of the edge where the disc fades into the surround


def ben_graham(crop: Pixels, mask: Mask) -> Pixels:
    """Subtract the local mean colour.

    B. Graham, Kaggle Diabetic Retinopathy Detection competition report (winner), 2015: 4 I - 4 (G * I) + 128
    for each channel, with a Gaussian G whose standard deviation is 1/30 of the disc's radius. Here the mean
    is taken over the disc only (normalised convolution: G * (w I) / (G * w), with w = 1 inside), so that the
    black surround causes no glow along the rim.
    """
    radius = len(crop) / 2
    weight = _without_rim(mask, radius).astype(np.float32)[..., None]
    total = _blurred(weight * crop, GRAHAM_SIGMA * radius)
    # Beyond the reach of the kernel from any pixel with weight, nothing is subtracted.
    share = _blurred(weight, GRAHAM_SIGMA * radius)[..., None]
    mean = np.divide(total, share, out=crop.astype(np.float32), where=share > 1e-6)
    result = GRAHAM_GAIN * (crop - mean) + GRAHAM_GREY
    return _masked(np.clip(np.rint(result), 0, 255).astype(np.uint8), mask)


def clahe(crop: Pixels, mask: Mask) -> Pixels:
    """Equalise the histogram of lightness locally with limited contrast; keep the colours.

    K. Zuiderveld, Graphics Gems IV, 1994, on the L channel of CIELAB, with OpenCV's tiles and limit. The
    disc is first extended beyond its edge by reflection, so that no tile counts the black surround.
    """
    lab = cv2.cvtColor(reflected(crop, _without_rim(mask, len(crop) / 2)), cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(CLAHE_CLIP, (CLAHE_GRID, CLAHE_GRID))
    lab[..., 0] = equaliser.apply(np.ascontiguousarray(lab[..., 0]))
    return _masked(np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8), mask)


ILLUMINATIONS: dict[str, Illumination | None] = {"none": None, "ben_graham": ben_graham, "clahe": clahe}
"""Choices of ``data.illumination``; None keeps the crop unchanged."""


def check_illumination(name: str) -> None:
    """Check the value of ``data.illumination``.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in ILLUMINATIONS:
        raise ConfigError(f"data.illumination={name} is unknown: choose one of {', '.join(ILLUMINATIONS)}")


def illuminate(name: str, crop: Pixels, disc: Disc) -> Pixels:
    """Normalise the illumination of a crop of :func:`~drgrade.data.geometry.crop_disc`.

    Args:
        name: One of :data:`ILLUMINATIONS`.
        crop: RGB, uint8 (S, S, 3).
        disc: Disc of the crop.

    Raises:
        ConfigError: If the name is unknown.
    """
    check_illumination(name)
    normalise = ILLUMINATIONS[name]
    return crop if normalise is None else normalise(crop, recorded_mask(disc, len(crop)))


def reflected(crop: Pixels, mask: Mask) -> Pixels:
    """Extend the inside of a mask beyond its edge by reflection.

    Each pixel outside the mask is replaced by its reflection at the nearest pixel inside, or by the nearest
    pixel if the reflection is not inside. With an empty mask the crop is unchanged.
    """
    from scipy import ndimage  # imported here to keep the start of preparation workers fast

    if not mask.any():
        return crop
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    y, x = np.clip(2 * nearest - np.indices(mask.shape), 0, np.array(mask.shape)[:, None, None] - 1)
    y, x = np.where(mask[y, x], (y, x), nearest)
    extended: Pixels = crop[y, x]
    return extended


def _without_rim(mask: Mask, radius: float) -> Mask:
    """Remove the rim from a mask, where the disc fades into the surround."""
    place = (np.arange(len(mask)) + 0.5) / radius - 1
    return np.asarray(mask & (place[:, None] ** 2 + place**2 <= (1 - _RIM) ** 2))


def _blurred(values: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(
        cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT), dtype=np.float32
    )


def _masked(pixels: Pixels, mask: Mask) -> Pixels:
    black: Pixels = np.zeros_like(pixels)
    black[mask] = pixels[mask]
    return black
