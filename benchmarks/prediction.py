"""Measure the speed of ``drgrade predict`` and its memory as the number of photographs grows.

Each measurement is a process of its own. The rate is that of the photographs alone: the time of the command
for one photograph (imports, loading the model) is subtracted. Memory is the peak of the process that
grades, without the processes that decode. The photographs are links to those of a folder, repeated, so that
they are read from the page cache. Prints the tables of docs/predict.md:

    python benchmarks/prediction.py RUN FOLDER --counts 200,2000
    python benchmarks/prediction.py RUN FOLDER --counts 96 --batch-sizes 1,4,16,64
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path

from common import list_photographs, make_parser, print_header, print_row

COMMAND = (sys.executable, "-c", "from drgrade.cli import main; main()", "predict")


def measure(run: Path, photographs: Sequence[Path], count: int, *settings: str) -> tuple[float, float]:
    """Grade ``count`` photographs; return the seconds of the command and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photographs")
        folder.mkdir()
        for number, path in enumerate(islice(cycle(photographs), count)):
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.absolute())
        arguments = (f"checkpoint={run}", f"input={folder}", f"out={scratch}/out", "device=cpu", *settings)
        start = time.monotonic()
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"drgrade predict {' '.join(arguments)} failed")
        return time.monotonic() - start, usage.ru_maxrss / 1024


def numbers(text: str) -> list[int]:
    """Parse ``1,2,3``."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a grading run")
    parser.add_argument("folder", type=Path, help="folder with photographs")
    parser.add_argument("--counts", type=numbers, default=[200, 2000], help="numbers of photographs")
    parser.add_argument("--batch-sizes", type=numbers, default=[16])
    parser.add_argument("--workers", type=numbers, default=[2], help="numbers of decoding processes")
    parser.add_argument("settings", nargs="*", help="further settings of drgrade predict, such as tta=flips")
    arguments = parser.parse_args()
    photographs = list_photographs(arguments.folder)
    if not photographs:
        parser.error(f"no photographs in {arguments.folder}")
    print_header("photographs", "workers", "batch", "photographs/s", "s of the command", "peak MB")
    for workers, size in product(arguments.workers, arguments.batch_sizes):
        settings = (f"workers={workers}", f"batch_size={size}", *arguments.settings)
        start_up, _ = measure(arguments.run, photographs, 1, *settings)
        for count in arguments.counts:
            seconds, peak = measure(arguments.run, photographs, count, *settings)
            rate = (count - 1) / max(seconds - start_up, 1e-9)
            print_row(count, workers, size, f"{rate:.1f}", f"{seconds:.1f}", f"{peak:.0f}")


if __name__ == "__main__":
    main()
