"""The pictures of one photograph for the eye: as it was recorded, and with its heat."""

import hashlib
import os
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Facts
from drgrade.data.reading import read_photograph
from drgrade.files import write_bytes
from drgrade.inference.explaining.overlay import legend, overlay

Pixels = npt.NDArray[np.uint8]

_JPEG_QUALITY = 85
_PNG_COMPRESSION = 3  # a few per cent larger than the best, several times faster
_LONGEST_NAME = 60


def file_name(path: str, image_id: str) -> str:
    """A name for the pictures of a photograph, without ending.

    Args:
        path: Of the photograph; two paths never share a name.
        image_id: What it is called, for whoever looks into the folder.

    Returns:
        Letters, digits, ``._-``: safe in every file system and every address.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._")[-_LONGEST_NAME:]
    told_apart = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return f"{readable or 'photograph'}-{told_apart}"


def reduced(path: Path, longest: int, max_pixels: int) -> Pixels:
    """Decode a photograph, at no more pixels than are shown.

    Args:
        path: The file.
        longest: Longer side in pixels at most; 0 for the photograph as it is.
        max_pixels: Larger ones are refused.

    Returns:
        RGB, uint8 of shape (H, W, 3), upright.

    Raises:
        UnreadablePhotograph: If it cannot be decoded.
    """
    pixels = read_photograph(path, max_pixels=max_pixels, at_least=longest or None).pixels
    factor = longest / max(pixels.shape[:2]) if longest else 1.0
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_photograph(path: Path, pixels: Pixels, longest: int) -> None:
    """Write a small JPEG.

    Args:
        path: Where.
        pixels: RGB, uint8 of shape (H, W, 3).
        longest: Longer side in pixels at most.
    """
    factor = longest / max(pixels.shape[:2])
    if factor < 1:
        height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    _write(path, pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def write_overlay(path: Path, pixels: Pixels, facts: Facts, heat: npt.NDArray[np.float32]) -> None:
    """Write a PNG: the photograph with its heat, and under it what the colours mean.

    Args:
        path: Where.
        pixels: RGB, uint8 of shape (H, W, 3), the photograph or a reduced one.
        facts: Of the original.
        heat: (S, S) in [0, 1], on the prepared photograph.
    """
    painted = np.concatenate((overlay(pixels, facts, heat), legend(pixels.shape[1])))
    _write(path, painted, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])


def _write(path: Path, pixels: Pixels, options: list[int]) -> None:
    """Unlike ``cv2.imwrite`` this leaves no half file, and says when the disk is full."""
    _, encoded = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    write_bytes(path, encoded.tobytes())
