"""What it costs and gives not to grade spoilt photographs.

    python benchmarks/abstention.py RUN

The test photographs of a run are blurred or darkened at full size, written, and graded as drgrade predict
does: all of them, and those that the verdict lets through.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from omegaconf import OmegaConf

from drgrade.data.image_reader import read_photograph
from drgrade.metrics.kappa import confusion_matrix, quadratic_weighted_kappa
from drgrade.prediction.grader import Grader
from drgrade.training.build import make_photographs

Pixels = npt.NDArray[np.uint8]


def blurred(sigma: float) -> Callable[[Pixels], Pixels]:
    """A Gaussian; sigma in pixels of a photograph of 224 px."""
    return lambda pixels: np.asarray(
        cv2.GaussianBlur(pixels, (0, 0), sigma * pixels.shape[0] / 224) if sigma else pixels, np.uint8
    )


def darkened(gain: float) -> Callable[[Pixels], Pixels]:
    """Less light."""
    return lambda pixels: (pixels * gain).astype(np.uint8)


SPOILT = {
    "as they are": blurred(0),
    **{f"blurred, sigma {sigma:g}": blurred(sigma) for sigma in (0.5, 1, 2, 4)},
    **{f"light x {gain:g}": darkened(gain) for gain in (0.5, 0.25, 0.12)},
}


def qwk(predicted: npt.NDArray[np.int64], grades: npt.NDArray[np.int64]) -> float:
    """Quadratic weighted kappa; NaN where there is nothing."""
    if not len(grades):
        return float("nan")
    matrix = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(grades))
    return float(quadratic_weighted_kappa(matrix))


def main() -> None:
    """Grade and print."""
    parser = argparse.ArgumentParser(description="Grading of spoilt photographs.")
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    grader = Grader.load([args.run])
    photographs = make_photographs(OmegaConf.load(args.run / "config.yaml"))  # type: ignore[arg-type]
    table = photographs.manifest.assign(subset=photographs.split["subset"])
    tested = table[table["subset"] == "test"]
    grades = tested["grade"].to_numpy(np.int64)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for what, spoil in SPOILT.items():
            paths = []
            for number, path in enumerate(tested["path"]):
                pixels = spoil(read_photograph(photographs.source.root / path).pixels)
                paths.append(Path(scratch) / f"{number}.png")
                cv2.imwrite(str(paths[-1]), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            prepared = list(grader.preparation.prepare_all(paths, workers=1))
            usable = np.array([each.crop.pixels is not None for each in prepared])
            kept = usable & ~np.array([each.verdict.abstains for each in prepared])
            crops = np.stack([each.crop.pixels for each in prepared if each.crop.pixels is not None])
            predicted = np.zeros(len(grades), np.int64)
            predicted[usable] = grader.grade(crops).grades.numpy()
            everything, let_through = (qwk(predicted[them], grades[them]) for them in (usable, kept))
            rows.append((what, f"{kept.mean():.0%}", round(everything, 3), round(let_through, 3)))
    columns = ["test photographs", "graded", "QWK of all", "QWK of the graded"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False))


if __name__ == "__main__":
    main()
