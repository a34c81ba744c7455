"""Views without any edge of the camera: squares cut from inside the circle that was recorded, one or several.

A pretext that compares places of a photograph, or two views of it, must find nothing of the rim, of what was
cut off, or of the black around: each differs from camera to camera and tells where a piece lies, or whose
photograph it is. A square that lies wholly inside the recorded circle shows none of it.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from drgrade.data.augment import FundusAugmentation, Image
from drgrade.data.views import Views, levelled
from drgrade.errors import ConfigError

_TRIES = 64
"""Places drawn at once for a square; the centre if none of them fits."""

_MARGIN = 2**0.5
"""Pixels inside what was recorded: interpolation reaches to the next pixel, also along a diagonal."""

_BLUR = (0.1, 2.0)
"""Standard deviation in pixels at 224 pixels, as SimCLR draws it (Chen et al., ICML 2020, appendix A)."""


class SquareView:
    """A square from inside the recorded circle, at a place and of a size that are drawn."""

    def __init__(
        self,
        area: Sequence[float] = (0.5, 1.0),
        size: int | None = None,
        level: bool = False,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        rotate: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        blur: float = 0.0,
    ) -> None:
        """Set what is drawn.

        Args:
            area: Range of the square's area, as a share of the largest square in the circle, in (0, 1].
            size: Side of the view in pixels; None for that of the stored photograph.
            level: Divide each colour by its gradient across the square; see
                :func:`~drgrade.data.views.levelled`.
            horizontal_flip: Mirror half of the views left to right.
            vertical_flip: Mirror half of the views upside down.
            rotate: Turn the square about its centre by up to this many degrees in either direction, 0 to 180;
                all of it stays inside the circle.
            brightness: See :class:`~drgrade.data.augment.FundusAugmentation`, as for the next three.
            contrast: Factor.
            saturation: Factor.
            hue: Shift.
            grayscale: Share of the views whose colour is taken away, 0 to 1.
            blur: Share of the views that are blurred, 0 to 1; by a Gaussian of 0.1 to 2 pixels at 224 pixels.

        Raises:
            ConfigError: If a value is out of range.
        """
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise ConfigError(f"pretext.views: area={list(area)} is not a range [low, high] in (0, 1]")
        for name, value, highest in (("grayscale", grayscale, 1), ("blur", blur, 1), ("rotate", rotate, 180)):
            if not 0 <= value <= highest:
                raise ConfigError(f"pretext.views: {name}={value} is not in [0, {highest}]")
        if size is not None and size < 8:
            raise ConfigError(f"pretext.views: size={size} is not at least 8 pixels")
        self.area, self.size, self.level = (area[0], area[1]), size, level
        self.rotate, self.grayscale, self.blur = rotate, grayscale, blur
        self._augment = FundusAugmentation(
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
        )

    def __call__(self, image: Image, clear: float, seed: int | None) -> Image:
        """Make one view.

        Args:
            image: (S, S, 3) uint8 from the store: the disc, its rim at the half side.
            clear: Radius of the largest centred circle that was recorded, as a share of the half side, in (0,
                1].
            seed: Everything drawn follows from it; None for the largest square about the centre with nothing
                drawn.

        Returns:
            (S', S', 3) uint8; every pixel of it was recorded.
        """
        size = self.size or len(image)
        radius = clear * len(image) / 2 - _MARGIN
        if seed is None:
            return self._levelled(_cut(image, radius / 2**0.5, np.zeros(2), 0.0, size))
        rng = np.random.default_rng(seed)
        half = radius * (rng.uniform(*self.area) / 2) ** 0.5
        angle = rng.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        view = self._levelled(_cut(image, half, _place(rng, radius, half), angle, size))
        view = self._augment(view, int(rng.integers(2**32)))
        if rng.uniform() < self.grayscale:
            view = np.repeat(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
        if rng.uniform() < self.blur:
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), rng.uniform(*_BLUR) * size / 224), np.uint8)
        return view

    def _levelled(self, view: Image) -> Image:
        return levelled(view, np.ones(view.shape[:2], np.bool_)) if self.level else view


class SeveralViews:
    """Several views of one photograph, each drawn for itself."""

    def __init__(self, views: Sequence[Views], counts: Sequence[int] | None = None) -> None:
        """Say how many of which.

        Args:
            views: Kinds of views, in their order.
            counts: How many of each kind, 0 for none; None for one of each.

        Raises:
            ConfigError: If there is not a count for each kind, or there is no view at all.
        """
        counts = [1] * len(views) if counts is None else list(counts)
        if not views or len(counts) != len(views) or min(counts) < 0 or sum(counts) < 1:
            raise ConfigError(
                f"pretext.views: counts={counts} is not a number for each of {len(views)} kinds of views, "
                "at least 1 in all"
            )
        self._views = [view for view, count in zip(views, counts, strict=True) for _ in range(count)]

    def __call__(self, image: Image, clear: float, seed: int | None) -> tuple[Image, ...]:
        """Make the views; see :class:`~drgrade.data.views.Views`.

        Without a seed the first view of all is the one with nothing drawn, and the others are drawn alike for
        all photographs: two views that are the same would make a task about two views trivial.
        """
        if seed is None and len(self._views) == 1:
            seeds: list[int | None] = [None]
        else:
            state = np.random.SeedSequence(0 if seed is None else seed).generate_state(len(self._views))
            seeds = [int(each) for each in state]
            seeds[0] = None if seed is None else seeds[0]
        made: list[Image] = []
        for view, own in zip(self._views, seeds, strict=True):
            seen = view(image, clear, own)
            made += seen if isinstance(seen, tuple) else (seen,)
        return tuple(made)


def _place(
    rng: np.random.Generator, radius: float, half: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Centre of a square of any orientation that lies in a circle, drawn evenly over all such places.

    Args:
        rng: Draws it.
        radius: Of the circle, in pixels.
        half: Half the side of the square, in pixels.

    Returns:
        (x, y) from the circle's centre.
    """
    room = max(0.0, radius - half * 2**0.5)
    places = rng.uniform(-room, room, (_TRIES, 2))
    inside = np.hypot(*places.T) <= room
    return np.asarray(places[inside.argmax()] if inside.any() else np.zeros(2))


def _cut(
    image: Image, half: float, centre: np.ndarray[tuple[int], np.dtype[np.float64]], angle: float, size: int
) -> Image:
    """A square of an image, scaled.

    Args:
        image: (S, S, 3) uint8.
        half: Half the side of the square, in pixels.
        centre: (x, y) from the centre of the image.
        angle: Degrees by which the square is turned.
        size: Side of the result in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    scale = 2 * half / size
    turn = np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = (len(image) - 1) / 2 + np.asarray(centre)
    shift = middle - matrix @ np.full(2, (size - 1) / 2)
    # Where each pixel comes from; shrunk by more than two, pixels between would be passed over.
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if scale > 2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), scale / 4), np.uint8)
    whole = np.column_stack((matrix, shift))
    return np.asarray(
        cv2.warpAffine(image, whole, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
