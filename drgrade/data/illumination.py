"""Normalisation of the illumination of a crop, chosen by ``data.illumination``; a store holds one kind.

A fundus photograph is lit unevenly, and each one differently. The functions take a crop and where it shows
the disc as recorded (:func:`drgrade.data.geometry.recorded_mask`), look at nothing outside, and leave black
there.
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
"""Factor on the difference from the local mean, the blur's standard deviation in radii of the disc, and the
level that the local mean becomes."""

CLAHE_CLIP, CLAHE_GRID = 2.0, 8
"""Largest count of a level in a tile as a multiple of the mean count; number of tiles along each side."""

_RIM = 0.03  # width in radii: there the disc fades into the surround


def ben_graham(crop: Pixels, mask: Mask) -> Pixels:
    """Subtract the local mean colour, as the winner of the Kaggle competition of 2015 did.

    B. Graham, Kaggle Diabetic Retinopathy Detection competition report, 2015: 4 I - 4 (G * I) + 128 for
    each channel, with a Gaussian G whose standard deviation is 1/30 of the disc's radius. Here the mean is
    one over the disc only (normalised convolution: G * (w I) / (G * w), with w = 1 inside), so that the black
    surround causes no glow along the rim.

    Args:
        crop: RGB, uint8 of shape (S, S, 3).
        mask: (S, S), True where the crop shows the disc.

    Returns:
        uint8 of shape (S, S, 3), black outside the mask.
    """
    radius = len(crop) / 2
    weight = _without_rim(mask, radius).astype(np.float32)[..., None]
    total = _blurred(weight * crop, GRAHAM_SIGMA * radius)
    # Further than the kernel reaches from any pixel that counts there is nothing to subtract.
    share = _blurred(weight, GRAHAM_SIGMA * radius)[..., None]
    mean = np.divide(total, share, out=crop.astype(np.float32), where=share > 1e-6)
    result = GRAHAM_GAIN * (crop - mean) + GRAHAM_GREY
    return _masked(np.clip(np.rint(result), 0, 255).astype(np.uint8), mask)


def clahe(crop: Pixels, mask: Mask) -> Pixels:
    """Equalise the histogram of lightness locally, with limited contrast; colours stay.

    K. Zuiderveld, Graphics Gems IV, 1994, on the L channel of CIELAB, with OpenCV's tiles and limit. Before
    that the disc is continued beyond its edge by reflection, so that no tile counts the black surround.

    Args:
        crop: RGB, uint8 of shape (S, S, 3).
        mask: (S, S), True where the crop shows the disc.

    Returns:
        uint8 of shape (S, S, 3), black outside the mask.
    """
    lab = cv2.cvtColor(reflected(crop, _without_rim(mask, len(crop) / 2)), cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(CLAHE_CLIP, (CLAHE_GRID, CLAHE_GRID))
    lab[..., 0] = equaliser.apply(np.ascontiguousarray(lab[..., 0]))
    return _masked(np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8), mask)


ILLUMINATIONS: dict[str, Illumination | None] = {"none": None, "ben_graham": ben_graham, "clahe": clahe}
"""The choices for ``data.illumination``; None leaves the crop as it is."""


def check_illumination(name: str) -> None:
    """Stop at a wrong name before anything has been prepared.

    Raises:
        ConfigError: If ``data.illumination`` has no such choice.
    """
    if name not in ILLUMINATIONS:
        raise ConfigError(f"data.illumination={name} is unknown: choose one of {', '.join(ILLUMINATIONS)}")


def illuminate(name: str, crop: Pixels, disc: Disc) -> Pixels:
    """Normalise the illumination of a crop.

    Args:
        name: One of :data:`ILLUMINATIONS`.
        crop: RGB, uint8 of shape (S, S, 3), cut out by :func:`drgrade.data.geometry.crop_disc`.
        disc: The disc that it was cut out with.

    Returns:
        uint8 of shape (S, S, 3).

    Raises:
        ConfigError: If there is no such name.
    """
    check_illumination(name)
    normalise = ILLUMINATIONS[name]
    return crop if normalise is None else normalise(crop, recorded_mask(disc, len(crop)))


def reflected(crop: Pixels, mask: Mask) -> Pixels:
    """Continue what is inside a mask beyond its edge.

    Args:
        crop: uint8 of shape (S, S, C).
        mask: (S, S).

    Returns:
        The crop; outside the mask every pixel shows the one that lies as far beyond the nearest pixel inside,
        or, if that is not inside, the nearest pixel. Unchanged where the mask is empty.
    """
    from scipy import ndimage  # the processes that prepare a store import nothing that they do not need

    if not mask.any():
        return crop
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    y, x = np.clip(2 * nearest - np.indices(mask.shape), 0, np.array(mask.shape)[:, None, None] - 1)
    y, x = np.where(mask[y, x], (y, x), nearest)
    continued: Pixels = crop[y, x]
    return continued


def _without_rim(mask: Mask, radius: float) -> Mask:
    """The mask less the rim, where the disc fades into the surround and does not show the retina's colour."""
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
