"""A data set with every kind of defect, made of drawn photographs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from drgrade.data.sources.demo import Demo
from drgrade.data.sources.folder import Folder

HOSTILE = 'a&b "<script>alert(1)</script'.replace("/", "")
"""File name that contains markup."""

DEFECTS = {
    ("conflicting_grades", "copy", "p00"),
    ("identical", "copy", "p00"),
    ("across_splits", "p01", "p01_again"),
    ("patient_across_splits", "p01_again", "p01"),
    ("near_duplicate", "p01", "p01_again"),
    ("near_duplicate", "p02", "p02_mirrored"),
    ("across_patients", "p02", "p02_mirrored"),
    ("unreadable", "cut", None),
    ("unreadable", "empty", None),
    ("image_missing", "gone", None),
    ("label_invalid", "p20", None),
    ("label_invalid", "p21", None),
    ("label_repeated", "p05", None),
    ("label_missing", "p06", None),
    ("label_missing", HOSTILE, None),
    ("blank", "black", None),
    ("blank", "fog", None),
    ("dark", "p07", None),
    ("over_exposed", "p08", None),
    ("out_of_focus", "p09", None),
    ("tiny", "p10", None),
    ("converted", "p11", None),
}
"""(finding, image_id, other_image_id) of all defects of the data set."""


def make_defective(drawn: Demo, root: Path) -> Folder:
    """Write 22 drawn photographs and some more, with :data:`DEFECTS`."""
    paths = drawn.read().manifest["path"]
    names = [f"p{number:02d}" for number in range(22)]
    for name, path in zip(names, paths, strict=False):
        shutil.copyfile(drawn.root / path, root / f"{name}.jpg")
    shutil.copyfile(drawn.root / paths[30], root / f"{HOSTILE}.jpg")
    labels = _labels(names).set_index("image", drop=False)
    rows = [*labels.to_dict("records"), *_more(root, labels)]
    _spoil_photographs(root)
    _spoil_labels(rows)
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return Folder(root, patient_column="patient", split_column="split", name="defective")


def _labels(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": [f"{name}.jpg" for name in names],
            "grade": [str(number % 5) for number in range(len(names))],
            "patient": [f"patient_{name}" for name in names],
            "split": ["train" if number % 4 else "test" for number in range(len(names))],
        }
    )


def save(pixels: np.ndarray, path: Path, **options) -> None:
    Image.fromarray(pixels).save(path, **options)


def _spoil_labels(rows: list[dict[str, str]]) -> None:
    rows[20]["grade"] = "7"
    rows[21]["split"] = "perhaps"
    rows[6]["grade"] = ""


def _spoil_photographs(root: Path) -> None:
    def change(name: str, function: Callable[[np.ndarray], np.ndarray], quality=95) -> None:
        path = root / f"{name}.jpg"
        save(function(np.array(Image.open(path).convert("RGB"))), path, quality=quality)

    change("p07", lambda pixels: (pixels * 0.12).astype(np.uint8))
    change(
        "p08", lambda pixels: np.where(pixels > 20, np.minimum(pixels * 6.0, 255), pixels).astype(np.uint8)
    )
    change("p09", lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 10))
    change("p10", lambda pixels: cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    Image.open(root / "p11.jpg").convert("L").save(root / "p11.jpg", quality=95)


def _more(root: Path, labels: pd.DataFrame) -> list[dict[str, str]]:
    def row(name: str, **different: str) -> dict[str, str]:
        return {
            "image": f"{name}.jpg",
            "grade": "0",
            "patient": f"patient_{name}",
            "split": "train",
        } | different

    def like(name: str) -> dict[str, str]:
        return labels.loc[f"{name}.jpg"].to_dict()

    shutil.copyfile(root / "p00.jpg", root / "copy.jpg")
    save(np.array(Image.open(root / "p01.jpg")), root / "p01_again.jpg", quality=60)
    save(np.array(Image.open(root / "p02.jpg"))[:, ::-1], root / "p02_mirrored.jpg", quality=90)
    save(np.zeros((150, 200, 3), np.uint8), root / "black.jpg")
    y, x = np.mgrid[:180, :240]
    disc = np.hypot(x - 120, y - 90) < 85
    save((disc[..., None] * (150, 90, 50)).astype(np.uint8), root / "fog.jpg", quality=95)
    content = (root / "p03.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(content[: len(content) // 2])
    (root / "empty.jpg").write_bytes(b"")
    return [
        {**like("p00"), **row("copy", grade="3", patient=like("p00")["patient"], split=like("p00")["split"])},
        row("p01_again", grade=like("p01")["grade"], patient=like("p01")["patient"], split="test"),
        row("p02_mirrored", grade=like("p02")["grade"], split=like("p02")["split"]),
        *(row(name) for name in ("black", "fog", "cut", "empty", "gone")),
        like("p05"),
    ]
