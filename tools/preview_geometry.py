"""Contact sheets of photographs with the fitted disc drawn in, to look at with one's own eyes.

    python tools/preview_geometry.py FOLDER_OR_FILES... --out /tmp/sheets

Red: the fitted disc; blue: the recorded rectangle; green: the clear circle;
yellow: 0.92 of it, the mask of the rotation pretext. Dark parts are drawn brighter than they are.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, NoFundus, find_disc
from drgrade.data.reading import IMAGE_EXTENSIONS, UnreadablePhotograph, read_photograph

Pixels = npt.NDArray[np.uint8]
RED, BLUE, GREEN, YELLOW, WHITE = (255, 0, 0), (80, 120, 255), (0, 255, 0), (255, 255, 0), (255, 255, 255)


def draw(pixels: Pixels, disc: Disc, cell: int) -> Pixels:
    """Draw a disc into a photograph of shape (H, W, 3), fitted into a square of ``cell`` pixels."""
    height, width = pixels.shape[:2]
    reach = max(width, height, 2 * disc.radius) * 1.04
    scale = cell / reach
    moved = np.array([[scale, 0, cell / 2 - scale * width / 2], [0, scale, cell / 2 - scale * height / 2]])
    area = (
        cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 0.5 else pixels
    )
    factor = area.shape[1] / width
    shift = moved @ np.diag([1 / factor, 1 / factor, 1])
    brighter = (255 * (area / 255.0) ** 0.6).astype(np.uint8)
    sheet = cv2.warpAffine(brighter, shift, (cell, cell), borderValue=(60, 60, 60))

    def place(x: float, y: float) -> tuple[int, int]:
        return round(scale * x + moved[0, 2]), round(scale * y + moved[1, 2])

    centre = place(disc.x, disc.y)
    cv2.rectangle(sheet, place(disc.left, disc.top), place(disc.right, disc.bottom), BLUE, 1)
    clear = disc.clear_radius
    for radius, colour in ((disc.radius, RED), (clear, GREEN), (0.92 * clear, YELLOW)):
        cv2.circle(sheet, centre, max(round(scale * radius), 1), colour, 1, cv2.LINE_AA)
    return np.asarray(sheet, dtype=np.uint8)


def cell_of(path: Path, cell: int, at_least: int) -> Pixels:
    """One cell of a sheet: the drawing, or the reason why there is none."""
    blank = np.full((cell, cell, 3), 60, np.uint8)
    try:
        pixels = read_photograph(path, at_least=at_least).pixels
        disc = find_disc(pixels)
    except (UnreadablePhotograph, NoFundus) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return label(blank, f"{path.stem}: {error}")
    return label(draw(pixels, disc, cell), f"{path.stem} clear {disc.clear_radius / disc.radius:.3f}")


def label(sheet: Pixels, text: str) -> Pixels:
    """Write a line of text into the upper left corner."""
    cv2.putText(sheet, text, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.35, WHITE, 1, cv2.LINE_AA)
    return sheet


def photographs(inputs: list[Path]) -> Iterator[Path]:
    """The files among the inputs, and the photographs in the folders among them."""
    for item in inputs:
        if item.is_dir():
            yield from sorted(p for p in item.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS)
        else:
            yield item


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sheets")
    parser.add_argument("--cell", type=int, default=180, help="pixels per photograph")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=9)
    parser.add_argument("--at-least", type=int, default=448, help="shorter side at which JPEGs are decoded")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    paths = list(photographs(options.inputs))
    per_sheet = options.columns * options.rows
    for number, start in enumerate(range(0, len(paths), per_sheet)):
        cells = [cell_of(path, options.cell, options.at_least) for path in paths[start : start + per_sheet]]
        cells += [np.zeros_like(cells[0])] * (-len(cells) % options.columns)
        lines = [np.hstack(cells[i : i + options.columns]) for i in range(0, len(cells), options.columns)]
        file = options.out / f"sheet{number:02d}.png"
        cv2.imwrite(str(file), cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR))
        print(file)


if __name__ == "__main__":
    main()
