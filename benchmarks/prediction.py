"""How fast ``drgrade predict`` is, and whether its memory grows with the number of photographs.

Each measurement is a process of its own: the seconds of the whole command, those of the job alone (without
imports and loading the model), and the peak of its memory without the processes that decode. The photographs
are links to those of a folder, over and over, so that the disk is not measured. Prints the tables of
docs/predict.md:

    python benchmarks/prediction.py RUN FOLDER --counts 200,2000
    python benchmarks/prediction.py RUN FOLDER --counts 96 --batch-sizes 1,4,16,64
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from drgrade.data.image_reader import IMAGE_EXTENSIONS

_CHILD = """
import json, re, time
from drgrade.cli import predict
work, seconds = predict._predict, []
def timed(*given):
    start = time.monotonic()
    work(*given)
    seconds.append(time.monotonic() - start)
predict._predict = timed
predict.main()
status = open("/proc/self/status").read()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024
print(json.dumps({"seconds": seconds[0], "peak": peak}))
"""


class Measured(NamedTuple):
    """One command.

    Attributes:
        seconds: Of the job alone.
        whole: Seconds from start to end.
        peak: Highest resident memory of the process that grades, in MB.
    """

    seconds: float
    whole: float
    peak: float


def measure(run: Path, photographs: list[Path], count: int, *settings: str) -> Measured:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photographs")
        folder.mkdir()
        for number, path in enumerate(islice(cycle(photographs), count)):
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.absolute())
        given = [f"checkpoint={run}", f"input={folder}", f"out={scratch}/out", "device=cpu", *settings]
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *given], stdout=subprocess.PIPE, text=True, check=True
        )
        whole = time.monotonic() - start
        said = json.loads(done.stdout.splitlines()[-1])
        return Measured(said["seconds"], whole, said["peak"])


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=numbers, default=[200, 2000])
    parser.add_argument("--batch-sizes", type=numbers, default=[16])
    parser.add_argument("--workers", type=numbers, default=[2])
    parser.add_argument("settings", nargs="*", help="further settings of drgrade predict, such as tta=flips")
    given = parser.parse_args()
    found = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS)
    print("| photographs | workers | batch | photographs/s | s of the command | peak MB |")
    print("|---|---|---|---|---|---|")
    for count in given.counts:
        for workers in given.workers:
            for size in given.batch_sizes:
                settings = (f"workers={workers}", f"batch_size={size}", *given.settings)
                one = measure(given.run, found, count, *settings)
                rate = count / one.seconds
                print(
                    f"| {count} | {workers} | {size} | {rate:.1f} | {one.whole:.1f} | {one.peak:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
