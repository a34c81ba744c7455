"""Measure the effect of abstaining from degraded photographs on QWK.

The test photographs of a run are blurred or darkened at full size, written, and graded as ``drgrade
predict`` does. The table compares the QWK of all photographs with that of the graded ones. Prints the
table of docs/quality.md:

    python benchmarks/abstention.py RUN
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from common import Pixels, blur, make_parser, print_header, print_row
from omegaconf import OmegaConf

from drgrade.data.image_reader import read_photograph
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.prediction.grader import Grader
from drgrade.training.build import make_photographs


def blur_photograph(pixels: Pixels, sigma: float) -> Pixels:
    """Blur; sigma in pixels of a photograph of 224 pixels."""
    return blur(pixels, sigma, pixels.shape[0])


def darken(pixels: Pixels, gain: float) -> Pixels:
    """Multiply by a gain below 1."""
    return (pixels * gain).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "unchanged": partial(blur_photograph, sigma=0),
    **{f"blurred, sigma {sigma:g}": partial(blur_photograph, sigma=sigma) for sigma in (0.5, 1, 2, 4)},
    **{f"light x {gain:g}": partial(darken, gain=gain) for gain in (0.5, 0.25, 0.12)},
}


def qwk(predicted: npt.NDArray[np.int64], grades: npt.NDArray[np.int64]) -> float:
    """Quadratic weighted kappa; NaN without photographs."""
    if not len(grades):
        return float("nan")
    matrix = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(grades))
    return float(quadratic_weighted_kappa(matrix))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a grading run")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=CHANGES, metavar="NAME")
    args = parser.parse_args()
    grader = Grader.load([args.run])
    photographs = make_photographs(OmegaConf.load(args.run / "config.yaml"))  # type: ignore[arg-type]
    tested = photographs.manifest[photographs.split["subset"] == "test"]
    grades = tested["grade"].to_numpy(np.int64)
    print_header("test photographs", "graded", "QWK of all", "QWK of the graded")
    for name in args.changes:
        with tempfile.TemporaryDirectory() as scratch:
            paths = []
            for number, path in enumerate(tested["path"]):
                pixels = CHANGES[name](read_photograph(photographs.source.root / path).pixels)
                paths.append(Path(scratch) / f"{number}.png")
                cv2.imwrite(str(paths[-1]), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            prepared = list(grader.preparation.prepare_all(paths, workers=1))
        usable = np.array([each.crop.pixels is not None for each in prepared])
        kept = usable & ~np.array([each.verdict.abstains for each in prepared])
        predicted = np.zeros(len(grades), np.int64)
        if usable.any():
            crops = np.stack([each.crop.pixels for each in prepared if each.crop.pixels is not None])
            predicted[usable] = grader.grade(crops).grades.numpy()
        all_graded, not_rejected = (qwk(predicted[rows], grades[rows]) for rows in (usable, kept))
        print_row(name, f"{kept.mean():.0%}", f"{all_graded:.3f}", f"{not_rejected:.3f}")


if __name__ == "__main__":
    main()
