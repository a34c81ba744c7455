"""What every source gives: a manifest of photographs, and the list of what is wrong with it.

Readers of one layout (:class:`Source`) share the parts below: they turn every row of a label file into an
:class:`Entry`, or raise :class:`RowError` for a row that cannot be used, and :func:`source_table` does the
rest.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from drgrade.data.reading import IMAGE_EXTENSIONS
from drgrade.errors import DataError

MANIFEST_COLUMNS = ("image_id", "path", "grade", "patient_id", "eye", "dataset", "split")
"""Columns of a manifest, in order.

``grade`` is a nullable integer (``Int64``), the others are strings; ``path`` is relative to the source's
root, with forward slashes; ``eye`` is ``left``/``right``; ``split`` is ``train``/``val``/``test`` as
published; unknown is missing (``pd.NA``).
"""

GRADES = (0, 1, 2, 3, 4)
"""International clinical DR severity scale: none, mild, moderate, severe non-proliferative; proliferative."""

_NO_VALUE = frozenset({"", "nan", "na", "n/a", "none", "null"})
_EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one photograph or one row of a label file.

    Attributes:
        image_id: The photograph's id as far as it is known, else "".
        path: The file (or ``labels.csv:17`` for a row) it was found in, relative to the root where possible.
        reason: What is wrong, in words.
        action: ``left out`` (the photograph or row is not in the store) or ``converted`` (it is, after a
            conversion).
    """

    image_id: str
    path: str
    reason: str
    action: Literal["left out", "converted"]


@dataclass(frozen=True)
class SourceTable:
    """What a source found: a manifest with :data:`MANIFEST_COLUMNS`, sorted by image_id, and its problems."""

    manifest: pd.DataFrame
    problems: tuple[Problem, ...] = ()


class Source(ABC):
    """A data set on disk. Subclasses read one layout; they never decode a photograph.

    Attributes:
        name: The data set's name, as in ``data=NAME``.
        root: Folder that the manifest's paths are relative to.
    """

    name: str
    root: Path

    @abstractmethod
    def read(self) -> SourceTable:
        """Read labels and list photographs.

        Raises:
            DataError: If the data set as a whole cannot be used (no such folder, no label file, a column
                is missing).
        """


class RowError(Exception):
    """A row of a label file cannot be used; the message is the reason."""


class Entry(NamedTuple):
    """One photograph of a label file.

    Attributes:
        image_id: Its name in the data set.
        path: Its file, relative to the root, with forward slashes.
        grade: One of :data:`GRADES`, or None for a photograph without a label.
        patient_id: None where unknown.
        eye: ``left``, ``right``, or None where unknown.
        split: ``train``, ``val`` or ``test`` as published, or None.
        where: Where it is named, for reports: ``labels.csv:17``, or the file itself.
    """

    image_id: str
    path: str
    grade: int | None = None
    patient_id: str | None = None
    eye: str | None = None
    split: str | None = None
    where: str = ""


def source_table(entries: Iterable[Entry], problems: Iterable[Problem], dataset: str) -> SourceTable:
    """Sort entries into a manifest, each image_id once.

    Of rows that say the same the first is kept. Where rows of one image_id disagree (another grade, file,
    patient, eye or split) nobody can tell which is right, and all of them are left out. Rows left out are
    added to the problems.
    """
    found = list(problems)
    by_id: dict[str, list[Entry]] = {}
    for entry in entries:
        by_id.setdefault(entry.image_id, []).append(entry)
    kept: list[Entry] = []
    for image_id, same in sorted(by_id.items()):
        first = same[0]
        conflicts = [field for field in Entry._fields[1:-1] if len({getattr(e, field) for e in same}) > 1]
        if conflicts:
            values = "; ".join(f"{e.where}: {', '.join(str(getattr(e, c)) for c in conflicts)}" for e in same)
            reason = f"duplicate id with conflicting {' and '.join(conflicts)} ({values})"
            found += [Problem(image_id, e.where, reason, "left out") for e in same]
            continue
        kept.append(first)
        found += [
            Problem(image_id, e.where, f"duplicate id: repeats {first.where}", "left out") for e in same[1:]
        ]
    rows = [(*e[:-2], dataset, e.split) for e in kept]
    manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype=object)
    types = {column: "Int64" if column == "grade" else "string" for column in MANIFEST_COLUMNS}
    return SourceTable(manifest.astype(types), tuple(found))


def parse_text(text: str) -> str | None:
    """A cell without outer blanks, or None if it says nothing (empty, ``NaN``, ``NA``, ``null``, ...)."""
    text = text.strip()
    return None if text.lower() in _NO_VALUE else text


def parse_grade(text: str) -> int | None:
    """Read a grade: ``2``, ``2.0``, or nothing for a photograph without a label.

    Raises:
        RowError: For anything else.
    """
    value = parse_text(text)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        raise RowError(f'grade "{value}" is not a number') from None
    if not math.isfinite(number) or number != int(number):
        raise RowError(f"grade {value} is not a whole number")
    if int(number) not in GRADES:
        raise RowError(f"grade {value} is not one of {GRADES[0]}-{GRADES[-1]}")
    return int(number)


def parse_eye(text: str) -> str | None:
    """``left`` or ``right`` from the usual spellings (``L``, ``OD``, ...); None if nothing is said.

    Raises:
        RowError: For anything else.
    """
    return _one_of(text, _EYES, "eye", "left, right, L, R, OS, OD")


def parse_split(text: str) -> str | None:
    """``train``, ``val`` or ``test`` from the usual spellings; None if nothing is said.

    Raises:
        RowError: For anything else: a photograph that may be a test photograph must not be trained on.
    """
    return _one_of(text, _SPLITS, "split", "train, val, test")


def _one_of(text: str, known: dict[str, str], what: str, choices: str) -> str | None:
    value = parse_text(text)
    if value is None:
        return None
    if value.lower() not in known:
        raise RowError(f'{what} "{value}" is not one of {choices}')
    return known[value.lower()]


class PhotoFinder:
    """Finds the files that label files name, inside one folder.

    Args:
        root: Folder that the resulting paths are relative to; nothing outside it is accepted.
        folder: Folder that the names are relative to, relative to ``root``.
        extensions: Endings, in lower case, that are tried in this order for names without one.
    """

    def __init__(self, root: Path, folder: str = ".", extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> None:
        self.root = root
        self.folder = folder
        self.extensions = extensions
        self._real_root = root.resolve()
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> str:
        """Path of a photograph relative to the root, with forward slashes.

        Args:
            name: File name or path, with or without its ending.

        Raises:
            RowError: If it is not there, not a file, ambiguous, or outside the root.
        """
        name = name if os.sep == "\\" else name.replace("\\", "/")
        wanted = Path(os.path.normpath(self.root.absolute() / self.folder / name))
        try:
            relative = wanted.relative_to(os.path.normpath(self.root.absolute()))
            path = wanted if wanted.is_file() else self._with_ending(wanted, name)
            if not path.resolve().is_relative_to(self._real_root):
                raise RowError(f"path outside the root {self.root} (through a symbolic link): {name}")
        except ValueError:
            raise RowError(f"path outside the root {self.root}: {name}") from None
        except OSError as error:
            raise RowError(f"the file cannot be used: {name} ({error.strerror})") from None
        return relative.with_name(path.name).as_posix()

    def stem(self, path: str) -> str:
        """A path without its ending, if that is one of a photograph."""
        base, ending = os.path.splitext(path)  # noqa: PTH122  (pathlib drops what may belong to the name)
        return base if ending.lower() in self.extensions else path

    def all_photographs(self) -> Iterator[str]:
        """Every photograph in the folder and below, relative to the root; hidden ones are left out."""
        start = self.root / self.folder
        for folder, subfolders, files in os.walk(start):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(self.extensions):
                    yield (
                        Path(os.path.normpath(Path(folder, name)))
                        .relative_to(os.path.normpath(self.root))
                        .as_posix()
                    )

    def _with_ending(self, wanted: Path, name: str) -> Path:
        listing = self._listings.get(wanted.parent)
        if listing is None:
            listing = self._listings[wanted.parent] = self._by_stem(wanted.parent)
        fitting = listing.get(wanted.name, [])
        if len(fitting) > 1:
            raise RowError(f"several files fit {name}: {', '.join(fitting)}")
        if not fitting:
            raise RowError(f"the file is not there: {name}")
        return wanted.with_name(fitting[0])

    def _by_stem(self, folder: Path) -> dict[str, list[str]]:
        listing: dict[str, list[str]] = {}
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in self.extensions:
                    listing.setdefault(file.stem, []).append(file.name)
        return listing


def require_folder(root: Path, what: str) -> None:
    """Check that a data set's folder is there.

    Raises:
        DataError: If it is not; ``what`` says what was expected there.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {state}: expected {what} there. Set data.root=DIR")
