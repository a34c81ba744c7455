"""Building a prepared store: its key, its files. :mod:`drgrade.data.store` says when and where."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import PIL

from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.problems import problem_table
from drgrade.data.sources.base import MANIFEST_COLUMNS, Problem, Source, SourceTable

FORMAT = 1
"""Version of the layout of a store's folder."""

PREPARATION_VERSION = 1
"""Raised whenever the same photographs would give other pixels: older stores are then not taken for them."""

GEOMETRY_COLUMNS = ("width", "height", "circle_x", "circle_y", "circle_r", "clear")
"""Columns of a store's manifest after the source's.

Size of the original in pixels; centre and radius of the disc in pixels of the original; and the radius of the
largest centred circle without padding, as a share of the disc's.
"""

IMAGES, MANIFEST, PROBLEMS, INFO = "images.npy", "manifest.csv", "problems.csv", "store.json"

_LABELS = ("image_id", "grade", "patient_id", "eye", "dataset", "split")


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, and where.

    Attributes:
        source: The photographs and their labels.
        table: What the source read.
        folder: Folder of all stores.
        image_size: Side of the images in pixels.
        max_pixels: Larger photographs are refused.
    """

    source: Source
    table: SourceTable
    folder: Path
    image_size: int
    max_pixels: int

    @cached_property
    def key(self) -> str:
        """Hash of all that the store depends on: rows, problems, settings, sizes and times of the files."""
        files = [_size_and_time(self.source.root / path) for path in self.table.manifest["path"]]
        problems = [list(asdict(problem).values()) for problem in self.table.problems]
        settings = [PREPARATION_VERSION, FORMAT, self.source.name, self.image_size, self.max_pixels]
        digest = hashlib.sha256(json.dumps([settings, files, problems]).encode())
        digest.update(self.table.manifest.to_csv(index=False).encode())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Name of the store's folder."""
        return f"{self.source.name}-{self.image_size}px-{self.key[:12]}"

    @property
    def target(self) -> Path:
        """Where the store will be."""
        return self.folder / self.name


def fill(plan: Plan, folder: Path, workers: int | None) -> pd.DataFrame:
    """Write a store's files; returns its problems."""
    manifest = plan.table.manifest
    maker = CropMaker(plan.image_size, plan.max_pixels)
    paths = [plan.source.root / path for path in manifest["path"]]
    rows: list[tuple[Any, ...]] = []
    problems = list(plan.table.problems)

    def usable() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        crops = _with_progress(make_crops(maker, paths, workers), len(paths), plan.source.name)
        for row, crop in zip(manifest.itertuples(index=False, name=None), crops, strict=True):
            image_id, path = row[:2]
            if crop.pixels is None:
                problems.append(Problem(image_id, path, crop.failure, "left out"))
                continue
            if crop.conversions:
                problems.append(Problem(image_id, path, ", ".join(crop.conversions), "converted"))
            rows.append(row + _geometry(crop))
            yield crop.pixels

    digest = hashlib.sha256()
    shape = (plan.image_size, plan.image_size, 3)
    count = _write_array(folder / IMAGES, usable(), len(paths), shape, digest)
    prepared = pd.DataFrame(rows, columns=[*MANIFEST_COLUMNS, *GEOMETRY_COLUMNS]).astype({"grade": "Int64"})
    prepared.to_csv(folder / MANIFEST, index=False)
    digest.update(prepared[list(_LABELS)].to_csv(index=False).encode())
    table = problem_table(problems)
    table.to_csv(folder / PROBLEMS, index=False)
    info = _info(plan, count, table, digest.hexdigest())
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return table


def _geometry(crop: Crop) -> tuple[int, int, float, float, float, float]:
    """Values of the geometry columns of one photograph."""
    assert crop.disc is not None
    disc = crop.disc
    clear = max(disc.clear_radius, 0.0) / disc.radius
    return (*crop.size, round(disc.x, 2), round(disc.y, 2), round(disc.radius, 2), round(clear, 5))


def _write_array(
    path: Path,
    images: Iterable[np.ndarray[Any, np.dtype[np.uint8]]],
    at_most: int,
    shape: tuple[int, ...],
    digest: "hashlib._Hash",
) -> int:
    """Write images one after the other as one .npy array, and hash them.

    How many there are is known at the end only; NumPy's header has room to grow, so it is written again in
    place.

    Returns:
        Their number.
    """
    count = 0
    header = {"descr": "|u1", "fortran_order": False}
    with path.open("w+b") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (at_most, *shape)})
        start = file.tell()
        for image in images:
            content = np.ascontiguousarray(image).data
            digest.update(content)
            file.write(content)
            count += 1
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *shape)})
        if file.tell() != start:
            raise RuntimeError("NumPy wrote headers of two lengths")
        file.flush()
        os.fsync(file.fileno())
    return count


def _info(plan: Plan, photographs: int, problems: pd.DataFrame, sha256: str) -> dict[str, Any]:
    actions = problems["action"]
    return {
        "format": FORMAT,
        "preparation_version": PREPARATION_VERSION,
        "source": plan.source.name,
        "reader": f"{type(plan.source).__module__}.{type(plan.source).__qualname__}",
        "root": str(plan.source.root.absolute()),
        "image_size": plan.image_size,
        "max_pixels": plan.max_pixels,
        "key": plan.key,
        "sha256": sha256,
        "photographs": photographs,
        "left_out": int((actions == "left out").sum()),
        "converted": int((actions == "converted").sum()),
        "versions": {
            "drgrade": version("drgrade"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
    }


def _with_progress(crops: Iterable[Crop], total: int, name: str) -> Iterator[Crop]:
    """Show progress on stderr: a bar on a terminal, else one line."""
    if not sys.stderr.isatty():
        say(f"preparing {total} photographs of {name}")
        yield from crops
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(crops, f"preparing {name}", total, console=Console(stderr=True))


def say(text: str) -> None:
    """Tell the user on stderr; stdout belongs to results."""
    print(text, file=sys.stderr, flush=True)


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
