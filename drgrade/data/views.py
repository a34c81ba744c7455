"""What a pretext sees of a photograph: a zoomed view under a circular mask, with nothing left that the camera
could betray.

Corners, the notch at the rim, cut-off tops and burnt-in text all tell which way up a photograph is. So the
view is
scaled until its mask lies wholly inside what the camera recorded, and everything outside the mask is one
constant colour.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.augment import FundusAugmentation, Image
from drgrade.errors import ConfigError

FILL = (124, 116, 104)
"""Colour outside the mask (ImageNet's mean): zero after normalisation."""

MAX_MASK_RADIUS = 0.92
"""Share of the half side. Beyond it lie the rim of the disc, its vignette and the camera's notch."""


def circular_mask(size: int, radius: float = MAX_MASK_RADIUS) -> npt.NDArray[np.bool_]:
    """Disc about the centre of the pixel grid, ((size-1)/2, (size-1)/2), so that quarter turns map it onto
    itself exactly.

    Args:
        size: Side in pixels.
        radius: Share of the half side, in (0, 0.92].

    Returns:
        (size, size), True inside.

    Raises:
        ConfigError: If the radius is out of range.
    """
    if not 0 < radius <= MAX_MASK_RADIUS:
        raise ConfigError(f"pretext.views.mask_radius={radius} is not in (0, {MAX_MASK_RADIUS}]")
    offset = np.arange(size) - (size - 1) / 2
    return np.hypot(offset[:, None], offset[None, :]) <= radius * size / 2


class MaskedView:
    """The view of one photograph that a pretext works on."""

    def __init__(
        self,
        mask_radius: float = MAX_MASK_RADIUS,
        zoom: Sequence[float] = (0.85, 1.15),
        horizontal_flip: bool = True,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        shading: float = 0.0,
    ) -> None:
        """Set what is drawn.

        Args:
            mask_radius: Radius of the mask as a share of the half side, in (0, 0.92].
            zoom: Range of scales. Only their ratio counts: the widest view is the one that just fits into
                what was recorded.
            horizontal_flip: Mirror half of the views. There is no vertical flip: it is a mirror and half a
                turn, and would change
                the label.
            brightness: See :class:`~drgrade.data.augment.FundusAugmentation`, as for the next three.
            contrast: Factor.
            saturation: Factor.
            hue: Shift.
            shading: Strength of a brightness gradient across the view, in a direction drawn evenly from the
                circle: up to 1 -+ this
                at opposite points of the mask. It drowns the camera's own uneven illumination, which has one
                direction.

        Raises:
            ConfigError: If a range makes no sense.
        """
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise ConfigError(
                f"pretext.views.zoom={list(zoom)} is not a range [low, high] of positive numbers"
            )
        if not 0 <= shading < 1:
            raise ConfigError(f"pretext.views.shading={shading} is not in [0, 1)")
        circular_mask(2, mask_radius)
        self.mask_radius = mask_radius
        self.zoom = (zoom[0], zoom[1])
        self.shading = shading
        self._augment = FundusAugmentation(
            horizontal_flip=horizontal_flip,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
        )
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}

    def __call__(self, image: Image, clear: float, seed: int | None) -> Image:
        """Make one view.

        Args:
            image: (S, S, 3) uint8 from the store: the disc, its rim at the half side.
            clear: Radius of the largest centred circle that was recorded, as a share of the half side, in (0,
                1].
            seed: Everything drawn follows from it; None for the widest view with nothing drawn.

        Returns:
            (S, S, 3) uint8; :data:`FILL` outside the mask.
        """
        size = image.shape[0]
        view = image
        if seed is None:
            view = zoom_about_centre(image, 1 / clear)
        else:
            rng = np.random.default_rng(seed)
            view = zoom_about_centre(image, rng.uniform(*self.zoom) / self.zoom[0] / clear)
            view = self._augment(view, int(rng.integers(2**32)))
            if self.shading:
                view = shade(view, rng.uniform(0, self.shading), rng.uniform(0, 2 * np.pi))
        mask = self._masks.setdefault(size, circular_mask(size, self.mask_radius))
        return np.where(mask[:, :, None], view, np.array(FILL, dtype=np.uint8))


def zoom_about_centre(image: Image, factor: float) -> Image:
    """Enlarge about ((S-1)/2, (S-1)/2), alike in both directions.

    Args:
        image: (S, S, 3) uint8.
        factor: At least 1, so that nothing from outside comes in.

    Returns:
        (S, S, 3) uint8.
    """
    centre = (image.shape[0] - 1) / 2
    shift = centre * (1 - factor)
    matrix = np.array([[factor, 0, shift], [0, factor, shift]])
    return np.asarray(
        cv2.warpAffine(
            image, matrix, image.shape[:2], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.uint8,
    )


def shade(image: Image, strength: float, angle: float) -> Image:
    """Multiply by a linear gradient.

    Args:
        image: (S, S, 3) uint8.
        strength: Factor 1 + strength at one end of a diameter, 1 - strength at the other.
        angle: Direction in radians.

    Returns:
        (S, S, 3) uint8.
    """
    offset = np.linspace(-1, 1, image.shape[0], dtype=np.float32)
    gradient = 1 + strength * (np.cos(angle) * offset[None, :] + np.sin(angle) * offset[:, None])
    return np.clip(image * gradient[:, :, None] + 0.5, 0, 255).astype(np.uint8)
