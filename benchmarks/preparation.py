"""Preparation of original photographs, against plain decoding and resizing with as many processes.

    python benchmarks/preparation.py --originals ../shared/data/idrid_originals

Copies of the originals are made in a temporary folder, then prepared to 224 px into an empty folder of
stores, and again to show what a second call, one changed file, and changed labels cost. Peak memory is the
sum of the proportional set sizes of all processes (Linux).
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

SIZE = 224


def plain(path: Path) -> Any:
    """Decode and resize as most code does."""
    with Image.open(path) as image:
        return image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def copies(originals: Path, folder: Path, number: int) -> list[Path]:
    """Copy the originals until there are so many."""
    files = sorted(
        path for path in originals.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif")
    )
    made = [folder / f"{i:06d}{files[i % len(files)].suffix}" for i in range(number)]
    for i, path in enumerate(made):
        shutil.copyfile(files[i % len(files)], path)
    write_labels(folder, made, 0)
    return made


def write_labels(folder: Path, files: list[Path], shift: int) -> None:
    """Write a CSV with grades."""
    rows = [f"{path.name},{(i + shift) % 5}" for i, path in enumerate(files)]
    (folder / "labels.csv").write_text("\n".join(["image,grade", *rows]) + "\n")


class PeakMemory:
    """Largest sum of the proportional set sizes of this process and its children, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, sum(map(proportional_set_size, family(os.getpid()))) / 1024)


def family(parent: int) -> list[int]:
    """A process and all that it has started."""
    found = [parent]
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def proportional_set_size(process: int) -> int:
    """In KiB; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("Pss:")[1].split()[0])


def seconds(job: Callable[[], Any]) -> float:
    """How long a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--originals", type=Path, default=Path("../shared/data/idrid_originals"))
    parser.add_argument("--number", type=int, default=600)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, stores = Path(scratch, "photographs"), Path(scratch, "stores")
        root.mkdir()
        files = copies(args.originals, root, args.number)
        size = "x".join(map(str, Image.open(files[0]).size))
        print(f"{args.number} photographs of {size}, {args.workers} processes, to {SIZE} px")

        def prepared() -> None:
            prepare(Folder(root), stores, image_size=SIZE, workers=args.workers)

        def decoded() -> None:
            with ProcessPoolExecutor(args.workers, get_context("forkserver")) as pool:
                list(pool.map(plain, files, chunksize=4))

        rates: dict[str, list[float]] = {"plain decode and resize": [], "drgrade prepare": []}
        for _ in range(3):
            shutil.rmtree(stores, ignore_errors=True)
            rates["plain decode and resize"].append(args.number / seconds(decoded))
            with PeakMemory() as memory:
                rates["drgrade prepare"].append(args.number / seconds(prepared))
        for name, values in rates.items():
            print(f"{name:28} {min(values):6.1f} to {max(values):6.1f} photographs/s")
        ratios = [
            ours / theirs
            for ours, theirs in zip(rates["drgrade prepare"], rates["plain decode and resize"], strict=True)
        ]
        print(f"{'ratio':28} {min(ratios):6.2f} to {max(ratios):6.2f}")
        print(f"{'peak memory':28} {memory.peak:6.0f} MiB")
        print(f"{'again, nothing changed':28} {seconds(prepared):6.2f} s")
        shutil.copyfile(files[1], files[0])
        print(f"{'again, one file changed':28} {seconds(prepared):6.2f} s")
        write_labels(root, files, 1)
        print(f"{'again, labels changed':28} {seconds(prepared):6.2f} s")


if __name__ == "__main__":
    main()
