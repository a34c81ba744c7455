"""Contact sheets of prepared photographs with the fitted discs, for visual inspection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from drgrade.data.image_reader import MAX_PIXELS, UnreadablePhotograph, read_photograph
from drgrade.errors import ConfigError, DataError
from drgrade.files import replacing

Pixels = npt.NDArray[np.uint8]

COLUMNS, ROWS = 8, 6
"""Columns and rows of photographs on a sheet."""

_PHOTO, _CROP, _LABEL, _GAP = (204, 148), 92, 15, 4  # sizes in pixels
_DISC, _CLEAR, _TEXT, _PAPER = (255, 60, 60), (80, 255, 80), (235, 235, 235), (60, 60, 60)
_BRIGHTER = 0.6  # exponent that makes dark rims visible
_QUALITY = 92
_NAME = "preview-{:03d}.jpg"
_FIXED_POINT = 4  # bits after the point in OpenCV's drawing


def write_preview(
    manifest: pd.DataFrame,
    root: Path,
    images: npt.NDArray[np.uint8],
    folder: Path,
    number: int,
    *,
    max_pixels: int = MAX_PIXELS,
) -> list[Path]:
    """Write contact sheets of a prepared store: the photographs with their discs, and the crops.

    The fitted circle (an ellipse in a squashed file) is red, the largest centred circle that the camera
    recorded is green. The photographs are brightened, the crops are not. One sheet and one photograph are in
    memory at a time. Sheets of an earlier preview in the same folder are replaced.

    Args:
        manifest: Row i describes image i; columns image_id, path, grade, width, height, circle_x, circle_y,
            circle_r, clear, stretch.
        root: Folder that the paths are relative to.
        images: Crops, RGB, uint8 of shape (N, S, S, 3).
        folder: Output folder; created if missing.
        number: Number of photographs, spread evenly over the manifest; at most all are used.
        max_pixels: Limit in pixels of a photograph; larger ones are refused.

    Returns:
        Paths of the sheets, each with up to ``COLUMNS * ROWS`` photographs.

    Raises:
        ConfigError: If ``number`` is not positive.
        DataError: If a photograph cannot be read or the folder cannot be written.
    """
    if number < 1:
        raise ConfigError(f"preview={number} is not a number of photographs: use 1 or more, or leave it out")
    chosen = np.linspace(0, len(manifest) - 1, min(number, len(manifest))).round().astype(int)
    sheets: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(chosen), COLUMNS * ROWS):
            rows = chosen[start : start + COLUMNS * ROWS]
            tiles = [_tile(manifest.iloc[i], root, images[i], max_pixels) for i in rows]
            sheets.append(_save(_arrange(tiles), folder / _NAME.format(len(sheets) + 1)))
        for old in set(folder.glob(_NAME.replace("{:03d}", "[0-9]*"))) - set(sheets):
            old.unlink()
    except OSError as error:
        raise DataError(f"cannot write the preview to {folder}: {error.strerror or error}") from error
    return sheets


def draw_disc(
    pixels: Pixels,
    centre: tuple[float, float],
    radius: float,
    stretch: float,
    clear: float,
    size: tuple[int, int],
) -> Pixels:
    """Fit a photograph and its whole disc into a box and draw the disc and its clear circle.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        centre: Centre (x, y) of the disc in pixels.
        radius: Vertical radius of the disc in pixels.
        stretch: Horizontal over vertical radius.
        clear: Radius of the clear circle as a share of the disc's radius.
        size: (width, height) of the box in pixels; it is grey around the photograph.
    """
    height, width = pixels.shape[:2]
    (x, y), across = centre, stretch * radius
    left, right = min(0.0, x - across), max(float(width), x + across)
    top, bottom = min(0.0, y - radius), max(float(height), y + radius)
    scale = min((size[0] - 2) / (right - left), (size[1] - 2) / (bottom - top))
    shift_x = size[0] / 2 - scale * (left + right) / 2
    shift_y = size[1] / 2 - scale * (top + bottom) / 2
    box = np.full((size[1], size[0], 3), _PAPER, np.uint8)
    small = _resized(pixels, (max(1, round(scale * width)), max(1, round(scale * height))))
    brighter = (255 * (small / 255.0) ** _BRIGHTER).astype(np.uint8)
    _paste(box, brighter, round(shift_x), round(shift_y))
    middle = _fixed(shift_x + scale * x - 0.5, shift_y + scale * y - 0.5)
    for share, colour in ((1.0, _DISC), (clear, _CLEAR)):
        axes = _fixed(scale * share * across, scale * share * radius)
        cv2.ellipse(box, middle, axes, 0, 0, 360, colour, 1, cv2.LINE_AA, _FIXED_POINT)
    return box


def _tile(row: "pd.Series[Any]", root: Path, crop: Pixels, max_pixels: int) -> Pixels:
    """Return a photograph with its disc, its crop, and a line of text."""
    path = root / str(row["path"])
    try:
        pixels = read_photograph(path, max_pixels=max_pixels, at_least=_PHOTO[1]).pixels
    except UnreadablePhotograph as error:
        raise DataError(
            f"{path}: {error}. A preview shows the photographs themselves: put it back, or prepare the "
            f"store again"
        ) from error
    fx, fy = pixels.shape[1] / int(row["width"]), pixels.shape[0] / int(row["height"])
    stretch = float(row["stretch"])
    photo = draw_disc(
        pixels,
        (fx * float(row["circle_x"]), fy * float(row["circle_y"])),
        fy * float(row["circle_r"]),
        stretch,
        float(row["clear"]),
        _PHOTO,
    )
    tile = np.zeros((_PHOTO[1] + _LABEL + _GAP, _PHOTO[0] + _CROP + 2 * _GAP, 3), np.uint8)
    _paste(tile, photo, 0, 0)
    _paste(tile, _resized(np.asarray(crop), (_CROP, _CROP)), _PHOTO[0] + 2, (_PHOTO[1] - _CROP) // 2)
    image = Image.fromarray(tile)  # Pillow's font supports more than ASCII
    position, font = (2, _PHOTO[1] + 1), ImageFont.load_default(11)
    ImageDraw.Draw(image).text(position, _label(row), fill=_TEXT, font=font)
    return np.array(image)


def _label(row: "pd.Series[Any]") -> str:
    grade = "ungraded" if pd.isna(row["grade"]) else f"grade {int(row['grade'])}"
    squashed = "" if float(row["stretch"]) == 1 else f", squashed {float(row['stretch']):.2f} : 1"
    name = str(row["image_id"])
    return f"{name if len(name) <= 24 else '...' + name[-21:]}, {grade}{squashed}"


def _arrange(tiles: Sequence[Pixels]) -> Pixels:
    """Arrange tiles on a sheet, row by row; the sheet has only the rows that it needs."""
    height, width = tiles[0].shape[:2]
    sheet = np.zeros((-(-len(tiles) // COLUMNS) * height, COLUMNS * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        _paste(sheet, tile, i % COLUMNS * width, i // COLUMNS * height)
    return sheet


def _save(sheet: Pixels, path: Path) -> Path:
    """Write a JPEG atomically."""
    with replacing(path) as partial:
        Image.fromarray(sheet).save(partial, format="JPEG", quality=_QUALITY)
    return path


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    method = cv2.INTER_AREA if size[0] < pixels.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=method), dtype=np.uint8)


def _paste(target: Pixels, image: Pixels, x: int, y: int) -> None:
    """Copy an image into a larger one in place, cropped at its right and lower edges."""
    x, y = max(x, 0), max(y, 0)
    part = image[: target.shape[0] - y, : target.shape[1] - x]
    target[y : y + part.shape[0], x : x + part.shape[1]] = part


def _fixed(x: float, y: float) -> tuple[int, int]:
    """Return fixed-point coordinates for OpenCV's drawing, with pixel centres at integers."""
    return round(x * 2**_FIXED_POINT), round(y * 2**_FIXED_POINT)
