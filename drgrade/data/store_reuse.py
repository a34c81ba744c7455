"""What preparation has done before: finished stores and unfinished ones, to take crops from.

While a store is being built its folder holds the two arrays and ``files.jsonl``, to which a line is added for
every photograph after its pixels are written. So a build that is killed at any point can be gone on with, and
a finished store can lend its crops to the next one.
"""

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Crop, Facts
from drgrade.data.image_reader import NO_MEMORY, NO_PERMISSION

IMAGES, THUMBNAILS, FILES = "images.npy", "thumbnails.npy", "files.jsonl"

Pixels = npt.NDArray[np.uint8]
Signature = tuple[int, int, int]
"""Size, time of the last change of the content, and of the file's entry, in bytes and nanoseconds."""


class Place(NamedTuple):
    """A file as it was at some time: its absolute path, and its signature (None if it is not there)."""

    path: str
    signature: Signature | None


def place(path: Path) -> Place:
    """Look at a file without reading it."""
    try:
        status = path.stat()
    except OSError:
        return Place(str(path.absolute()), None)
    return Place(str(path.absolute()), (status.st_size, status.st_mtime_ns, status.st_ctime_ns))


class Record(NamedTuple):
    """A line of ``files.jsonl``: what one file gave.

    Attributes:
        place: The file as it was before it was read.
        sha256: Of its content; "" if it could not be read.
        slot: Row of its crop in the arrays; None if it could not be used.
        check: CRC-32 of crop and thumbnail.
        facts: See :class:`~drgrade.data.crops.Facts`; None if it could not be used.
        conversions: What had to be changed, in words.
        failure: Why it could not be used; "" if it could.
    """

    place: Place
    sha256: str
    slot: int | None
    check: int
    facts: Facts | None
    conversions: tuple[str, ...]
    failure: str

    @classmethod
    def of(cls, place: Place, crop: Crop, slot: int | None) -> "Record":
        """Describe a crop that was written to a slot."""
        check = 0 if crop.pixels is None or crop.thumbnail is None else _check(crop.pixels, crop.thumbnail)
        return cls(place, crop.sha256, slot, check, crop.facts, crop.conversions, crop.failure)

    def line(self) -> str:
        """As JSON."""
        return json.dumps(self, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str) -> "Record":
        """Read a line back.

        Raises:
            ValueError: If it is no whole line.
        """
        (path, signature), sha256, slot, check, facts, conversions, failure = json.loads(line)
        known = Place(path, tuple(signature) if signature else None)
        return cls(known, sha256, slot, check, Facts(*facts) if facts else None, tuple(conversions), failure)

    @property
    def is_lasting(self) -> bool:
        """Whether reading the same content again would give the same."""
        return bool(self.sha256) and not self.failure.startswith(NO_MEMORY)

    @property
    def is_passing(self) -> bool:
        """Whether another attempt may fare better though nothing is done: memory, or a disk, failed."""
        there = self.place.signature is not None
        return bool(self.failure) and there and not self.is_lasting and self.failure != NO_PERMISSION


def _check(pixels: Pixels, thumbnail: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(thumbnail).data, zlib.crc32(np.ascontiguousarray(pixels).data))


class ArrayWriter:
    """Writes arrays of one shape one after the other as one .npy file.

    How many there are is known at the end only; NumPy's header has room to grow, so it is written again in
    place. Every array is handed to the operating system before :meth:`append` returns.

    Args:
        path: The file.
        at_most: Upper bound of their number.
        shape: Of each.
        after: Go on after so many that are there; 0 for a new file.
    """

    def __init__(self, path: Path, at_most: int, shape: tuple[int, ...], after: int = 0) -> None:
        if after and path.stat().st_nlink > 1:
            raise RuntimeError(f"{path} belongs to a store, too: it must not be written to")
        self.count = after
        self._shape = shape
        self._file = path.open("r+b" if after else "w+b", buffering=0)
        self._header(at_most)
        self._start = self._file.tell()
        self._file.seek(after * int(np.prod(shape)), os.SEEK_CUR)
        self._file.truncate()

    def append(self, values: Pixels) -> int:
        """Write the next array.

        Returns:
            Its row.
        """
        left = np.ascontiguousarray(values).data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        self.count += 1
        return self.count - 1

    def close(self, *, complete: bool) -> None:
        """Close the file; a complete one gets its true length and is seen to the disk."""
        if complete:
            self._file.seek(0)
            self._header(self.count)
            if self._file.tell() != self._start:
                raise RuntimeError("NumPy wrote headers of two lengths")
            os.fsync(self._file.fileno())
        self._file.close()

    def _header(self, count: int) -> None:
        values = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, values)


def open_unfinished(path: Path) -> Pixels:
    """Memory-map the whole arrays in a file that :class:`ArrayWriter` may not have closed.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such file.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    count = (path.stat().st_size - start) // int(np.prod(shape[1:]))
    if not count:
        return np.zeros((0, *shape[1:]), dtype)
    return np.memmap(path, dtype, mode="r", offset=start, shape=(count, *shape[1:]))


@dataclass(frozen=True, eq=False)
class Shelf:
    """Crops of one store, finished or not.

    Attributes:
        folder: Its folder.
        images: (N, S, S, 3).
        thumbnails: (N, T, T).
        records: What its files gave, in the order in which they were read.
    """

    folder: Path
    images: Pixels
    thumbnails: Pixels
    records: tuple[Record, ...]

    @classmethod
    def open(cls, folder: Path, *, finished: bool) -> "Shelf | None":
        """Open a store's folder; of an unfinished one only what was written whole.

        Args:
            folder: The folder.
            finished: Whether the arrays were seen to the disk, so that they need not be checked.

        Returns:
            None if there is nothing in it to be used.
        """
        try:
            images, thumbnails = (open_unfinished(folder / name) for name in (IMAGES, THUMBNAILS))
            lines = (folder / FILES).read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError):
            return None  # killed before the first photograph, or not ours
        records: list[Record] = []
        for line in lines:
            if not line.endswith("\n"):
                break  # torn by a kill
            try:
                record = Record.parse(line)
            except (ValueError, TypeError):
                break  # what a power cut leaves may be anything
            if not (finished or _is_sound(record, images, thumbnails)):
                break
            records.append(record)
        return cls(folder, images, thumbnails, tuple(records)) if records else None

    @property
    def is_shared(self) -> bool:
        """Whether a store has the same arrays (hard links), which must then not be written to."""
        return any((self.folder / name).stat().st_nlink > 1 for name in (IMAGES, THUMBNAILS))

    @property
    def slots(self) -> int:
        """How many of the records have a crop."""
        return sum(record.slot is not None for record in self.records)

    def crop(self, record: Record) -> Crop:
        """What a file gave."""
        if record.slot is None:
            return Crop(record.sha256, failure=record.failure)
        pixels, thumbnail = np.array(self.images[record.slot]), np.array(self.thumbnails[record.slot])
        return Crop(record.sha256, pixels, thumbnail, record.facts, record.conversions)


def _is_sound(record: Record, images: Pixels, thumbnails: Pixels) -> bool:
    """Whether the pixels that a line speaks of are there: after a power cut they may not be."""
    if record.slot is None:
        return True
    there = record.slot < min(len(images), len(thumbnails))
    return there and record.check == _check(images[record.slot], thumbnails[record.slot])


class Earlier:
    """All that was made before with the same settings.

    Args:
        shelves: Where it is.
    """

    def __init__(self, shelves: Iterable[Shelf] = ()) -> None:
        self._by_place: dict[Place, tuple[Shelf, Record]] = {}
        self._by_content: dict[str, tuple[Shelf, Record]] = {}
        for shelf in shelves:
            for record in shelf.records:
                if record.is_lasting:
                    self._by_place[record.place] = self._by_content[record.sha256] = (shelf, record)

    @property
    def contents(self) -> frozenset[str]:
        """SHA-256 of the files' contents."""
        return frozenset(self._by_content)

    def is_unchanged(self, place: Place) -> bool:
        """Whether this file was read before, and is the same by its signature."""
        return place in self._by_place

    def at(self, place: Place) -> Crop:
        """What a file gave that is unchanged."""
        shelf, record = self._by_place[place]
        return shelf.crop(record)

    def of(self, sha256: str) -> Crop:
        """What a known content gave."""
        shelf, record = self._by_content[sha256]
        return shelf.crop(record)

    def whole(self, places: Sequence[Place]) -> Shelf | None:
        """The one shelf that holds just these files, in this order; None if there is none."""
        first = self._by_place.get(places[0]) if places else None
        if first is None or [record.place for record in first[0].records] != list(places):
            return None
        return first[0] if all(record.is_lasting for record in first[0].records) else None
