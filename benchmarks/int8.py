"""Measure the effect of int8, and of the simple crop of the example, on size, time and grades.

Each run is exported with 32 and with 8 bits to a temporary folder; the photographs must be where they were
during training. The second table compares the crop of examples/grade_photograph.py with drgrade's
preparation on the test photographs, both graded with 32 bits. Prints the tables of docs/export.md:

    python benchmarks/int8.py RUN [RUN ...]
"""

import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from common import make_parser
from sklearn.metrics import cohen_kappa_score

from drgrade.exporting.export import ExportedFile, export
from drgrade.exporting.graph import Pixels, onnx_runner
from drgrade.exporting.int8 import load_run_photographs, read_pixels, rows_of
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.progress import say
from drgrade.settings import ExportSettings
from drgrade.stats.estimates import Estimate

ROUNDS = 40
EXAMPLE = Path(__file__).parents[1] / "examples" / "grade_photograph.py"


def main() -> None:
    """Print both tables."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of grading runs")
    int8_rows, crop_rows = [], []
    for folder in parser.parse_args().runs:
        trained = load_model(folder)
        with tempfile.TemporaryDirectory() as scratch:
            small, plain = (
                export(
                    ExportSettings.compose(
                        checkpoint=folder, out=f"{scratch}/{int8}.onnx", int8=int8, own_run=True
                    )
                )
                for int8 in (True, False)
            )
            int8_rows.append(int8_row(folder.name, small, milliseconds(small) / milliseconds(plain)))
            crop_rows.append(crop_row(folder.name, trained, plain.path))
        say(f"{int8_rows[-1]}\n{crop_rows[-1]}")
    print(
        "| run | MB, 32 bits | int8 | time | same grade | expected grade | QWK, 32 bits | QWK, int8 "
        "| change |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(int8_rows))
    print(
        "\n| run | photographs | same grade | QWK of the two | expected grade | QWK, drgrade | QWK, example |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(crop_rows))


def milliseconds(exported: ExportedFile) -> float:
    """Median time of one photograph on one thread."""
    run = onnx_runner(exported.path.read_bytes(), threads=1)
    size = json.loads(exported.description.read_text())["preparation"]["image_size"]
    photograph = np.random.default_rng(0).integers(0, 255, (1, size, size, 3), np.uint8)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(photograph)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def int8_row(name: str, exported: ExportedFile, ratio: float) -> str:
    """Return a line of the first table."""
    int8 = exported.int8
    assert int8 is not None
    cost = int8.cost
    assert cost is not None, int8.note
    cells = [
        name,
        f"{int8.bytes_float32 / 1e6:.1f}",
        f"{exported.size / 1e6:.1f}",
        f"{ratio:.2f}",
        f"{100 * cost.same_grade:.1f} % of {cost.photographs}",
        f"{cost.expected_grade:.3f}",
        *map(written, (cost.qwk_float32, cost.qwk_int8, cost.qwk_change)),
    ]
    return f"| {' | '.join(cells)} |"


def written(estimate: Estimate) -> str:
    """Format a value with its interval."""
    return f"{estimate.value:.3f} ({estimate.interval.low:.3f} to {estimate.interval.high:.3f})"


def crop_row(name: str, trained: TrainedModel, model: Path) -> str:
    """Return a line of the second table."""
    photographs, run = load_run_photographs(trained, own_run=True), onnx_runner(model.read_bytes())
    rows = rows_of(photographs, "test")
    paths = [photographs.source.root / path for path in photographs.photographs["path"].iloc[rows]]
    own = run(read_pixels(photographs, rows))
    simple = run(np.stack([example_crop(model, path) for path in paths]))
    grades = photographs.split["grade"].iloc[rows].to_numpy(dtype=np.int64)
    cells = [
        name,
        str(len(rows)),
        f"{100 * np.mean(own['grade'] == simple['grade']):.1f} %",
        f"{kappa(own['grade'], simple['grade']):.3f}",
        f"{np.abs(own['expected_grade'] - simple['expected_grade']).mean():.3f}",
        f"{kappa(grades, own['grade']):.3f}",
        f"{kappa(grades, simple['grade']):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def example_crop(model: Path, photograph: Path) -> Pixels:
    """Run the example and return its crop."""
    with patch.object(sys, "argv", [str(EXAMPLE), str(model), str(photograph)]), patch("builtins.print"):
        crop: Pixels = runpy.run_path(str(EXAMPLE))["crop"]
    return crop


def kappa(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Quadratic weighted kappa of two sets of grades."""
    return float(cohen_kappa_score(first, second, weights="quadratic", labels=range(5)))


if __name__ == "__main__":
    main()
