"""Write docs/images/demo.jpg, a contact sheet of the demo data: five photographs of each grade."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.synthetic.drawing import PlannedPhotograph, draw_photograph, plan_photographs

NAMES = ("no DR", "mild", "moderate", "severe", "proliferative")
PER_GRADE = 5
TILE = (210, 158)
"""Width and height of a tile in pixels."""

MARGIN = 118
"""Width in pixels of the column with the names of the grades."""


def choose(photographs: list[PlannedPhotograph], grade: int) -> list[PlannedPhotograph]:
    """Choose photographs of one grade from as many cameras as possible."""
    # Each row starts with a different camera, so that each column shows several cameras.
    of_grade = sorted((p for p in photographs if p.grade == grade), key=lambda p: (p.camera + 3 * grade) % 8)
    by_camera = {photograph.camera: photograph for photograph in reversed(of_grade)}
    chosen = list(reversed(by_camera.values()))
    rest = [photograph for photograph in of_grade if photograph not in chosen]
    return (chosen + rest)[:PER_GRADE]


def tile(photograph: PlannedPhotograph, seed: int) -> npt.NDArray[np.uint8]:
    """Draw a photograph at twice the size and fit it into a black tile."""
    width, height = TILE
    pixels = draw_photograph(photograph, 2 * height, seed).pixels
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height, :width]
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def label(grade: int) -> npt.NDArray[np.uint8]:
    """Return a tile with the number and the name of a grade."""
    canvas = np.zeros((TILE[1], MARGIN, 3), np.uint8)
    middle, white, grey = TILE[1] // 2, (255, 255, 255), (180, 180, 180)
    cv2.putText(canvas, str(grade), (12, middle), cv2.FONT_HERSHEY_DUPLEX, 1.1, white, 2, cv2.LINE_AA)
    cv2.putText(canvas, NAMES[grade], (12, middle + 26), cv2.FONT_HERSHEY_DUPLEX, 0.46, grey, 1, cv2.LINE_AA)
    return canvas


def main() -> None:
    """Write the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1] / "docs" / "images" / "demo.jpg"
    parser.add_argument("--out", type=Path, default=default, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the demo data")
    arguments = parser.parse_args()
    photographs = plan_photographs(400, arguments.seed)
    rows = [
        np.hstack([label(grade), *(tile(p, arguments.seed) for p in choose(photographs, grade))])
        for grade in range(len(NAMES))
    ]
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    arguments.out.write_bytes(encoded.tobytes())
    print(f"{arguments.out}: {len(encoded) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
