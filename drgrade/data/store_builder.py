"""Writing of a prepared store.

While a store is built its folder holds two arrays and ``files.jsonl``, which gets one line per photograph
after its pixels are written. A build that was killed at any point can therefore resume, and a finished store
can provide crops for the next one.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL

from drgrade.data.crop_cache import (
    FILES,
    IMAGES,
    THUMBNAILS,
    CropArchive,
    CropCache,
    FileRecord,
    FileState,
    StoreWriter,
    has_transient_failure,
)
from drgrade.data.crops import CropMaker, Facts
from drgrade.data.image_reader import MAX_PIXELS
from drgrade.data.problems import problem_table
from drgrade.data.sources.base import MANIFEST_COLUMNS, Problem, Source, SourceTable
from drgrade.files import write_text
from drgrade.progress import track

Pixels = npt.NDArray[np.uint8]

FORMAT = 2
"""Version of the layout of a store folder."""

PREPARATION_VERSION = 3
"""Raised whenever the same photographs would give other pixels, so that older stores are not used."""

MANIFEST, PROBLEMS, INFO = "manifest.csv", "problems.csv", "store.json"

_LABELS = ("image_id", "grade", "patient_id", "eye", "dataset", "split")


@dataclass(frozen=True)
class StoreSettings:
    """Settings that determine the pixels of a store.

    Attributes:
        image_size: Side of the images in pixels.
        max_pixels: Photographs with more pixels are left out.
        illumination: Illumination normalisation, a name of :mod:`drgrade.data.illumination`.
    """

    image_size: int
    max_pixels: int = MAX_PIXELS
    illumination: str = "none"

    @property
    def versioned(self) -> list[Any]:
        """Settings together with the versions of this code."""
        return [PREPARATION_VERSION, FORMAT, *asdict(self).values()]


@dataclass(frozen=True)
class StorePlan:
    """Specification of one store.

    Attributes:
        source: Reader of the data set.
        table: Result of ``source.read()``.
        folder: Folder of all stores.
        settings: Settings of the preparation.
    """

    source: Source
    table: SourceTable
    folder: Path
    settings: StoreSettings

    @cached_property
    def paths(self) -> list[Path]:
        """Files of the photographs."""
        return [self.source.root / path for path in self.table.manifest["path"]]

    @cached_property
    def files(self) -> list[FileState]:
        """Present state of the files."""
        return [FileState.of(path) for path in self.paths]

    @cached_property
    def state(self) -> str:
        """Hash of everything that determines the store, without reading any photograph."""
        return self.hash(self.files)

    def hash(self, files: Sequence[object]) -> str:
        """Hash settings, labels and problems together with a JSON-serialisable description of each file."""
        problems = [list(asdict(problem).values()) for problem in self.table.problems]
        values = [self.settings.versioned, self.source.name, files, problems]
        digest = hashlib.sha256(json.dumps(values).encode())
        digest.update(self.table.manifest.to_csv(index=False).encode())
        return digest.hexdigest()

    @property
    def family(self) -> str:
        """Common beginning of the names of all stores of this source with these settings."""
        light = self.settings.illumination
        variant = "" if light == "none" else f"-{light.replace('_', '-')}"
        return f"{self.source.name}-{self.settings.image_size}px{variant}"

    @cached_property
    def work(self) -> str:
        """Name of the unfinished store; constant for a source folder and settings."""
        values = [self.settings.versioned, self.source.name, str(self.source.root.absolute())]
        return f"{self.family}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class BuiltStore:
    """Result of :func:`build_store`.

    Attributes:
        key: Key of the store.
        photographs: Number of photographs.
        problems: Table of :mod:`drgrade.data.problems`.
        is_reproducible: Whether the same files would give the same store again.
    """

    key: str
    photographs: int
    problems: pd.DataFrame
    is_reproducible: bool


def build_store(
    plan: StorePlan, folder: Path, workers: int | None, cache: CropCache, begun: CropArchive | None
) -> BuiltStore:
    """Write the files of a store, reusing crops that were made before.

    Args:
        plan: What to prepare.
        folder: Folder of the unfinished store.
        workers: Number of processes; None for one per CPU.
        cache: Crops of earlier builds.
        begun: Existing content of the folder, if this build resumes another.

    Raises:
        OSError: If a file cannot be written. The build can resume.
    """
    same = None if begun else cache.same_files(plan.files)
    if same is not None and _link_arrays(same.folder, folder):
        write_text(folder / FILES, "".join(record.line() for record in same.records))
        info = json.loads((same.folder / INFO).read_text(encoding="utf-8"))
        return write_metadata(plan, folder, same.records, str(info["pixels_sha256"]))
    with StoreWriter(folder, len(plan.files), plan.settings.image_size, begun) as writer:
        start = len(writer.records)
        resumed = f" ({start} are prepared)" if start else ""
        settings = plan.settings
        maker = CropMaker(settings.image_size, settings.max_pixels, settings.illumination, cache.contents)
        crops = track(
            cache.find_or_make(plan.files[start:], plan.paths[start:], maker, workers),
            len(plan.files) - start,
            "preparing",
            f"photographs of {plan.source.name}{resumed}",
        )
        for file, crop in zip(plan.files[start:], crops, strict=True):
            writer.add(file, crop)
    return write_metadata(plan, folder, writer.records, writer.sha256)


def can_resume(plan: StorePlan, begun: CropArchive) -> bool:
    """Return whether an unfinished store is exactly the beginning of the planned one."""
    same = [record.file for record in begun.records] == plan.files[: len(begun.records)]
    # A transient failure is tried again, which is impossible in the middle of an array.
    return same and not begun.is_shared and not has_transient_failure(begun.records)


def _link_arrays(existing: Path, folder: Path) -> bool:
    """Hard-link the arrays of a finished store; return False if that is impossible."""
    if not (existing / INFO).is_file():
        return False
    try:
        for name in (IMAGES, THUMBNAILS):
            (folder / name).hardlink_to(existing / name)
    except OSError:  # the file system has no hard links: crops are copied instead
        for name in (IMAGES, THUMBNAILS):
            (folder / name).unlink(missing_ok=True)
        return False
    return True


def write_metadata(
    plan: StorePlan, folder: Path, records: Sequence[FileRecord], pixels_sha256: str
) -> BuiltStore:
    """Write manifest, problems and ``store.json``.

    Args:
        plan: What was prepared.
        folder: Folder of the unfinished store.
        records: One record for each row of the source's manifest.
        pixels_sha256: SHA-256 of all pixels.
    """
    rows: list[tuple[Any, ...]] = []
    problems = list(plan.table.problems)
    for row, record in zip(plan.table.manifest.itertuples(index=False, name=None), records, strict=True):
        if record.facts is None:
            problems.append(Problem(row[0], row[1], record.failure, "left out"))
            continue
        if record.conversions:
            problems.append(Problem(row[0], row[1], ", ".join(record.conversions), "converted"))
        rows.append(row + tuple(record.facts))
    manifest = pd.DataFrame(rows, columns=[*MANIFEST_COLUMNS, *Facts._fields]).astype({"grade": "Int64"})
    manifest.to_csv(folder / MANIFEST, index=False)
    table = problem_table(problems)
    table.to_csv(folder / PROBLEMS, index=False)
    digest = hashlib.sha256(pixels_sha256.encode())
    digest.update(manifest[list(_LABELS)].to_csv(index=False).encode())
    info = {
        "key": plan.hash([[record.sha256, record.failure] for record in records]),
        "sha256": digest.hexdigest(),
        "pixels_sha256": pixels_sha256,
        "photographs": len(rows),
        **_provenance(plan, table),
    }
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return BuiltStore(info["key"], len(rows), table, not has_transient_failure(records))


def _provenance(plan: StorePlan, problems: pd.DataFrame) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preparation_version": PREPARATION_VERSION,
        "source": plan.source.name,
        "reader": f"{type(plan.source).__module__}.{type(plan.source).__qualname__}",
        "root": str(plan.source.root.absolute()),
        **asdict(plan.settings),
        "left_out": int((problems["action"] == "left out").sum()),
        "converted": int((problems["action"] == "converted").sum()),
        "versions": {
            "drgrade": version("drgrade"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
    }
