"""Measure the preparation of original photographs against plain decoding and resizing.

Copies of the originals are prepared into an empty folder of stores, and then again: unchanged, with one
file changed, and with labels changed. Plain decoding and resizing uses as many processes. Peak memory is
the sum of the proportional set sizes of all processes (Linux).

    python benchmarks/preparation.py                               # 600 copies of the originals, 224 px
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import add_originals_options, find_originals, make_parser
from PIL import Image

from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare


def decode_and_resize(path: Path, size: int) -> bytes:
    """Decode and resize one photograph with PIL."""
    with Image.open(path) as image:
        return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR).tobytes()


def copy_photographs(originals: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Copy the originals in turn until there are ``count`` files, and write labels."""
    sources = [originals[i % len(originals)] for i in range(count)]
    copies = [folder / f"{i:06d}{source.suffix}" for i, source in enumerate(sources)]
    for source, copy in zip(sources, copies, strict=True):
        shutil.copyfile(source, copy)
    write_labels(folder, copies, 0)
    return copies


def write_labels(folder: Path, files: list[Path], shift: int) -> None:
    """Write a CSV with grades."""
    rows = [f"{path.name},{(i + shift) % 5}" for i, path in enumerate(files)]
    (folder / "labels.csv").write_text("\n".join(["image,grade", *rows]) + "\n")


class PeakMemory:
    """Context manager for the highest memory of this process and its children, in MiB."""

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
            self.peak = max(self.peak, sum(map(_proportional_set_size, _family(os.getpid()))) / 1024)


def _family(parent: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [parent]
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += _family(int(child))
    return found


def _proportional_set_size(process: int) -> int:
    """Return KiB; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("Pss:")[1].split()[0])


def seconds_of(job: Callable[[], Any]) -> float:
    """Run a job and return its wall-clock time."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main() -> None:
    parser = make_parser(__doc__)
    add_originals_options(parser)
    parser.add_argument("--count", type=int, default=600, help="number of copies")
    parser.add_argument("--size", type=int, default=224, help="side of the prepared photographs in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, stores = Path(scratch, "photographs"), Path(scratch, "stores")
        root.mkdir()
        files = copy_photographs(find_originals(args, Path(scratch)), root, args.count)
        shape = "x".join(map(str, Image.open(files[0]).size))
        print(f"{args.count} photographs of {shape}, {args.workers} processes, to {args.size} px")

        def prepare_all() -> None:
            prepare(Folder(root), stores, image_size=args.size, workers=args.workers)

        def decode_all() -> None:
            with ProcessPoolExecutor(args.workers, get_context("forkserver")) as pool:
                list(pool.map(partial(decode_and_resize, size=args.size), files, chunksize=4))

        plain, prepared = [], []
        for _ in range(args.rounds):
            shutil.rmtree(stores, ignore_errors=True)
            plain.append(args.count / seconds_of(decode_all))
            with PeakMemory() as memory:
                prepared.append(args.count / seconds_of(prepare_all))
        ratios = [ours / theirs for ours, theirs in zip(prepared, plain, strict=True)]
        for name, rates in (("plain decode and resize", plain), ("drgrade prepare", prepared)):
            print(f"{name:28} {min(rates):6.1f} to {max(rates):6.1f} photographs/s")
        print(f"{'ratio':28} {min(ratios):6.2f} to {max(ratios):6.2f}")
        print(f"{'peak memory':28} {memory.peak:6.0f} MiB")
        print(f"{'again, nothing changed':28} {seconds_of(prepare_all):6.2f} s")
        shutil.copyfile(files[1], files[0])
        print(f"{'again, one file changed':28} {seconds_of(prepare_all):6.2f} s")
        write_labels(root, files, 1)
        print(f"{'again, labels changed':28} {seconds_of(prepare_all):6.2f} s")


if __name__ == "__main__":
    main()
