"""Crops in finished and unfinished stores: writing, and reuse by later builds."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Crop, CropMaker, Facts, make_crops
from drgrade.data.duplicates.thumbnail import THUMBNAIL_SIZE
from drgrade.data.image_reader import NO_MEMORY, NO_PERMISSION
from drgrade.files import write_text

Pixels = npt.NDArray[np.uint8]

IMAGES, THUMBNAILS, FILES = "images.npy", "thumbnails.npy", "files.jsonl"
"""Files of a store that exist while it is being built."""


class FileState(NamedTuple):
    """State of a file at some time.

    Attributes:
        path: Absolute path.
        signature: Size in bytes, and modification and change time in nanoseconds; None if it does not exist.
    """

    path: str
    signature: tuple[int, int, int] | None

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Return the state of a file without reading its content."""
        try:
            status = path.stat()
        except OSError:
            return cls(str(path.absolute()), None)
        return cls(str(path.absolute()), (status.st_size, status.st_mtime_ns, status.st_ctime_ns))


class FileRecord(NamedTuple):
    """One line of ``files.jsonl``: the result for one file.

    Attributes:
        file: State of the file before it was read.
        sha256: SHA-256 of its content; "" if it could not be read.
        slot: Row of its crop in the arrays; None without a crop.
        check: CRC-32 of crop and thumbnail.
        facts: Columns of the manifest; None without a crop.
        conversions: Changes made to the decoded image.
        failure: Why there is no crop; "" if there is one.
    """

    file: FileState
    sha256: str
    slot: int | None
    check: int
    facts: Facts | None
    conversions: tuple[str, ...]
    failure: str

    def line(self) -> str:
        """Serialise as one line of JSON."""
        return json.dumps(self, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str) -> "FileRecord":
        """Parse a line.

        Raises:
            ValueError: If the line is incomplete or invalid; also TypeError.
        """
        if not line.endswith("\n"):
            raise ValueError("incomplete line")
        (path, signature), sha256, slot, check, facts, conversions, failure = json.loads(line)
        file = FileState(path, tuple(signature) if signature else None)
        return cls(file, sha256, slot, check, Facts(*facts) if facts else None, tuple(conversions), failure)

    @property
    def is_reproducible(self) -> bool:
        """Whether the same content would give the same result again."""
        return bool(self.sha256) and not self.failure.startswith(NO_MEMORY)

    @property
    def is_transient_failure(self) -> bool:
        """Whether another attempt may succeed without a change: memory or a disk failed."""
        exists = self.file.signature is not None
        return bool(self.failure) and exists and not self.is_reproducible and self.failure != NO_PERMISSION


def has_transient_failure(records: Iterable[FileRecord]) -> bool:
    """Return True if another attempt may succeed for one of the records."""
    return any(record.is_transient_failure for record in records)


def pixel_checksum(pixels: Pixels, thumbnail: Pixels) -> int:
    """Return the CRC-32 of a crop and its thumbnail."""
    return zlib.crc32(np.ascontiguousarray(thumbnail).data, zlib.crc32(np.ascontiguousarray(pixels).data))


@dataclass(frozen=True, eq=False)
class CropArchive:
    """Crops in the folder of a finished or unfinished store.

    Attributes:
        folder: Folder of the store.
        images: (N, S, S, 3) uint8.
        thumbnails: (N, T, T) uint8.
        records: Results for its files, in the order in which they were read.
    """

    folder: Path
    images: Pixels
    thumbnails: Pixels
    records: tuple[FileRecord, ...]

    @classmethod
    def open(cls, folder: Path, *, finished: bool) -> "CropArchive | None":
        """Open the folder of a store.

        Args:
            folder: The folder.
            finished: The arrays are known to be complete. Otherwise the records up to the first one that is
                torn, or whose pixels do not have its checksum, are used.

        Returns:
            None if there is nothing to use.
        """
        try:
            images, thumbnails = (_map_unfinished_array(folder / name) for name in (IMAGES, THUMBNAILS))
            lines = (folder / FILES).read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError):
            return None
        records: list[FileRecord] = []
        for line in lines:
            try:
                record = FileRecord.parse(line)
            except (ValueError, TypeError):  # torn by a kill, or arbitrary bytes after a power cut
                break
            if not (finished or _is_intact(record, images, thumbnails)):
                break
            records.append(record)
        return cls(folder, images, thumbnails, tuple(records)) if records else None

    @property
    def is_shared(self) -> bool:
        """Whether another store has the same arrays (hard links), which must then not be written to."""
        return any((self.folder / name).stat().st_nlink > 1 for name in (IMAGES, THUMBNAILS))

    def crop(self, record: FileRecord) -> Crop:
        """Return the crop of a record."""
        if record.slot is None:
            return Crop(record.sha256, failure=record.failure)
        pixels, thumbnail = np.array(self.images[record.slot]), np.array(self.thumbnails[record.slot])
        return Crop(record.sha256, pixels, thumbnail, record.facts, record.conversions)


def _map_unfinished_array(path: Path) -> Pixels:
    """Memory-map the complete rows of a file that :class:`ArrayWriter` may not have closed."""
    with path.open("rb") as file:
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
                if record.is_reproducible:
                    self._found[record.file] = self._found[record.sha256] = (archive, record)

    def __contains__(self, key: FileState | str) -> bool:
        return key in self._found

    def crop(self, key: FileState | str) -> Crop:
        """Return the crop of a file, or of a SHA-256 of a content."""
        archive, record = self._found[key]
        return archive.crop(record)

    def find_or_make(
        self, files: Sequence[FileState], paths: Sequence[Path], maker: CropMaker, workers: int | None
    ) -> Iterator[Crop]:
        """Yield the crops of files in order; only new contents are decoded.

        Args:
            files: States of the files.
            paths: Their paths.
            maker: Makes a crop from a path.
            workers: Number of processes; None for one per CPU.
        """
        unknown = [path for path, file in zip(paths, files, strict=True) if file not in self]
        made = make_crops(maker, unknown, workers)
        for file in files:
            crop = self.crop(file) if file in self else next(made)
            yield self.crop(crop.sha256) if crop.is_known else crop

    @property
    def contents(self) -> frozenset[str]:
        """SHA-256 of all known contents."""
        return frozenset(key for key in self._found if isinstance(key, str))

    def same_files(self, files: Sequence[FileState]) -> CropArchive | None:
        """Return an archive of exactly these files in this order; None if there is none."""
        if not files or files[0] not in self:
            return None
        archive, _ = self._found[files[0]]
        same = [record.file for record in archive.records] == list(files)
        return archive if same and all(record.is_reproducible for record in archive.records) else None


class ArrayWriter:
    """Append arrays of one shape to a .npy file.

    The final number is only known at the end. NumPy pads its header, so it can be rewritten in place. Each
    array is passed to the operating system before :meth:`append` returns.

    Args:
        path: The file.
        at_most: Upper bound of the number of arrays.
        shape: Shape of each array.
        after: Continue after this many arrays in the file; 0 for a new file.
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
        write_text(folder / FILES, "".join(record.line() for record in self.records))
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
        self._files.write(record.line())
        self._files.flush()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for array in (self._images, self._thumbnails):
            array.close(complete=kind is None)
        self._files.close()
