"""Options, data sets and statistics that several benchmarks share."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.sources.base import Source
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD

Pixels = npt.NDArray[np.uint8]

ORIGINALS = Path("../shared/data/idrid_originals")
"""Default folder of original photographs."""


class Score(NamedTuple):
    """A share of photographs or of a variance, and its standard error over photographs."""

    share: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} ± {100 * self.error:.1f}"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints the module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_data_options(parser: argparse.ArgumentParser, size: int) -> None:
    """Add the options that :func:`open_sources` reads, and the side of the prepared photographs."""
    parser.add_argument("--idrid", type=Path, help="folder of IDRiD; default: the demo data only")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--size", type=int, default=size, help="side of the views in pixels")
    parser.add_argument("--folder", type=Path, help="folder for the stores; default: a temporary one")


def add_originals_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`find_originals` reads."""
    parser.add_argument("--originals", type=Path, default=ORIGINALS, help="folder of original photographs")
    parser.add_argument("--drawn", type=int, metavar="PX", help="draw 12 photographs of this height instead")


def find_originals(arguments: argparse.Namespace, scratch: Path) -> list[Path]:
    """Return the original photographs, drawn ones if ``--drawn`` is given.

    Raises:
        SystemExit: If there are none.
    """
    if arguments.drawn:
        demo = Demo(scratch / "drawn", count=12, size=arguments.drawn, workers=1)
        return [demo.root / path for path in demo.read().manifest["path"]]
    files = list_photographs(arguments.originals)
    if not files:
        raise SystemExit(
            f"no photographs in {arguments.originals}: set --originals=DIR, or --drawn=1424 to draw some"
        )
    return files


def list_photographs(folder: Path) -> list[Path]:
    """Return the photographs in a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_EXTENSIONS)


@contextmanager
def open_sources(arguments: argparse.Namespace) -> Iterator[tuple[list[Source], Path]]:
    """Yield the demo data, IDRiD if its folder is given, and a folder for stores.

    One thread is used from here on, so that the figures do not depend on the number of cores.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        sources: list[Source] = [Demo(folder / "demo", count=arguments.count, size=256)]
        if arguments.idrid:
            sources.append(IDRiD(arguments.idrid))
        yield sources, folder / "stores"


def print_header(*cells: str) -> None:
    """Print the first two lines of a Markdown table."""
    print_row(*cells)
    print("|" + "---|" * len(cells))


def print_row(*cells: object) -> None:
    """Print a line of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def halves(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the row numbers below ``count`` into two random halves."""
    order = np.random.default_rng(0).permutation(count)
    return order[: count // 2], order[count // 2 :]


def blur(pixels: Pixels, sigma: float, diameter: float) -> Pixels:
    """Blur with a Gaussian.

    Args:
        pixels: (H, W, 3) uint8.
        sigma: Standard deviation in pixels of a fundus disc of 224 pixels; 0 changes nothing.
        diameter: Diameter of the disc in ``pixels``.
    """
    if sigma == 0:
        return pixels
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma * diameter / 224), np.uint8)
