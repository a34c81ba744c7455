"""Transforms of photographs: augmentation, views of the pretexts, and normalisation.

The rim, cut-off parts, the black surround and burnt-in text differ from camera to camera and reveal
orientation, position and identity, so that a pretext could be solved without the retina. :class:`MaskedView`
and :class:`SquareView` exclude them; ``docs/rotation.md`` and ``docs/pretexts`` measure residual shortcuts.
"""

import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.errors import ConfigError

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MEAN = (0.485, 0.456, 0.406)
"""ImageNet channel means (RGB, values in [0, 1]), expected by timm weights."""

STD = (0.229, 0.224, 0.225)
"""ImageNet channel standard deviations."""

FILL = (124, 116, 104)
"""Colour of pixels outside the mask, and of no others: ImageNet's mean, zero after normalisation."""

MAX_MASK_RADIUS = 0.92
"""Largest radius of the mask, as a share of the half side."""

_MAX_SLOPE = 0.8  # steepest brightness slope that is levelled, relative to the mean
_ATTEMPTS = 64  # positions drawn for a square; the centre is used if none of them fits
_MARGIN = 2**0.5  # pixels kept clear of the recorded edge: interpolation reads a diagonal neighbour
_BLUR = (0.1, 2.0)  # standard deviations in pixels at 224 pixels (SimCLR, Chen et al., ICML 2020, app. A)


class Augmentation(Protocol):
    """Map a photograph to one of the same shape."""

    def __call__(self, image: Image, seed: int) -> Image:
        """Augment an image, (H, W, 3) uint8, RGB; the seed determines all random choices."""


class FundusAugmentation:
    """Random zoom, flips, rotation and colour jitter.

    The published protocol uses zoom 0.85-1.15 and both flips only.
    """

    def __init__(
        self,
        zoom: Sequence[float] = (1.0, 1.0),
        rotate: float = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        """Initialise the transform.

        Args:
            zoom: Range of the scale, the same in both directions; below 1 the border is filled with black.
            rotate: Largest rotation in degrees, in either direction, 0 to 180.
            horizontal_flip: Mirror half of the photographs left to right.
            vertical_flip: Mirror half of the photographs upside down.
            brightness: Largest deviation of the brightness factor from 1, in [0, 1].
            contrast: Largest deviation of the contrast factor from 1, in [0, 1].
            saturation: Largest deviation of the saturation factor from 1, in [0, 1].
            hue: Largest hue shift as a share of the colour circle, in [0, 0.5].

        Raises:
            ConfigError: If a value is out of range.
        """
        colours = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        _check(zoom, rotate=rotate, **colours)
        transforms = _geometric(zoom, rotate, horizontal_flip, vertical_flip) + _colour(**colours)
        self._pipeline = _albumentations().Compose(transforms) if transforms else None

    def __call__(self, image: Image, seed: int) -> Image:
        """See :class:`Augmentation`."""
        if self._pipeline is None:
            return image
        # set_random_seed would give every transform the same seed: both flips would always coincide.
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        augmented: Image = self._pipeline(image=image)["image"]
        return augmented


def _check(zoom: Sequence[float], **strengths: float) -> None:
    if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
        raise ConfigError(f"augmentation: zoom={list(zoom)} is not a range [low, high] of positive numbers")
    for name, strength in strengths.items():
        highest = {"rotate": 180, "hue": 0.5}.get(name, 1)
        if not 0 <= strength <= highest:
            raise ConfigError(f"augmentation: {name}={strength} is not in [0, {highest}]")


def _albumentations() -> Any:
    """Import albumentations on first use (it takes seconds), without its version check over the network."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _geometric(zoom: Sequence[float], rotate: float, horizontal_flip: bool, vertical_flip: bool) -> list[Any]:
    transforms = []
    low, high = zoom
    if (low, high) != (1.0, 1.0) or rotate:
        affine = {"scale": (low, high), "rotate": (-rotate, rotate), "keep_ratio": True, "p": 1.0}
        transforms.append(_albumentations().Affine(**affine, interpolation=cv2.INTER_LINEAR, fill=0))
    if horizontal_flip:
        transforms.append(_albumentations().HorizontalFlip(p=0.5))
    if vertical_flip:
        transforms.append(_albumentations().VerticalFlip(p=0.5))
    return transforms


def _colour(brightness: float, contrast: float, saturation: float, hue: float) -> list[Any]:
    spans = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    if not any(spans.values()) and not hue:
        return []
    ranges = {name: (1 - span, 1 + span) for name, span in spans.items()}
    return [_albumentations().ColorJitter(**ranges, hue=(-hue, hue), p=1.0)]


class ViewTransform(Protocol):
    """Map a photograph to one or several views."""

    def __call__(self, image: Image, clear: float, seed: int | None) -> Image | tuple[Image, ...]:
        """Compute the views.

        Args:
            image: (S, S, 3) uint8 from the store; the rim of the disc lies at the half side.
            clear: Radius of the largest centred circle that was recorded, relative to the half side, in (0,
                1].
            seed: Seed of all random choices; None for the deterministic views of validation.

        Returns:
            (S', S', 3) uint8, or a tuple of them. Views of one photograph may differ in size.
        """


class MaskedView:
    """A view of the whole disc under a circular mask.

    The photograph is scaled until the mask lies inside the recorded circle. Everything outside the mask has
    one constant colour, a band inside the edge of the mask has one colour per photograph, and the brightness
    is levelled.
    """

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
        """Initialise the transform.

        Args:
            mask_radius: Radius of the mask relative to the half side, in (0, 0.92].
            band: Width of the band inside the edge of the mask, relative to the mask radius, in [0.05, 0.5].
                The band has the mean colour of the photograph in all directions.
            level: Divide each channel by its brightness gradient; see :func:`level_image`.
            zoom: Range of scales. Only their ratio matters: the mask of the widest view just fits into the
                recorded circle.
            horizontal_flip: Mirror half of the views. There is no vertical flip: combined with a mirror it is
                half a turn, which changes the label of rotation prediction.
            brightness: See :class:`~drgrade.data.transforms.FundusAugmentation`, also for the next three.
            contrast: Contrast jitter.
            saturation: Saturation jitter.
            hue: Hue jitter.

        Raises:
            ConfigError: If a value is out of range.
        """
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise ConfigError(
                f"pretext.views.zoom={list(zoom)} is not a range [low, high] of positive numbers"
            )
        if not 0.05 <= band <= 0.5:
            raise ConfigError(f"pretext.views.band={band} is not in [0.05, 0.5]")
        circular_mask(2, mask_radius)  # checks the radius
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
        """Compute the view; see :class:`ViewTransform`.

        Without a seed it is the widest view, without augmentation. The result has the size of the input;
        pixels outside the mask, and only those, are :data:`FILL`.
        """
        # Half a pixel less than the recorded radius: interpolation reads beyond the edge.
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
            view = level_image(view, core)
        view[band] = np.round(cv2.mean(view, core.view(np.uint8))[:3])
        # A pixel of the fill colour inside the mask would be a hole in the silhouette.
        view[cv2.inRange(view, np.array(FILL), np.array(FILL)) > 0] += 1
        return np.asarray(cv2.copyTo(surround, outside, view), np.uint8)


class SquareView:
    """A square of random size and position cut from inside the recorded circle."""

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
        """Initialise the transform.

        Args:
            area: Range of the area of the square, relative to the largest square in the circle, in (0, 1].
            size: Side of the view in pixels; None for that of the stored photograph.
            level: Divide each channel by its brightness gradient; see :func:`level_image`.
            horizontal_flip: Mirror half of the views left to right.
            vertical_flip: Mirror half of the views upside down.
            rotate: Largest angle in degrees by which the square is turned about its centre, 0 to 180. All of
                it stays inside the circle.
            brightness: See :class:`~drgrade.data.transforms.FundusAugmentation`, also for the next three.
            contrast: Contrast jitter.
            saturation: Saturation jitter.
            hue: Hue jitter.
            grayscale: Share of the views converted to grayscale, 0 to 1.
            blur: Share of the views blurred by a Gaussian of 0.1 to 2 pixels at 224 pixels, 0 to 1.

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
        """Compute the view; see :class:`ViewTransform`.

        Without a seed it is the largest centred square, without augmentation. Every pixel of the result was
        recorded.
        """
        size = self.size or len(image)
        radius = clear * len(image) / 2 - _MARGIN
        if seed is None:
            return self._level(_cut_square(image, radius / 2**0.5, np.zeros(2), 0.0, size))
        rng = np.random.default_rng(seed)
        half = radius * (rng.uniform(*self.area) / 2) ** 0.5
        angle = rng.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        view = self._level(_cut_square(image, half, _draw_centre(rng, radius, half), angle, size))
        view = self._augment(view, int(rng.integers(2**32)))
        if rng.uniform() < self.grayscale:
            view = np.repeat(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
        if rng.uniform() < self.blur:
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), rng.uniform(*_BLUR) * size / 224), np.uint8)
        return view

    def _level(self, view: Image) -> Image:
        return level_image(view, np.ones(view.shape[:2], np.bool_)) if self.level else view


class MultiView:
    """Several views of one photograph, drawn independently."""

    def __init__(self, views: Sequence[ViewTransform], counts: Sequence[int] | None = None) -> None:
        """Initialise the transform.

        Args:
            views: Transforms, in the order of their views.
            counts: Number of views of each transform, 0 for none; None for one each.

        Raises:
            ConfigError: If the number of counts is not the number of transforms, or there is no view.
        """
        counts = [1] * len(views) if counts is None else list(counts)
        if not views or len(counts) != len(views) or min(counts) < 0 or sum(counts) < 1:
            raise ConfigError(
                f"pretext.views: counts={counts} is not one number for each of {len(views)} kinds of views, "
                "at least 1 in all"
            )
        self._views = [view for view, count in zip(views, counts, strict=True) for _ in range(count)]

    def __call__(self, image: Image, clear: float, seed: int | None) -> tuple[Image, ...]:
        """Compute the views; see :class:`ViewTransform`.

        Without a seed the first view is the deterministic one, and the others are drawn with the same seeds
        for all photographs: identical views would make a task that compares two views trivial.
        """
        state = np.random.SeedSequence(seed or 0).generate_state(len(self._views))
        seeds: list[int | None] = [int(each) for each in state]
        if seed is None:
            seeds[0] = None
        results: list[Image] = []
        for transform, own_seed in zip(self._views, seeds, strict=True):
            view = transform(image, clear, own_seed)
            results += view if isinstance(view, tuple) else (view,)
        return tuple(results)


def normalise(images: Tensor) -> Tensor:
    """Scale stored pixels to [0, 1] and standardise each channel with the ImageNet statistics.

    Args:
        images: (..., 3, H, W) uint8.

    Returns:
        (..., 3, H, W) float32.

    Example:
        >>> normalise(torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten().round(decimals=2)
        tensor([-2.1200, -2.0400, -1.8000])
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def circular_mask(size: int, radius: float = MAX_MASK_RADIUS) -> Mask:
    """Return a disc about the centre of the pixel grid, ((size-1)/2, (size-1)/2).

    It is invariant under quarter turns.

    Args:
        size: Side in pixels.
        radius: Radius relative to the half side, in (0, 0.92].

    Returns:
        (size, size), True inside.

    Raises:
        ConfigError: If the radius is out of range.
    """
    if not 0 < radius <= MAX_MASK_RADIUS:
        raise ConfigError(f"pretext.views.mask_radius={radius} is not in (0, {MAX_MASK_RADIUS}]")
    offset = np.arange(size) - (size - 1) / 2
    return np.asarray(np.hypot(offset[:, None], offset[None, :]) <= radius * size / 2)


def zoom_about_centre(image: Image, factor: float) -> Image:
    """Scale an image about ((S-1)/2, (S-1)/2).

    Args:
        image: (S, S, 3) uint8.
        factor: Above 1 enlarges. Below 1 the border is repeated outwards.

    Returns:
        (S, S, 3) uint8, a new array.
    """
    shift = (image.shape[0] - 1) / 2 * (1 - factor)
    return _warp(image, np.array([[factor, 0, shift], [0, factor, shift]]), image.shape[0], cv2.INTER_LINEAR)


def level_image(image: Image, core: Mask) -> Image:
    """Divide each channel by its least-squares plane, so that no side is brighter than the other.

    The light of a camera falls off to one side, which is the same in most of its photographs. On IDRiD this
    gradient alone (four pixels per photograph) reveals the rotation of three photographs in four.

    Args:
        image: (S, S, 3) uint8.
        core: (S, S), True where the plane is fitted. It must be invariant under quarter turns.

    Returns:
        (S, S, 3) uint8 with the same mean in ``core``, up to rounding.
    """
    inside = cv2.copyTo(image, core.view(np.uint8))
    rows = cv2.reduce(inside, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32F)[:, 0]  # (S, 3), sums over each row
    columns = cv2.reduce(inside, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32F)[0]  # (S, 3)
    offset = np.linspace(-1, 1, len(image), dtype=np.float32)
    mean = rows.sum(axis=0) / np.float32(core.sum())
    slopes = np.stack((offset @ rows, offset @ columns)) / np.maximum(mean, 1)  # (2, 3): y, x
    slopes /= offset**2 @ core.sum(axis=0, dtype=np.float32)
    slopes *= np.minimum(1, _MAX_SLOPE / np.maximum(np.hypot(*slopes), 1e-6))
    across = np.tile(slopes[1], len(image)) * np.repeat(offset, 3) + 1
    plane = np.multiply.outer(offset, np.tile(slopes[0], len(image))) + across  # (S, 3S): fast, as one row
    return np.asarray(cv2.divide(image, plane.reshape(image.shape), dtype=cv2.CV_8U), np.uint8)


class _Regions(NamedTuple):
    """Regions of a masked view of one size."""

    core: Mask  # (S, S), True where the photograph is shown
    band: Mask  # (S, S), True where its mean colour is shown
    outside: npt.NDArray[np.uint8]  # (S, S), 1 where FILL is shown
    surround: Image  # (S, S, 3), FILL everywhere


def _regions(size: int, radius: float, band: float) -> _Regions:
    mask, core = circular_mask(size, radius), circular_mask(size, radius * (1 - band))
    surround = np.full((size, size, 3), FILL, np.uint8)
    return _Regions(core, mask & ~core, (~mask).astype(np.uint8), surround)


def _draw_centre(rng: np.random.Generator, radius: float, half: float) -> Floats:
    """Draw the centre (x, y) of a square of side 2 * half, uniformly over all positions inside a circle."""
    room = max(0.0, radius - half * 2**0.5)  # the square may have any orientation
    centres = rng.uniform(-room, room, (_ATTEMPTS, 2))
    inside = np.hypot(*centres.T) <= room
    return np.asarray(centres[inside.argmax()] if inside.any() else np.zeros(2))


def _cut_square(image: Image, half: float, centre: Floats, angle: float, size: int) -> Image:
    """Cut a square of side 2 * half, turned by an angle in degrees, and resize it to (size, size, 3)."""
    scale = 2 * half / size
    turn = np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = (len(image) - 1) / 2 + np.asarray(centre)
    shift = middle - matrix @ np.full(2, (size - 1) / 2)
    if scale > 2:  # bilinear interpolation would skip pixels
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), scale / 4), np.uint8)
    return _warp(image, np.column_stack((matrix, shift)), size, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _warp(image: Image, matrix: Floats, size: int, flags: int) -> Image:
    warped = cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.uint8)
