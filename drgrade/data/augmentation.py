"""Augmentation of photographs. This is the only module that imports albumentations.

Albumentations 2.0.8 is the last release under the MIT licence and is no longer maintained. Random choices
depend only on the seed that the caller passes, not on the state of a worker: a photograph at the same
position of the stream gets the same augmentation with any number of workers, and after resuming.
"""

import os
import random
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.errors import ConfigError

Image = npt.NDArray[np.uint8]


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
