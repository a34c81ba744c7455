"""Make the pictures in docs/images again: a sheet of the demo data, and the pages of audit, predict and app.

The pages need Chromium and a finished run on the demo data; ``explanations`` and ``app`` show its output.

    python train.py +experiment=msssl_100pct data=demo
    python tools/pictures.py demo audit explanations app --checkpoint outputs/runs/msssl_100pct/RUN
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageFilter

import drgrade
from drgrade.synthetic.drawing import PlannedPhotograph, draw_photograph, plan_photographs

NAMES = ("no DR", "mild", "moderate", "severe", "proliferative")
PER_GRADE = 5
TILE = (210, 158)
"""Width and height of a tile in pixels."""

MARGIN = 118
"""Width in pixels of the column with the names of the grades."""


def choose_of_grade(photographs: list[PlannedPhotograph], grade: int) -> list[PlannedPhotograph]:
    """Choose photographs of one grade from as many cameras as possible."""
    # Each row starts with a different camera, so that each column shows several cameras.
    of_grade = sorted((p for p in photographs if p.grade == grade), key=lambda p: (p.camera + 3 * grade) % 8)
    by_camera = {photograph.camera: photograph for photograph in reversed(of_grade)}
    chosen = list(reversed(by_camera.values()))
    rest = [photograph for photograph in of_grade if photograph not in chosen]
    return (chosen + rest)[:PER_GRADE]


def demo_tile(photograph: PlannedPhotograph, seed: int) -> npt.NDArray[np.uint8]:
    """Draw a photograph at twice the size and fit it into a black tile."""
    width, height = TILE
    pixels = draw_photograph(photograph, 2 * height, seed).pixels
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height, :width]
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def grade_tile(grade: int) -> npt.NDArray[np.uint8]:
    """Return a tile with the number and the name of a grade."""
    canvas = np.zeros((TILE[1], MARGIN, 3), np.uint8)
    middle, white, grey = TILE[1] // 2, (255, 255, 255), (180, 180, 180)
    cv2.putText(canvas, str(grade), (12, middle), cv2.FONT_HERSHEY_DUPLEX, 1.1, white, 2, cv2.LINE_AA)
    cv2.putText(canvas, NAMES[grade], (12, middle + 26), cv2.FONT_HERSHEY_DUPLEX, 0.46, grey, 1, cv2.LINE_AA)
    return canvas


def draw_demo(out: Path, _: Path | None) -> None:
    """Save five photographs of each grade of the demo data."""
    photographs = plan_photographs(400, 0)
    rows = [
        np.hstack([grade_tile(grade), *(demo_tile(p, 0) for p in choose_of_grade(photographs, grade))])
        for grade in range(len(NAMES))
    ]
    Image.fromarray(np.vstack(rows)).save(out, quality=88)


def photograph_page(address: str, out: Path, size: tuple[int, int], click: str = "", wait: str = "") -> None:
    """Save a page as a JPEG of the given width and, at most, the given height."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": 800})
        page.goto(address)
        if click:
            page.click(click)
        if wait:
            page.wait_for_selector(wait, timeout=120_000)
        page.screenshot(path=f"{folder}/page.png", full_page=True)
        browser.close()
        with Image.open(f"{folder}/page.png") as shot:
            shot.convert("RGB").crop((0, 0, shot.width, min(shot.height, size[1]))).save(out, quality=85)


def write_clinic(folder: Path) -> None:
    """Write 124 drawn photographs with labels: three copies, and a blurred, a damaged and a missing file."""
    planned = plan_photographs(120, 7)
    drawn = {p.image_id: Image.fromarray(draw_photograph(p, 288, 7).pixels) for p in planned}
    rows = [
        {
            "image": f"{p.image_id}.jpg",
            "grade": p.grade,
            "patient": p.patient_id,
            "split": "test" if p.patient % 5 == 0 else "train",
        }
        for p in planned
    ]
    first, second, third = (rows[number] for number in (0, 2, 4))
    pictures = {
        name: drawn[row["image"][:-4]]
        for name, row in zip(("scan_017", "scan_018", "scan_019"), (first, second, third), strict=True)
    }
    width, height = pictures["scan_019"].size
    drawn |= {
        "scan_017": pictures["scan_017"].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "scan_018": pictures["scan_018"].resize([side * 2 // 3 for side in pictures["scan_018"].size]),
        "scan_019": pictures["scan_019"].crop((0, height // 40, width, height - height // 40)),
        planned[9].image_id: drawn[planned[9].image_id].filter(ImageFilter.GaussianBlur(5)),
    }
    for name, picture in drawn.items():
        picture.save(folder / f"{name}.jpg", quality=92)
    damaged = folder / rows[11]["image"]
    damaged.write_bytes(damaged.read_bytes()[:900])
    other = "train" if first["split"] == "test" else "test"
    rows += [
        {**first, "image": "scan_017.jpg", "grade": (first["grade"] + 2) % 5, "split": other},
        {**second, "image": "scan_018.jpg", "patient": "p9001"},
        {**third, "image": "scan_019.jpg"},
        {**first, "image": "scan_020.jpg", "patient": "p9002"},
    ]
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


def show_audit(out: Path, _: Path | None) -> None:
    """Audit drawn photographs with planted defects, and save the page."""
    with tempfile.TemporaryDirectory() as folder:
        clinic = Path(folder, "clinic")
        clinic.mkdir()
        write_clinic(clinic)
        columns = {"data.patient_column": "patient", "data.split_column": "split"}
        places = {
            "data.root": clinic,
            "data.name": "clinic",
            "paths.outputs": folder,
            "data.image_size": 224,
            "paths.audit": Path(folder, "audit"),
        }
        drgrade.audit("data=folder", **columns, **places)
        photograph_page(f"file://{folder}/audit/index.html", out, (960, 1560))


def show_explanations(out: Path, checkpoint: Path | None) -> None:
    """Explain four photographs of the demo data that are drawn with lesions, and save the page."""
    with tempfile.TemporaryDirectory() as folder:
        planned = [p for p in plan_photographs(400, 1) if p.grade][:4]
        for photograph in planned:
            pixels = draw_photograph(photograph, 512, 1).pixels
            Image.fromarray(pixels).save(Path(folder, f"{photograph.image_id}.jpg"))
        results = Path(folder, "results")
        drgrade.predict(checkpoint=checkpoint, input=folder, out=results, overlays=True)
        photograph_page(f"file://{results}/overlays/index.html", out, (992, 1250))


def show_app(out: Path, checkpoint: Path | None) -> None:
    """Let the app grade its synthetic photograph, and save the page."""
    command = [sys.executable, "-m", "drgrade.cli.app", f"checkpoint={checkpoint}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output = process.stdout or []
        address = next(found[0] for line in output if (found := re.search(r"http://\S+", line)))
        photograph_page(address, out, (1000, 1700), "#dg-example", "#dg-results .dg-card")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


PICTURES: dict[str, Callable[[Path, Path | None], None]] = {
    "demo": draw_demo,
    "audit": show_audit,
    "explanations": show_explanations,
    "app": show_app,
}


def main() -> None:
    """Make the pictures that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=PICTURES, metavar="NAME", help=", ".join(PICTURES))
    default = Path(__file__).parents[1] / "docs" / "images"
    parser.add_argument("--out", type=Path, default=default, help="folder to write to (default: docs/images)")
    parser.add_argument("--checkpoint", type=Path, help="folder of a run; needed by explanations and app")
    arguments = parser.parse_args()
    if arguments.checkpoint is None and {"explanations", "app"} & set(arguments.names):
        parser.error("explanations and app need --checkpoint RUN")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        picture = arguments.out / f"{name}.jpg"
        PICTURES[name](picture, arguments.checkpoint)
        print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
