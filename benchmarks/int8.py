"""Measure the effect of int8, and of the simple crop of the example, on size, time and grades.

Each run is exported with 32 and with 8 bits to a temporary folder; the photographs must be where they were
during training. The second table compares the crop of examples/grade_photograph.py with drgrade's
preparation on the test photographs, both graded with 32 bits. Prints the tables of docs/export.md:

    python benchmarks/int8.py RUN [RUN ...]
"""

import runpy
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from common import make_parser
from sklearn.metrics import cohen_kappa_score

from drgrade.exporting.export import Int8, Wanted, export
from drgrade.exporting.int8 import Images, own_images
from drgrade.exporting.onnx_file import onnx_runner
from drgrade.prediction.checkpoint import Trained, load_trained
from drgrade.progress import say
from drgrade.stats.estimates import Estimate
from drgrade.training.build import make_photographs

EXAMPLE = Path(__file__).parents[1] / "examples" / "grade_photograph.py"


def main() -> None:
    """Print both tables."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of grading runs")
    int8_rows, crop_rows = [], []
    for folder in parser.parse_args().runs:
        trained = load_trained(folder)
        with tempfile.TemporaryDirectory() as scratch:
            made = export(folder, Wanted("onnx", Path(scratch) / "int8.onnx", int8=True))
            assert made.int8 is not None
            int8_rows.append(int8_row(folder.name, made.int8, made.size))
            plain = export(folder, Wanted("onnx", Path(scratch) / "plain.onnx")).path
            crop_rows.append(crop_row(folder.name, trained, plain))
        say(f"{int8_rows[-1]}\n{crop_rows[-1]}")
    print(
        "| run | MB, 32 bits | int8 | time | recipe | same grade | expected grade | QWK, 32 bits | QWK, int8 "
        "| change |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(int8_rows))
    print(
        "\n| run | photographs | same grade | QWK of the two | expected grade | QWK, drgrade | QWK, example |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(crop_rows))


def int8_row(name: str, int8: Int8, size: int) -> str:
    """Return a line of the first table."""
    before, after = int8.milliseconds
    assert int8.kappas is not None, int8.note
    kappas = (int8.kappas.before, int8.kappas.after, int8.kappas.change)
    agreement = int8.agreement
    cells = [
        name,
        f"{int8.bytes_before / 1e6:.1f}",
        f"{size / 1e6:.1f}",
        f"{after / before:.2f}",
        int8.recipe,
        f"{100 * agreement.grades:.1f} % of {agreement.photographs}",
        f"{agreement.expected:.3f}",
        *map(written, kappas),
    ]
    return f"| {' | '.join(cells)} |"


def written(estimate: Estimate) -> str:
    """Format a value with its interval."""
    return f"{estimate.value:.3f} ({estimate.interval.low:.3f} to {estimate.interval.high:.3f})"


def crop_row(name: str, trained: Trained, model: Path) -> str:
    """Return a line of the second table."""
    images, run = own_images(trained, "test"), onnx_runner(model.read_bytes())
    own = run(images.take(np.arange(len(images))))
    simple = run(np.stack([example_crop(model, path) for path in files(trained, images)]))
    grades = images.table["grade"].to_numpy(dtype=int)
    cells = [
        name,
        str(len(images)),
        f"{100 * np.mean(own['grade'] == simple['grade']):.1f} %",
        f"{kappa(own['grade'], simple['grade']):.3f}",
        f"{np.abs(own['expected_grade'] - simple['expected_grade']).mean():.3f}",
        f"{kappa(grades, own['grade']):.3f}",
        f"{kappa(grades, simple['grade']):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def files(trained: Trained, images: Images) -> list[Path]:
    """Return the paths of the photographs."""
    photographs = make_photographs(trained.config)
    paths = photographs.photographs["path"].iloc[images.rows]
    return [photographs.source.root / path for path in paths]


def example_crop(model: Path, photograph: Path) -> npt.NDArray[np.uint8]:
    """Run the example and return its crop."""
    with patch.object(sys, "argv", [str(EXAMPLE), str(model), str(photograph)]), patch("builtins.print"):
        crop: npt.NDArray[np.uint8] = runpy.run_path(str(EXAMPLE))["crop"]
    return crop


def kappa(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Quadratic weighted kappa of two sets of grades."""
    return float(cohen_kappa_score(first, second, weights="quadratic", labels=range(5)))


if __name__ == "__main__":
    main()
