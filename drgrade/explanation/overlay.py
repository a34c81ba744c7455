"""Heat on the original photograph."""

import hashlib
import os
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Facts
from drgrade.data.image_reader import read_photograph
from drgrade.files import write_bytes

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_MOST = 0.65
"""Share of the colour where the heat is 1: what the camera saw stays visible everywhere."""

_CONTOUR = 0.5
"""Heat at which a line is drawn, so that nothing hangs on the colour alone."""


def overlay(photograph: Pixels, facts: Facts, heat: Floats) -> Pixels:
    """Colour a photograph by heat; where there is none, it is left as it is.

    The colours are viridis, which is even in lightness and keeps its order for the colour-blind and in print
    without colour; a line surrounds what is above half of the highest heat.

    Args:
        photograph: RGB, uint8 of shape (H, W, 3), upright; as large as its facts say, or reduced.
        facts: Of the original, from its preparation.
        heat: (S, S) in [0, 1], on the prepared photograph.

    Returns:
        RGB, uint8 of shape (H, W, 3).
    """
    spread = on_photograph(photograph.shape[:2], facts, heat)
    share = (_MOST * np.clip(spread, 0, 1))[..., None]
    mixed = (1 - share) * photograph + share * _colours(spread)
    painted = np.ascontiguousarray(np.rint(mixed).astype(np.uint8))
    _draw_contour(painted, spread)
    return painted


def on_photograph(shape: tuple[int, ...], facts: Facts, heat: Floats) -> Floats:
    """Bring a map of the prepared photograph back to the original.

    Args:
        shape: (H, W) of the photograph.
        facts: Of the original.
        heat: (S, S).

    Returns:
        (H, W) float32; 0 outside the disc.
    """
    height, width = shape
    side = len(heat)
    fx, fy = width / facts.width, height / facts.height
    x, y = facts.circle_x * fx, facts.circle_y * fy
    across, down = facts.circle_r * facts.stretch * fx, facts.circle_r * fy  # semi-axes
    # Pixel centres: pixel i of the photograph is at i + 0.5, pixel k of the map at (k + 0.5) / side.
    ax, ay = side / (2 * across), side / (2 * down)
    to_heat = np.array(
        [[ax, 0, (0.5 - x + across) * ax - 0.5], [0, ay, (0.5 - y + down) * ay - 0.5]], dtype=np.float64
    )
    spread = cv2.warpAffine(
        np.ascontiguousarray(heat, dtype=np.float32),
        to_heat,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    along, upright = (np.arange(width) + 0.5 - x) / across, (np.arange(height) + 0.5 - y) / down
    inside = along[None, :] ** 2 + upright[:, None] ** 2 <= 1
    return np.where(inside, spread, 0).astype(np.float32)


def legend(width: int) -> Pixels:
    """A strip that says what the colours mean, to be put under an overlay.

    Args:
        width: In pixels, at least 1.

    Returns:
        RGB, uint8 of shape (h, width, 3).
    """
    scale = max(width / 640, 0.3)
    bar, text = max(4, round(14 * scale)), max(8, round(26 * scale))
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(bar, 0)
    share = (_MOST * ramp)[..., None]
    ground = np.array([150, 70, 30])  # as bright as a retina
    colours = np.rint((1 - share) * ground + share * _colours(ramp)).astype(np.uint8)
    words = np.full((text, width, 3), 255, np.uint8)
    for line, right in (("little heat", False), ("most heat", True)):
        (length, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, 1)
        start = width - length - round(6 * scale) if right else round(6 * scale)
        cv2.putText(
            words,
            line,
            (start, round(18 * scale)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5 * scale,
            (20, 20, 20),
            1,
            cv2.LINE_AA,
        )
    return np.concatenate((colours, words))


def _colours(heat: Floats) -> Pixels:
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB), dtype=np.uint8
    )


def _draw_contour(painted: Pixels, spread: Floats) -> None:
    """A white line with a dark rim: seen on every ground."""
    hot = (spread >= _CONTOUR).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(painted.shape) / 700))
    cv2.drawContours(painted, lines, -1, (0, 0, 0), 3 * thin, cv2.LINE_AA)
    cv2.drawContours(painted, lines, -1, (255, 255, 255), thin, cv2.LINE_AA)


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
