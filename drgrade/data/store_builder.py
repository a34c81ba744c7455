"""Building a prepared store: its keys, its files. :mod:`drgrade.data.store` says when and where."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import pandas as pd
import PIL

from drgrade.data.crops import Crop, CropMaker, Facts, make_crops
from drgrade.data.duplicates.thumbnail import THUMBNAIL_SIZE
from drgrade.data.image_reader import MAX_PIXELS
from drgrade.data.problems import problem_table
from drgrade.data.sources.base import MANIFEST_COLUMNS, Problem, Source, SourceTable
from drgrade.data.store_reuse import (
    FILES,
    IMAGES,
    THUMBNAILS,
    ArrayWriter,
    Earlier,
    Place,
    Record,
    Shelf,
    place,
)
from drgrade.files import write_text
from drgrade.progress import track

FORMAT = 2
"""Version of the layout of a store's folder."""

PREPARATION_VERSION = 3
"""Raised whenever the same photographs would give other pixels: older stores are then not taken for them."""

MANIFEST, PROBLEMS, INFO = "manifest.csv", "problems.csv", "store.json"

_LABELS = ("image_id", "grade", "patient_id", "eye", "dataset", "split")


@dataclass(frozen=True)
class Settings:
    """What the pixels of a store depend on, beside the photographs.

    Attributes:
        image_size: Side of the images in pixels.
        max_pixels: Larger photographs are refused.
        illumination: Normalisation of the light, a name of :mod:`drgrade.data.illumination`.
    """

    image_size: int
    max_pixels: int = MAX_PIXELS
    illumination: str = "none"

    @property
    def label(self) -> str:
        """For the names of folders."""
        variant = "" if self.illumination == "none" else f"-{self.illumination.replace('_', '-')}"
        return f"{self.image_size}px{variant}"

    @property
    def versioned(self) -> list[Any]:
        """With the versions of this code."""
        return [PREPARATION_VERSION, FORMAT, *asdict(self).values()]


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, and where.

    Attributes:
        source: The photographs and their labels.
        table: What the source read.
        folder: Folder of all stores.
        settings: How to prepare.
    """

    source: Source
    table: SourceTable
    folder: Path
    settings: Settings

    @cached_property
    def paths(self) -> list[Path]:
        """The photographs' files."""
        return [self.source.root / path for path in self.table.manifest["path"]]

    @cached_property
    def places(self) -> list[Place]:
        """The files as they are now."""
        return [place(path) for path in self.paths]

    @cached_property
    def state(self) -> str:
        """Hash of all that the store depends on, as far as it shows without reading a photograph."""
        return self._hash(self.places)

    def key(self, contents: Sequence[object]) -> str:
        """Hash of all that the store depends on, the files by what was read: SHA-256 and failure of each."""
        return self._hash(contents)

    def _hash(self, files: Sequence[object]) -> str:
        problems = [list(asdict(problem).values()) for problem in self.table.problems]
        values = [self.settings.versioned, self.source.name, files, problems]
        digest = hashlib.sha256(json.dumps(values).encode())
        digest.update(self.table.manifest.to_csv(index=False).encode())
        return digest.hexdigest()

    @property
    def family(self) -> str:
        """What the names of this source's stores with these settings begin with."""
        return f"{self.source.name}-{self.settings.label}"

    @cached_property
    def work(self) -> str:
        """Name of the unfinished store: the same whenever this source is prepared with these settings."""
        values = [self.settings.versioned, self.source.name, str(self.source.root.absolute())]
        return f"{self.family}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"

    def target(self, key: str) -> Path:
        """Folder of the store with a key."""
        return self.folder / f"{self.family}-{key[:12]}"


@dataclass(frozen=True)
class Built:
    """What :func:`fill` wrote.

    Attributes:
        key: Key of the store.
        photographs: Their number.
        problems: Table of :mod:`drgrade.data.problems`.
        is_lasting: Whether the same files would give the same store again.
    """

    key: str
    photographs: int
    problems: pd.DataFrame
    is_lasting: bool


def fill(plan: Plan, folder: Path, workers: int | None, earlier: Earlier, begun: Shelf | None) -> Built:
    """Write a store's files, taking what was made earlier.

    Args:
        plan: What to prepare.
        folder: Where.
        workers: Number of processes; None for one per CPU.
        earlier: To take crops from.
        begun: What is in the folder already, if this build goes on with one that was stopped.

    Raises:
        OSError: If they cannot be written; what was written can be gone on from.
    """
    whole = None if begun else earlier.whole(plan.places)
    if whole is not None and _link(whole.folder, folder):
        write_text(folder / FILES, "".join(record.line() for record in whole.records))
        return _describe(plan, folder, whole.records, _read_pixels_hash(whole.folder))
    with _Writer(folder, len(plan.places), plan.settings.image_size, begun) as writer:
        start = len(writer.records)
        crops = track(
            _crops(plan, start, workers, earlier),
            len(plan.places) - start,
            "preparing",
            f"photographs of {plan.source.name}" + (f" ({start} are prepared)" if start else ""),
        )
        for file, crop in zip(plan.places[start:], crops, strict=True):
            writer.add(file, crop)
    return _describe(plan, folder, writer.records, writer.sha256)


def can_continue(plan: Plan, begun: Shelf) -> bool:
    """Whether what was begun is just the beginning of what is planned."""
    same = [record.place for record in begun.records] == plan.places[: len(begun.records)]
    # A failure that may pass is tried again, which in place is impossible.
    return same and not begun.is_shared and not any(record.is_passing for record in begun.records)


def _crops(plan: Plan, start: int, workers: int | None, earlier: Earlier) -> Iterator[Crop]:
    """Crops in the order of the manifest, from row ``start``; only what is new is decoded."""
    settings = plan.settings
    maker = CropMaker(settings.image_size, settings.max_pixels, settings.illumination, earlier.contents)
    pairs = list(zip(plan.paths, plan.places, strict=True))[start:]
    made = make_crops(maker, [path for path, file in pairs if not earlier.is_unchanged(file)], workers)
    for _, file in pairs:
        crop = earlier.at(file) if earlier.is_unchanged(file) else next(made)
        yield earlier.of(crop.sha256) if crop.is_known else crop


class _Writer:
    """Writes arrays and ``files.jsonl`` so that a build killed at any point can be gone on with.

    Args:
        folder: Where.
        at_most: Upper bound of the number of photographs.
        image_size: Side of the images in pixels.
        begun: What is there already.
    """

    def __init__(self, folder: Path, at_most: int, image_size: int, begun: Shelf | None) -> None:
        self._digest = hashlib.sha256()
        self.records = list(begun.records) if begun else []
        after = begun.slots if begun else 0
        for slot in range(after):
            self._digest.update(np.ascontiguousarray(begun.images[slot]).data)  # type: ignore[union-attr]
        self._images = ArrayWriter(folder / IMAGES, at_most, (image_size, image_size, 3), after)
        self._thumbnails = ArrayWriter(folder / THUMBNAILS, at_most, (THUMBNAIL_SIZE, THUMBNAIL_SIZE), after)
        self._files = _journal(folder / FILES, self.records)

    @property
    def sha256(self) -> str:
        """Of all pixels."""
        return self._digest.hexdigest()

    def add(self, file: Place, crop: Crop) -> None:
        """Write a crop, then the line that says so."""
        slot = None
        if crop.pixels is not None and crop.thumbnail is not None:
            self._digest.update(np.ascontiguousarray(crop.pixels).data)
            self._thumbnails.append(crop.thumbnail)
            slot = self._images.append(crop.pixels)
        self.records.append(Record.of(file, crop, slot))
        self._files.write(self.records[-1].line())
        self._files.flush()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for array in (self._images, self._thumbnails):
            array.close(complete=kind is None)
        self._files.close()


def _journal(path: Path, records: list[Record]) -> TextIO:
    """Open ``files.jsonl`` after these records; a torn or unsound end of it is cut off."""
    write_text(path, "".join(record.line() for record in records))
    return path.open("a", encoding="utf-8")


def _link(existing: Path, folder: Path) -> bool:
    """Share the arrays of a finished store, which are never changed; False where that is impossible."""
    if not (existing / INFO).is_file():
        return False
    try:
        for name in (IMAGES, THUMBNAILS):
            (folder / name).hardlink_to(existing / name)
    except OSError:  # no hard links on this file system: the crops are copied instead
        for name in (IMAGES, THUMBNAILS):
            (folder / name).unlink(missing_ok=True)
        return False
    return True


def _read_pixels_hash(folder: Path) -> str:
    return str(json.loads((folder / INFO).read_text(encoding="utf-8"))["pixels_sha256"])


def _describe(plan: Plan, folder: Path, records: Sequence[Record], pixels_sha256: str) -> Built:
    """Write manifest, problems and ``store.json``."""
    rows: list[tuple[Any, ...]] = []
    problems = list(plan.table.problems)
    for row, record in zip(plan.table.manifest.itertuples(index=False, name=None), records, strict=True):
        if record.facts is None:
            problems.append(Problem(row[0], row[1], record.failure, "left out"))
            continue
        if record.conversions:
            problems.append(Problem(row[0], row[1], ", ".join(record.conversions), "converted"))
        rows.append(row + tuple(record.facts))
    prepared = pd.DataFrame(rows, columns=[*MANIFEST_COLUMNS, *Facts._fields]).astype({"grade": "Int64"})
    prepared.to_csv(folder / MANIFEST, index=False)
    table = problem_table(problems)
    table.to_csv(folder / PROBLEMS, index=False)
    digest = hashlib.sha256(pixels_sha256.encode())
    digest.update(prepared[list(_LABELS)].to_csv(index=False).encode())
    key = plan.key([[record.sha256, record.failure] for record in records])
    info = {
        "key": key,
        "sha256": digest.hexdigest(),
        "pixels_sha256": pixels_sha256,
        "photographs": len(rows),
        **_info(plan, table),
    }
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return Built(key, len(rows), table, not any(record.is_passing for record in records))


def _info(plan: Plan, problems: pd.DataFrame) -> dict[str, Any]:
    actions = problems["action"]
    return {
        "format": FORMAT,
        "preparation_version": PREPARATION_VERSION,
        "source": plan.source.name,
        "reader": f"{type(plan.source).__module__}.{type(plan.source).__qualname__}",
        "root": str(plan.source.root.absolute()),
        **asdict(plan.settings),
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
