"""What every source gives: a manifest of photographs, and the list of what is wrong with it.

Readers of one layout (:class:`Source`) share the parts below: they turn every row of a label file into an
:class:`Entry`, or raise :class:`RowError` for a row that cannot be used; :func:`read_rows` goes through a
label file, and :func:`collect` makes the manifest.
"""

import math
import os
import textwrap
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pandas as pd

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.sources.label_files import LabelFile, LabelRow
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
            conversion or with what the reason says; ``data.strict`` does not stop at it).
        photograph: The photograph's file, relative to the root, if there is one that a row names; else "".
    """

    image_id: str
    path: str
    reason: str
    action: Literal["left out", "converted"]
    photograph: str = ""


@dataclass(frozen=True)
class SourceTable:
    """What a source found: a manifest with :data:`MANIFEST_COLUMNS`, sorted by image_id, and its problems."""

    manifest: pd.DataFrame
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class About:
    """What is known of a data set beside its photographs: a model card repeats it.

    Attributes:
        title: Its name in full.
        terms: Its licence, or its terms in a line.
        licence: Name of the licence on the Hugging Face hub, as ``cc-by-4.0``; "" if there is no such name.
        url: Where it is to be had; "" for nowhere.
        citations: What its authors ask to be cited.
        cameras: Who took the photographs, and with what; a sentence or two.
        limits: Further sentences on what figures on it do not show.
        hub: Its id on the Hugging Face hub; "" if it has none.
        public: Whether anybody can get the photographs, if only on conditions.
        drawn: Whether nobody was photographed.
    """

    title: str
    terms: str
    licence: str = ""
    url: str = ""
    citations: tuple[str, ...] = ()
    cameras: str = ""
    limits: tuple[str, ...] = ()
    hub: str = ""
    public: bool = True
    drawn: bool = False

    @property
    def cite(self) -> str:
        """What is to be cited, as the last lines of a message."""
        return textwrap.fill(f"Cite: {'; '.join(self.citations)}.", 110, break_on_hyphens=False)


class Source(ABC):
    """A data set on disk. Subclasses read one layout; they never decode a photograph.

    Attributes:
        name: The data set's name, as in ``data=NAME``.
        root: Folder that the manifest's paths are relative to.
        how_to_get: Where the data set is to be had, its terms in a line, the layout expected, and the
            command of the official client if there is one. Part of every message on missing files.
        about: Terms, citation, cameras; None where drgrade knows nothing of it.
    """

    name: str
    root: Path
    how_to_get: str = ""
    about: ClassVar[About | None] = None

    @abstractmethod
    def read(self) -> SourceTable:
        """Read labels and list photographs.

        Raises:
            DataError: If the data set as a whole cannot be used (no such folder, no label file, a column
                is missing).
        """

    def download(self) -> None:
        """Fetch the data set into the root, in the layout that :meth:`read` reads; nothing if it is there.

        This default is for data sets whose terms their user must accept in person: it leaves what lies in
        the root to :meth:`read`, so that ``download=true`` serves several data sets at once.

        Raises:
            DataError: If there is nothing and drgrade may not fetch it, or if that fails.
        """
        if self.root.is_dir() and any(self.root.iterdir()):
            return
        raise DataError(
            f"data={self.name} cannot be downloaded by drgrade: its terms are between you and its owner. "
            f"Get it yourself, then set data.root=DIR.\n{self.how_to_get}"
        )

    def photograph_folders(self) -> tuple[str, ...]:
        """Folders of the data set that hold its photographs, relative to the root."""
        return (".",)

    def unlisted(self) -> list[str]:
        """Photographs in the data set's folders that no row of a label file names.

        Returns:
            Paths relative to the root, sorted. What a row names is not among them, whether that row can be
            used or not.

        Raises:
            DataError: As :meth:`read`.
        """
        table = self.read()
        named = set(table.manifest["path"])
        named.update(*((problem.photograph, problem.path) for problem in table.problems))
        finders = (PhotoFinder(self.root, folder) for folder in self.photograph_folders())
        return sorted({path for finder in finders for path in finder.all_photographs()} - named)

    def need(self, *choices: str) -> str:
        """The first of several files or folders that is there.

        Args:
            choices: Paths relative to the root, the official one first.

        Raises:
            DataError: If none is: what is missing, where it was looked for, and how to get it.
        """
        for choice in choices:
            if (self.root / choice).exists():
                return choice
        raise self.missing(choices[0])

    def missing(self, path: str) -> DataError:
        """The error for a file or folder that should be there.

        Args:
            path: Relative to the root.
        """
        if not self.root.is_dir():
            state = f"{self.root} {'is not a folder' if self.root.exists() else 'does not exist'}"
            state += f": data={self.name} should lie there"
        else:
            state = f"data={self.name} is not there or incomplete: {self.root / path} is not there"
        return DataError(f"{state}. {self._remedy()}\n{self.how_to_get}")

    def _remedy(self) -> str:
        if type(self).download is Source.download:
            return "Set data.root=DIR to the folder that holds it."
        return "Set data.root=DIR to the folder that holds it, or download=true to have it fetched."


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


def read_rows(
    labels: LabelFile,
    image_column: str,
    finder: "PhotoFinder",
    entry: Callable[[LabelRow, str], Entry],
    *,
    locate: Callable[[str], str] = str,
    prefix: str = "",
) -> Iterator[Entry | Problem]:
    """Go through a label file; rows that cannot be used become problems.

    Args:
        labels: The file.
        image_column: Column that names the photograph.
        finder: Finds it.
        entry: Makes the entry from a row and the photograph's path; ``where`` is filled in here. It may raise
            :class:`RowError`.
        locate: File name, for the finder, of what the column says.
        prefix: Stands before the name in the image_id of problems.

    Yields:
        One item for each row.
    """
    for row in labels.rows:
        name, where, path = row.cells[image_column], f"{labels.path.name}:{row.line}", ""
        try:
            if row.surplus:
                raise RowError(f"{row.surplus} more values than columns")
            if not name:
                raise RowError(f'empty id (column "{image_column}")')
            path = finder.find(locate(name))
            yield entry(row, path)._replace(where=where)
        except RowError as error:
            yield Problem(f"{prefix}{finder.stem(name)}", where, str(error), "left out", path)


def read_folder(
    finder: "PhotoFinder", entry: Callable[[str], Entry], skip: Container[str] = ()
) -> Iterator[Entry | Problem]:
    """Go through the photographs of a folder that no label file names.

    Args:
        finder: Finds them.
        skip: Paths that are passed over.
        entry: Makes the entry from a photograph's path; ``where`` is filled in here. It may raise
            :class:`RowError`.

    Yields:
        One item for each photograph.
    """
    for path in finder.all_photographs():
        if path in skip:
            continue
        if not _is_text(path):
            shown = path.encode("utf-8", "backslashreplace").decode()
            yield Problem(shown, shown, "the file's name is not UTF-8: rename it", "left out", shown)
            continue
        try:
            finder.find((finder.root / path).absolute().as_posix())
            yield entry(path)._replace(where=path)
        except RowError as error:
            yield Problem(finder.stem(path), path, str(error), "left out", path)


def _is_text(path: str) -> bool:
    """Whether a name can be written to a table; on Linux it may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def collect(items: Iterable[Entry | Problem], dataset: str) -> SourceTable:
    """Make the table of what :func:`read_rows` and :func:`read_folder` found; see :func:`source_table`."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for item in items:
        if isinstance(item, Entry):
            entries.append(item)
        else:
            problems.append(item)
    return source_table(entries, problems, dataset)


def source_table(entries: Iterable[Entry], problems: Iterable[Problem], dataset: str) -> SourceTable:
    """Sort entries into a manifest, each image_id and each file once.

    Of rows that say the same of one image_id or one file the first is kept: files are found under more than
    one spelling. Where such rows disagree (another grade, file, patient, eye or split) nobody can tell which
    is right, and all of them are left out. Rows left out are added to the problems.
    """
    found, listed = list(problems), list(entries)
    conflicts = _conflicts(listed)
    by_id: dict[str, Entry] = {}
    by_path: dict[str, Entry] = {}
    for number, entry in enumerate(listed):
        reason = conflicts.get(number)
        if reason is None:
            first = by_id.get(entry.image_id) or by_path.get(entry.path)
            if first is None:
                by_id[entry.image_id] = by_path[entry.path] = entry
                continue
            named = "" if first.image_id == entry.image_id else f" ({first.image_id}, the same file)"
            reason = f"duplicate id: repeats {first.where}{named}"
        found.append(Problem(entry.image_id, entry.where, reason, "left out", entry.path))
    rows = [(*e[:-2], dataset, e.split) for _, e in sorted(by_id.items())]
    manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype=object)
    types = {column: "Int64" if column == "grade" else "string" for column in MANIFEST_COLUMNS}
    return SourceTable(manifest.astype(types), tuple(found))


def _conflicts(entries: list[Entry]) -> dict[int, str]:
    """Why entries cannot be used that disagree with others of their image_id or file, by their number."""
    reasons: dict[int, str] = {}
    for key, what in (("image_id", "duplicate id with"), ("path", "one file under several ids, with")):
        groups: dict[str, list[int]] = {}
        for number, entry in enumerate(entries):
            groups.setdefault(getattr(entry, key), []).append(number)
        for numbers in groups.values():
            same = [entries[number] for number in numbers]
            fields = [f for f in Entry._fields[1:-1] if len({getattr(e, f) for e in same}) > 1]
            if fields:
                shown = fields if key == "image_id" else ["image_id", *fields]
                values = (f"{e.where}: {', '.join(str(getattr(e, f)) for f in shown)}" for e in same)
                reason = f"{what} conflicting {' and '.join(fields)} ({'; '.join(values)})"
                for number in numbers:
                    reasons.setdefault(number, reason)
    return reasons


def parse_text(text: str) -> str | None:
    """A cell without outer blanks, or None if it says nothing (empty, ``NaN``, ``NA``, ``null``, ...)."""
    text = text.strip()
    return None if text.lower() in _NO_VALUE else text


def parse_grade(text: str, *, ungradable: int | None = None) -> int | None:
    """Read a grade: ``2``, ``2.0``, or nothing for a photograph without a label.

    Args:
        text: The cell.
        ungradable: Number that says that the photograph could not be graded.

    Raises:
        RowError: For anything else, and for the number ``ungradable``.
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
    if int(number) == ungradable:
        raise RowError(f"ungradable (grade {ungradable})")
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

    A letter with an accent may be one character in a label file and two in a file's name (Unicode NFC and
    NFD; files from a Mac have the latter): that is the same name.

    Args:
        root: Folder that the resulting paths are relative to; nothing outside it is accepted.
        folder: Folder that the names are relative to, relative to ``root``.
        extensions: Endings, in lower case, that are tried in this order for names without one.
        loose: Whether a file may differ from its name in upper and lower case and in its ending, as copies of
            public data sets often do. A file that fits exactly comes first; several that fit loosely are not
            guessed between.
    """

    def __init__(
        self,
        root: Path,
        folder: str = ".",
        extensions: tuple[str, ...] = IMAGE_EXTENSIONS,
        loose: bool = False,
    ) -> None:
        self.root = root
        self.folder = folder
        self.extensions = extensions
        self.loose = loose
        self._top = os.path.normpath(root.absolute())
        self._listings: dict[str, _Listing] = {}

    def find(self, name: str) -> str:
        """Path of a photograph relative to the root, with forward slashes.

        Args:
            name: File name or path, with or without its ending.

        Raises:
            RowError: If it is not there, not a file, ambiguous, or outside the root.
        """
        name = name if os.sep == "\\" else name.replace("\\", "/")
        wanted = os.path.normpath(os.path.join(self._top, self.folder, name))  # noqa: PTH118  (30 times faster)
        if not wanted.startswith(os.path.join(self._top, "")):  # noqa: PTH118
            raise RowError(f"path outside the root {self.root}: {name}")
        folder, base = os.path.split(wanted)
        try:
            listing = self._listing(folder)
            known = listing.plain.get(base)
            if known is None or not (known or Path(wanted).is_file()):
                base = self._with_ending(listing, folder, base, name)
            if not (listing.inside and listing.plain.get(base)):
                self._check_link(Path(folder, base), name)
        except ValueError:
            raise RowError(f"path outside the root {self.root}: {name}") from None
        except OSError as error:
            raise RowError(f"the file cannot be used: {name} ({error.strerror})") from None
        return os.path.join(folder, base)[len(self._top) :].lstrip(os.sep).replace(os.sep, "/")  # noqa: PTH118

    def stem(self, path: str) -> str:
        """A path without its ending, if that is one of a photograph."""
        base, ending = os.path.splitext(path)  # noqa: PTH122  (pathlib drops what may belong to the name)
        return base if ending.lower() in self.extensions else path

    def all_photographs(self) -> Iterator[str]:
        """Every photograph in the folder and below, relative to the root; hidden ones are left out."""
        for folder, subfolders, files in os.walk(self.root / self.folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = Path(os.path.relpath(folder, self.root))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(self.extensions):
                    yield (below / name).as_posix()

    def _with_ending(self, listing: "_Listing", folder: str, base: str, name: str) -> str:
        fitting = listing.by_name.get(self._key(self.stem(base) if self.loose else base), [])
        if len(fitting) > 1:
            raise RowError(f"several files fit {name}: {', '.join(fitting)}")
        # is_file(): upper and lower case may be the same here, and it gives the reason where it fails
        if not fitting and not Path(folder, base).is_file():
            raise RowError(f"the file is not there: {name}")
        return fitting[0] if fitting else base

    def _check_link(self, path: Path, name: str) -> None:
        """Check a file that is a link, or is in a folder that one leads to."""
        if not path.is_file():
            raise RowError(f"the file is not there: {name}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise RowError(f"path outside the root {self.root} (through a symbolic link): {name}")

    def _listing(self, folder: str) -> "_Listing":
        """What is in a folder, read once: large data sets have one of 50,000 files."""
        if folder not in self._listings:
            plain, by_name = dict[str, bool](), dict[str, list[str]]()
            for file, is_plain in _scan(folder):
                stem = self.stem(file)
                if stem != file and not stem.startswith("."):
                    by_name.setdefault(self._key(stem), []).append(file)
                if not (self.loose or file.isascii()):
                    by_name.setdefault(self._key(file), []).append(file)
                plain[file] = is_plain
            inside = Path(folder).resolve().is_relative_to(self.root.resolve())
            self._listings[folder] = _Listing(inside, plain, by_name)
        return self._listings[folder]

    def _key(self, name: str) -> str:
        """What names have in common that are taken for the same."""
        name = unicodedata.normalize("NFC", name)
        return unicodedata.normalize("NFC", name.casefold()) if self.loose else name


class _Listing(NamedTuple):
    """What is in a folder.

    Attributes:
        inside: Whether it is inside the root, links followed.
        plain: By name, whether it is a file and no link.
        by_name: Names of photographs by what they are without ending, and with it where a strict finder may
            meet another form of it; see :meth:`PhotoFinder._key`.
    """

    inside: bool
    plain: dict[str, bool]
    by_name: dict[str, list[str]]


def _scan(folder: str) -> list[tuple[str, bool]]:
    """Names in a folder, and whether they are files and no links; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []  # find() gets the reason when it asks for a file in it


def require_folder(root: Path, what: str) -> None:
    """Check that a data set's folder is there.

    Raises:
        DataError: If it is not; ``what`` says what was expected there.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {state}: expected {what} there. Set data.root=DIR")
