"""Writing of a prepared store, and reuse of crops of earlier builds.

While a store is built its folder holds two arrays and ``files.jsonl``, which gets one line per photograph
after its pixels are written. A build that was killed at any point can therefore resume, and a finished store
can provide crops for the next one.
"""

import hashlib
import json
import os
import platform
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL

from drgrade.artefacts import read_object
from drgrade.data.crops import Crop, CropMaker, Facts, make_crops
from drgrade.data.geometry import THUMBNAIL_SIZE
from drgrade.data.image_reader import NO_MEMORY, NO_PERMISSION, NO_PYDICOM
from drgrade.data.sources.base import MANIFEST_COLUMNS, Problem, Source, SourceTable
from drgrade.errors import DataError
from drgrade.files import require_regular, to_csv, write_text
from drgrade.progress import track

Pixels = npt.NDArray[np.uint8]

FORMAT = 2
"""Version of the layout of a store folder."""

PREPARATION_VERSION = 3
"""Raised whenever the same photographs would give other pixels, so that older stores are not used."""

PROBLEM_COLUMNS = ("image_id", "path", "reason", "action")

IMAGES, THUMBNAILS, FILES = "images.npy", "thumbnails.npy", "files.jsonl"
"""Files of a store that exist while it is being built."""

MANIFEST, PROBLEMS, INFO = "manifest.csv", "problems.csv", "store.json"

_LABELS = ("image_id", "grade", "patient_id", "eye", "dataset", "split")


class FileState(NamedTuple):
    """Absolute path and state of a file at some time."""

    path: str
    signature: tuple[int, int, int] | None  # size, modification and change time in ns; None if it is missing

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Return the state of a file without reading its content."""
        signature = None
        with suppress(OSError):
            status = path.stat()
            signature = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return cls(str(path.absolute()), signature)


class FileRecord(NamedTuple):
    """One line of ``files.jsonl``: the result for one file. See also :class:`~drgrade.data.crops.Crop`."""

    file: FileState  # before the file was read
    sha256: str
    slot: int | None  # row of its crop in the arrays
    check: int  # CRC-32 of crop and thumbnail
    facts: Facts | None
    conversions: tuple[str, ...]
    failure: str

    def to_line(self) -> str:
        """Serialise as one line of JSON."""
        return json.dumps(self, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str) -> "FileRecord":
        """Parse a line; raise ValueError or TypeError if it is incomplete or invalid."""
        if not line.endswith("\n"):
            raise ValueError("incomplete line")
        (path, signature), sha256, slot, check, facts, conversions, failure = json.loads(line)
        file = FileState(path, tuple(signature) if signature else None)
        return cls(file, sha256, slot, check, Facts(*facts) if facts else None, tuple(conversions), failure)

    @property
    def is_reproducible(self) -> bool:
        """True if the same content would give the same result again."""
        return bool(self.sha256) and not self.failure.startswith((NO_MEMORY, NO_PYDICOM))

    @property
    def is_reusable(self) -> bool:
        """True if it is reproducible and no earlier version can have misread its bits."""
        misread = "16 bit to 8 bit" in self.conversions or self.failure.startswith("all black")
        return self.is_reproducible and not misread

    @property
    def bits_used(self) -> list[str]:
        """The conversion from bits that were misread by versions with the same preparation version."""
        bits = ("(8 bits used)", "(10 bits used)", "(14 bits used)")
        return [conversion for conversion in self.conversions if conversion.endswith(bits)]

    @property
    def is_transient_failure(self) -> bool:
        """True if another attempt may succeed without a change, because memory or a disk failed."""
        exists = self.file.signature is not None
        return bool(self.failure) and exists and not self.is_reproducible and self.failure != NO_PERMISSION


def pixel_checksum(pixels: Pixels, thumbnail: Pixels) -> int:
    """Return the CRC-32 of a crop and its thumbnail."""
    return zlib.crc32(np.ascontiguousarray(thumbnail).data, zlib.crc32(np.ascontiguousarray(pixels).data))


@dataclass(frozen=True, eq=False)
class CropArchive:
    """Crops in the folder of a finished or unfinished store."""

    folder: Path
    images: Pixels  # (N, S, S, 3)
    thumbnails: Pixels  # (N, T, T)
    records: tuple[FileRecord, ...]  # in the order in which the files were read

    @classmethod
    def open(cls, folder: Path, *, finished: bool) -> "CropArchive | None":
        """Open the folder of a store; return None if it contains no usable record.

        The records of an unfinished store end before the first one that is torn, or whose pixels do not have
        its checksum.
        """
        try:
            images, thumbnails = (_map_unfinished_array(folder / name) for name in (IMAGES, THUMBNAILS))
            lines = require_regular(folder / FILES).read_text(encoding="utf-8").splitlines(keepends=True)
        except (DataError, OSError, ValueError):
            return None
        records: list[FileRecord] = []
        for line in lines:
            try:
                record = FileRecord.parse(line)
            # Torn by a kill, or arbitrary bytes after a power cut.
            except (ValueError, TypeError, RecursionError):
                break
            if not (finished or _is_intact(record, images, thumbnails)):
                break
            records.append(record)
        return cls(folder, images, thumbnails, tuple(records)) if records else None

    @property
    def is_shared(self) -> bool:
        """True if another store has the same arrays (hard links), which must then not be written to."""
        return any((self.folder / name).stat().st_nlink > 1 for name in (IMAGES, THUMBNAILS))

    def crop(self, record: FileRecord) -> Crop:
        """Return the crop of a record."""
        if record.slot is None:
            return Crop(record.sha256, failure=record.failure)
        pixels, thumbnail = np.array(self.images[record.slot]), np.array(self.thumbnails[record.slot])
        return Crop(record.sha256, pixels, thumbnail, record.facts, record.conversions)


def _map_unfinished_array(path: Path) -> Pixels:
    """Memory-map the complete rows of a file that :class:`ArrayWriter` may not have closed."""
    with require_regular(path).open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    count = (path.stat().st_size - start) // int(np.prod(shape[1:]))
    if not count:
        return np.zeros((0, *shape[1:]), dtype)
    return np.memmap(path, dtype, mode="r", offset=start, shape=(count, *shape[1:]))


def _is_intact(record: FileRecord, images: Pixels, thumbnails: Pixels) -> bool:
    if record.slot is None:
        return True
    exists = record.slot < min(len(images), len(thumbnails))
    return exists and record.check == pixel_checksum(images[record.slot], thumbnails[record.slot])


class CropCache:
    """Reproducible crops of earlier builds with the same settings, by state of the file and by content."""

    def __init__(self, archives: Iterable[CropArchive] = ()) -> None:
        self._found: dict[FileState | str, tuple[CropArchive, FileRecord]] = {}
        for archive in archives:
            for record in archive.records:
                if record.is_reusable:
                    self._found[record.file] = self._found[record.sha256] = (archive, record)

    def _crop(self, key: FileState | str) -> Crop:
        archive, record = self._found[key]
        return archive.crop(record)

    def find_or_make(
        self, files: Sequence[FileState], paths: Sequence[Path], maker: CropMaker, workers: int | None
    ) -> Iterator[Crop]:
        """Yield the crops of files in order; only new contents are decoded."""
        contents = frozenset(key for key in self._found if isinstance(key, str))
        unknown = [path for path, file in zip(paths, files, strict=True) if file not in self._found]
        made = make_crops(partial(maker, known=contents), unknown, workers)
        for file in files:
            crop = self._crop(file) if file in self._found else next(made)
            is_known = crop.pixels is None and not crop.failure
            yield self._crop(crop.sha256) if is_known else crop

    def same_files(self, files: Sequence[FileState]) -> CropArchive | None:
        """Return an archive of exactly these files in this order; None if there is none."""
        if not files or files[0] not in self._found:
            return None
        archive, _ = self._found[files[0]]
        same = [record.file for record in archive.records] == list(files)
        return archive if same and all(record.is_reusable for record in archive.records) else None


class ArrayWriter:
    """Append arrays of one shape to a .npy file.

    The final number is only known at the end; until then the header contains the upper bound ``at_most``.
    NumPy pads its header, so it can be rewritten in place. Each array is passed to the operating system
    before :meth:`append` returns. Writing continues after ``after`` arrays of the file; 0 makes a new file.
    """

    def __init__(self, path: Path, at_most: int, shape: tuple[int, ...], after: int = 0) -> None:
        if after and path.stat().st_nlink > 1:
            raise RuntimeError(f"{path} also belongs to another store and must not be written to")
        self.count = after
        self._shape = shape
        self._file = path.open("r+b" if after else "w+b", buffering=0)
        self._write_header(at_most)
        self._start = self._file.tell()
        self._file.seek(after * int(np.prod(shape)), os.SEEK_CUR)
        self._file.truncate()

    def append(self, values: Pixels) -> int:
        """Write the next array and return its row."""
        left = np.ascontiguousarray(values).data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        self.count += 1
        return self.count - 1

    def close(self, *, complete: bool) -> None:
        """Close the file; a complete file gets its true length and is flushed to the disk."""
        if complete:
            self._file.seek(0)
            self._write_header(self.count)
            if self._file.tell() != self._start:
                raise RuntimeError("the length of NumPy's header changed")
            os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self, count: int) -> None:
        values = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, values)


class StoreWriter:
    """Write arrays and ``files.jsonl`` so that a build can resume after being killed at any point.

    Args:
        folder: Folder of the unfinished store.
        at_most: Upper bound of the number of photographs.
        image_size: Side of the images in pixels.
        begun: Existing content of the folder.
    """

    def __init__(self, folder: Path, at_most: int, image_size: int, begun: CropArchive | None) -> None:
        self._digest = hashlib.sha256()
        self.records = list(begun.records) if begun else []
        after = sum(record.slot is not None for record in self.records)
        for slot in range(after):
            self._digest.update(np.ascontiguousarray(begun.images[slot]).data)  # type: ignore[union-attr]
        self._images = ArrayWriter(folder / IMAGES, at_most, (image_size, image_size, 3), after)
        self._thumbnails = ArrayWriter(folder / THUMBNAILS, at_most, (THUMBNAIL_SIZE, THUMBNAIL_SIZE), after)
        # Rewritten, which drops a torn or invalid end.
        write_text(folder / FILES, "".join(record.to_line() for record in self.records))
        self._files = (folder / FILES).open("a", encoding="utf-8")

    @property
    def sha256(self) -> str:
        """SHA-256 of all pixels."""
        return self._digest.hexdigest()

    def add(self, file: FileState, crop: Crop) -> None:
        """Write a crop, then its record."""
        slot, check = None, 0
        if crop.pixels is not None and crop.thumbnail is not None:
            self._digest.update(np.ascontiguousarray(crop.pixels).data)
            self._thumbnails.append(crop.thumbnail)
            slot, check = self._images.append(crop.pixels), pixel_checksum(crop.pixels, crop.thumbnail)
        record = FileRecord(file, crop.sha256, slot, check, crop.facts, crop.conversions, crop.failure)
        self.records.append(record)
        self._files.write(record.to_line())
        self._files.flush()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for array in (self._images, self._thumbnails):
            array.close(complete=kind is None)
        self._files.close()


@dataclass(frozen=True)
class StorePlan:
    """Specification of one store."""

    source: Source
    table: SourceTable  # result of source.read()
    folder: Path  # of all stores
    maker: CropMaker

    @property
    def versioned_settings(self) -> list[Any]:
        """Everything but the files that determines the pixels: versions of this code, and settings."""
        return [PREPARATION_VERSION, FORMAT, *asdict(self.maker).values()]

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
        return self.hash([*self.files, "bits used of 16"])

    @cached_property
    def earlier_state(self) -> str:
        """The state as hashed by versions that did not read 10, 12 and 14 bits in 16."""
        return self.hash(self.files)

    def hash(self, files: Sequence[object]) -> str:
        """Hash settings, labels and problems together with a JSON-serialisable description of each file."""
        problems = [list(asdict(problem).values()) for problem in self.table.problems]
        values = [self.versioned_settings, self.source.name, files, problems]
        digest = hashlib.sha256(json.dumps(values).encode())
        digest.update(self.table.manifest.to_csv(index=False).encode())
        return digest.hexdigest()

    @property
    def family(self) -> str:
        """Common beginning of the names of all stores of this source with these settings."""
        light = self.maker.illumination
        variant = "" if light == "none" else f"-{light.replace('_', '-')}"
        return f"{self.source.name}-{self.maker.image_size}px{variant}"

    @cached_property
    def work(self) -> str:
        """Name of the unfinished store; constant for a source folder and settings."""
        values = [self.versioned_settings, self.source.name, str(self.source.root.absolute())]
        return f"{self.family}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class BuiltStore:
    """Result of :func:`build_store`."""

    key: str
    photographs: int
    problems: pd.DataFrame  # with PROBLEM_COLUMNS
    is_reproducible: bool  # the same files would give the same store again


def build_store(
    plan: StorePlan, folder: Path, workers: int | None, cache: CropCache, begun: CropArchive | None
) -> BuiltStore:
    """Write the files of a store, reusing crops that were made before.

    Args:
        plan: Store to prepare.
        folder: Folder of the unfinished store.
        workers: Number of processes; None for one per CPU.
        cache: Crops of earlier builds.
        begun: Existing content of the folder, if this build resumes another.

    Raises:
        OSError: If a file cannot be written. The build can resume.
    """
    same = None if begun else cache.same_files(plan.files)
    if same is not None and _link_arrays(same.folder, folder):
        write_text(folder / FILES, "".join(record.to_line() for record in same.records))
        info = read_object(same.folder / INFO, "delete the store and prepare it again")
        return write_metadata(plan, folder, same.records, str(info["pixels_sha256"]))
    with StoreWriter(folder, len(plan.files), plan.maker.image_size, begun) as writer:
        start = len(writer.records)
        resumed = f" ({start} are prepared)" if start else ""
        crops = track(
            cache.find_or_make(plan.files[start:], plan.paths[start:], plan.maker, workers),
            len(plan.files) - start,
            "preparing",
            f"photographs of {plan.source.name}{resumed}",
        )
        for file, crop in zip(plan.files[start:], crops, strict=True):
            writer.add(file, crop)
    return write_metadata(plan, folder, writer.records, writer.sha256)


def can_resume(plan: StorePlan, begun: CropArchive) -> bool:
    """Return True if an unfinished store is exactly the beginning of the planned one."""
    same = [record.file for record in begun.records] == plan.files[: len(begun.records)]
    # A transient failure is tried again, which is impossible in the middle of an array.
    return same and not begun.is_shared and not _has_transient_failure(begun.records)


def _has_transient_failure(records: Iterable[FileRecord]) -> bool:
    return any(record.is_transient_failure for record in records)


def _link_arrays(existing: Path, folder: Path) -> bool:
    """Hard-link the arrays of a finished store; return False if this is impossible."""
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
    """Write manifest, problems and ``store.json``, given one record for each row of the source's manifest."""
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
    write_text(folder / MANIFEST, to_csv(manifest))
    table = problem_table(problems)
    write_text(folder / PROBLEMS, to_csv(table))
    digest = hashlib.sha256(pixels_sha256.encode())
    digest.update(manifest[list(_LABELS)].to_csv(index=False).encode())
    info = {
        "key": plan.hash([[record.sha256, record.failure, *record.bits_used] for record in records]),
        "sha256": digest.hexdigest(),
        "pixels_sha256": pixels_sha256,
        "photographs": len(rows),
        **_provenance(plan, table),
    }
    write_text(folder / INFO, json.dumps(info, indent=2) + "\n")
    return BuiltStore(info["key"], len(rows), table, not _has_transient_failure(records))


def problem_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Return problems as a table with :data:`PROBLEM_COLUMNS`, those that excluded a photograph first."""
    ordered = sorted(problems, key=lambda p: (p.action != "left out", p.image_id, p.path))
    rows = [(p.image_id, p.path, p.reason, p.action) for p in ordered]
    return pd.DataFrame(rows, columns=list(PROBLEM_COLUMNS), dtype="string")


def _provenance(plan: StorePlan, problems: pd.DataFrame) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preparation_version": PREPARATION_VERSION,
        "source": plan.source.name,
        "reader": f"{type(plan.source).__module__}.{type(plan.source).__qualname__}",
        "root": str(plan.source.root.absolute()),
        **asdict(plan.maker),
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
