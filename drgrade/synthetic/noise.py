"""Random numbers that depend on what is drawn, never on who draws it or in which order."""

from enum import IntEnum

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
"""A (H, W) or (H, W, 3) picture of float32, 0..1 unless stated otherwise."""


class Stream(IntEnum):
    """What a generator is for. The number separates streams that share seed and indices."""

    PLAN = 1
    PATIENT = 2
    EYE = 3


def stream(purpose: Stream, seed: int, *indices: int) -> np.random.Generator:
    """Make the generator of one purpose.

    Args:
        purpose: What it is for.
        seed: Seed of the data set, at least 0.
        *indices: Patient and eye, where they matter; at least 0.
    """
    # SeedSequence pads with zeros, [1, 2] and [1, 2, 0] are the same to it: hence + 1.
    return np.random.default_rng([int(purpose), seed, *(index + 1 for index in indices)])


def cloud(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> FloatImage:
    """Draw smooth noise: a small picture of white noise, enlarged.

    Args:
        rng: Source of randomness.
        shape: Height and width in px.
        cells: Noise cells along the height; the bigger, the finer.

    Returns:
        (H, W) float32, mean about 0, standard deviation about 1/2.
    """
    height, width = shape
    across = max(2, round(cells * width / height))
    small = rng.standard_normal((cells, across), dtype=np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32) * 0.7


def soften(picture: FloatImage, sigma: float) -> FloatImage:
    """Blur by a Gaussian of ``sigma`` px."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32) if sigma > 0.05 else picture
