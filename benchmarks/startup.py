"""Measure the time from ``python train.py`` to the first optimiser step, on prepared data.

The command runs as a user types it, plus the callback below, which writes the time and ends the process.
The first run is not counted: it prepares the data and loads the files into the page cache. The CPU time of
the process is given beside the wall-clock time, which includes waiting on a busy machine. One more run
lists the imported packages and the time of their modules (without what these import).

    python benchmarks/startup.py
    python benchmarks/startup.py --runs 1 +experiment=rotation_10pct init=random data.count=60
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from common import make_parser
from pytorch_lightning.callbacks import Callback

ROOT = Path(__file__).parents[1]
COMMAND = ("+experiment=msssl_10pct", "init=random", "logger=csv", "trainer=cpu")
HEAVY = (
    "wandb",
    "tensorboard",
    "albumentations",
    "sklearn",
    "matplotlib",
    "scipy",
    "pandas",
    "cv2",
    "torchvision",
    "timm",
    "torchmetrics",
    "torch._dynamo",
    "torch._inductor",
    "onnx",
    "transformers",
)


class Stamp(Callback):
    """Callback that writes when the first step begins and ends, and ends the process."""

    def __init__(self, path: str) -> None:
        """Set the file to write."""
        self.path, self.stamps = Path(path), dict[str, Any]()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the time and the imported packages."""
        modules = [name for name in HEAVY if name in sys.modules]
        self.stamps = {"modules": modules, "wall": time.time(), "cpu": time.process_time()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the record and exit without the rest of the run."""
        self.path.write_text(json.dumps({**self.stamps, "done": time.time()}))
        os._exit(0)


def start(command: list[str], *options: str) -> tuple[dict[str, Any], str]:
    """Run train.py to its first step.

    Args:
        command: Overrides.
        *options: Options of the Python interpreter.

    Returns:
        Seconds from the start of the process to the first step (``wall``, ``cpu``) and to its end (``done``),
        and ``modules``; the process's standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder) / "stamp.json"
        overrides = [
            *command,
            f"hydra.run.dir={folder}/run",
            "+callbacks.stamp._target_=startup.Stamp",
            f"+callbacks.stamp.path={stamp}",
        ]
        began = time.time()
        done = subprocess.run(
            [sys.executable, *options, "train.py", *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not stamp.exists():
            raise SystemExit(f"train.py ended with status {done.returncode}\n{done.stdout}\n{done.stderr}")
        times: dict[str, Any] = json.loads(stamp.read_text())
    return {**times, "wall": times["wall"] - began, "done": times["done"] - began}, done.stderr


def import_seconds(report: str) -> dict[str, float]:
    """Return the own import time of each package, longest first, from the output of ``-X importtime``."""
    seconds: dict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", report, re.MULTILINE):
        seconds[name.split(".")[0]] += int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("overrides", nargs="*", default=COMMAND, help=f"default: {' '.join(COMMAND)}")
    parser.add_argument("--runs", type=int, default=5, help="runs that are counted")
    arguments = parser.parse_args()
    command = list(arguments.overrides)
    print("python train.py", *command)
    start(command)
    runs = [start(command)[0] for _ in range(arguments.runs)]
    for key, what in (("wall", "to the first step"), ("done", "to its end"), ("cpu", "CPU time to the step")):
        values = [run[key] for run in runs]
        median = statistics.median(values)
        print(f"  {what:24} {median:6.1f} s, median of {len(runs)} ({min(values):.1f} - {max(values):.1f})")
    modules = runs[0]["modules"]
    print("  imported:", *modules)
    print("  not imported:", *(name for name in HEAVY if name not in modules))
    seconds = import_seconds(start(command, "-X", "importtime")[1])
    print(f"  imports, {sum(seconds.values()):.1f} s in this run:", end=" ")
    print(", ".join(f"{name} {spent:.2f}" for name, spent in list(seconds.items())[:14]))


if __name__ == "__main__":
    main()
