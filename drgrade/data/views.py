"""What a pretext sees of a photograph: a view under a circular mask, without what the camera could betray.

Corners, the notch at the rim, cut-off tops, burnt-in text and light that falls off to one side all tell which
way up a photograph is. So the view is scaled until its mask lies wholly inside what the camera recorded,
everything outside the mask is one constant colour, a band inside the mask's edge is one colour per
photograph, and the view is levelled. What that leaves is measured in ``docs/rotation.md``.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.augment import FundusAugmentation, Image
from drgrade.errors import ConfigError

FILL = (124, 116, 104)
"""Colour outside the mask, and nowhere else (ImageNet's mean): zero after normalisation."""

MAX_MASK_RADIUS = 0.92
"""Share of the half side."""

_STEEPEST = 0.8
"""Steepest slope of brightness that is levelled, as a share of the mean on one radius: dark pixels would be
amplified fivefold."""


class Views(Protocol):
    """What a pretext sees of a photograph: one view, or several."""

    def __call__(self, image: Image, clear: float, seed: int | None) -> Image | tuple[Image, ...]:
        """Make the views.

        Args:
            image: (S, S, 3) uint8 from the store: the disc, its rim at the half side.
            clear: Radius of the largest centred circle that was recorded, as a share of the half side, in (0,
                1].
            seed: Everything drawn follows from it; None for what is shown in validation, where nothing is
                left to chance.

        Returns:
            (S', S', 3) uint8, or several of them; views of one photograph may differ in size.
        """


def circular_mask(size: int, radius: float = MAX_MASK_RADIUS) -> npt.NDArray[np.bool_]:
    """Disc about the centre of the pixel grid, ((size-1)/2, (size-1)/2), which quarter turns map onto itself.

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
    return np.asarray(np.hypot(offset[:, None], offset[None, :]) <= radius * size / 2)


class _Regions(NamedTuple):
    """Where a view of one size shows what."""

    core: npt.NDArray[np.bool_]  # (S, S), the photograph
    band: npt.NDArray[np.bool_]  # (S, S), the photograph's mean colour
    outside: npt.NDArray[np.uint8]  # (S, S), 1 where FILL is shown
    surround: Image  # (S, S, 3), FILL everywhere


class MaskedView:
    """The view of one photograph that a pretext works on."""

    def __init__(
        self,
        mask_radius: float = MAX_MASK_RADIUS,
        band: float = 0.1,
        level: bool = True,
        zoom: Sequence[float] = (0.85, 1.15),
        horizontal_flip: bool = True,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        """Set what is drawn.

        Args:
            mask_radius: Radius of the mask as a share of the half side, in (0, 0.92].
            band: Width of the band inside the mask's edge, as a share of the mask's radius, in [0.05, 0.5].
                It shows the mean colour of the photograph, the same in all directions: the rim of the view
                tells nothing.
            level: Divide each colour by its gradient across the view; see :func:`levelled`.
            zoom: Range of scales. Only their ratio counts: the widest view is the one whose mask just fits
                into what was recorded.
            horizontal_flip: Mirror half of the views. There is no vertical flip: it is a mirror and half a
                turn, and would change the label.
            brightness: See :class:`~drgrade.data.augment.FundusAugmentation`, as for the next three.
            contrast: Factor.
            saturation: Factor.
            hue: Shift.

        Raises:
            ConfigError: If a value is out of range.
        """
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise ConfigError(
                f"pretext.views.zoom={list(zoom)} is not a range [low, high] of positive numbers"
            )
        if not 0.05 <= band <= 0.5:
            raise ConfigError(f"pretext.views.band={band} is not in [0.05, 0.5]")
        circular_mask(2, mask_radius)
        self.mask_radius, self.band, self.level = mask_radius, band, level
        self.zoom = (zoom[0], zoom[1])
        self._augment = FundusAugmentation(
            horizontal_flip=horizontal_flip,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
        )
        self._regions: dict[int, _Regions] = {}

    def __call__(self, image: Image, clear: float, seed: int | None) -> Image:
        """Make one view.

        Args:
            image: (S, S, 3) uint8 from the store: the disc, its rim at the half side.
            clear: Radius of the largest centred circle that was recorded, as a share of the half side, in (0,
                1].
            seed: Everything drawn follows from it; None for the widest view with nothing drawn.

        Returns:
            (S, S, 3) uint8; :data:`FILL` outside the mask, and only there.
        """
        # Half a pixel less than was recorded: interpolation reaches over the edge.
        widest = self.mask_radius / (clear - 1 / len(image))
        if seed is None:
            view = zoom_about_centre(image, widest)
        else:
            rng = np.random.default_rng(seed)
            view = zoom_about_centre(image, widest * rng.uniform(*self.zoom) / self.zoom[0])
            view = self._augment(view, int(rng.integers(2**32)))
        size = image.shape[0]
        if size not in self._regions:
            self._regions[size] = _regions(size, self.mask_radius, self.band)
        core, band, outside, surround = self._regions[size]
        if self.level:
            view = levelled(view, core)
        view[band] = np.round(cv2.mean(view, core.view(np.uint8))[:3])
        # A pixel of just this colour would be a hole in the silhouette.
        view[cv2.inRange(view, np.array(FILL), np.array(FILL)) > 0] += 1
        return np.asarray(cv2.copyTo(surround, outside, view), np.uint8)


def zoom_about_centre(image: Image, factor: float) -> Image:
    """Scale about ((S-1)/2, (S-1)/2), alike in both directions; a new array.

    Args:
        image: (S, S, 3) uint8.
        factor: Above 1 enlarges. Below 1 the border is repeated outwards.

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


def levelled(image: Image, core: npt.NDArray[np.bool_]) -> Image:
    """Divide each colour by the plane that fits it best, in the sense of least squares: no side is brighter.

    A camera's light falls off to one side, the same one in most of its photographs. That gradient alone, four
    pixels of each photograph, gives the rotation of three in four of IDRiD.

    Args:
        image: (S, S, 3) uint8.
        core: (S, S); where the plane is fitted. It must be its own image under quarter turns.

    Returns:
        (S, S, 3) uint8 with the same mean, up to rounding, in ``core``.
    """
    inside = cv2.copyTo(image, core.view(np.uint8))
    rows = cv2.reduce(inside, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32F)[:, 0]  # (S, 3), sums over each row
    columns = cv2.reduce(inside, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32F)[0]  # (S, 3)
    offset = np.linspace(-1, 1, len(image), dtype=np.float32)
    mean = rows.sum(axis=0) / np.float32(core.sum())
    slopes = np.stack((offset @ rows, offset @ columns)) / np.maximum(mean, 1)  # (2, 3): y, x
    slopes /= offset**2 @ core.sum(axis=0, dtype=np.float32)
    slopes *= np.minimum(1, _STEEPEST / np.maximum(np.hypot(*slopes), 1e-6))
    across = np.tile(slopes[1], len(image)) * np.repeat(offset, 3) + 1
    plane = np.multiply.outer(offset, np.tile(slopes[0], len(image))) + across  # (S, 3S): fast, as one row
    return np.asarray(cv2.divide(image, plane.reshape(image.shape), dtype=cv2.CV_8U), np.uint8)


def _regions(size: int, radius: float, band: float) -> _Regions:
    mask, core = circular_mask(size, radius), circular_mask(size, radius * (1 - band))
    surround = np.full((size, size, 3), FILL, np.uint8)
    return _Regions(core, mask & ~core, (~mask).astype(np.uint8), surround)
