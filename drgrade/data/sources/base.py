"""Base class of the readers of data sets, and functions that they share.

A reader converts each row of a label file to an :class:`Entry`, or raises
:class:`~drgrade.data.sources.label_files.RowError` for an unusable row, which becomes a :class:`Problem`.
"""

import importlib
import math
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pandas as pd
from filelock import FileLock

from drgrade.artefacts import installed_class, shortened
from drgrade.config import CONF
from drgrade.data.sources.label_files import MORE_VALUES, LabelFile, LabelRow, PhotoFinder, RowError
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES

MANIFEST_COLUMNS = ("image_id", "path", "grade", "patient_id", "eye", "dataset", "split")
"""Columns of a manifest, in order.

``grade`` is ``Int64``, the others are strings. ``path`` is relative to the root of the source, with forward
slashes. ``eye`` is "left" or "right"; ``split`` is the published "train", "val" or "test". Unknown values are
``pd.NA``.
"""

_NO_VALUE = frozenset({"", "nan", "na", "n/a", "none", "null"})
_EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


@dataclass(frozen=True)
class Problem:
    """Problem of one photograph or one row of a label file.

    Attributes:
        image_id: Id of the photograph; "" if unknown.
        path: File, or ``labels.csv:17`` for a row, relative to the root if possible.
        reason: Description of the problem. It is part of the key of a store.
        action: "left out" (not in the store) or "converted" (in the store after a change, also with
            ``data.strict``).
        photograph: File of the photograph that the row names, relative to the root; "" if there is none.
    """

    image_id: str
    path: str
    reason: str
    action: Literal["left out", "converted"]
    photograph: str = ""


class Entry(NamedTuple):
    """One photograph of a data set; None for unknown values.

    Attributes:
        image_id: Name in the data set.
        path: File relative to the root, with forward slashes.
        grade: 0-4 on the international clinical DR severity scale.
        patient_id: Id of the patient.
        eye: "left" or "right".
        split: Published split, "train", "val" or "test".
        where: Origin for reports: ``labels.csv:17``, or the file itself.
    """

    image_id: str
    path: str
    grade: int | None = None
    patient_id: str | None = None
    eye: str | None = None
    split: str | None = None
    where: str = ""


Item = Entry | Problem
"""Usable or unusable row of a label file."""


@dataclass(frozen=True)
class SourceTable:
    """Manifest with :data:`MANIFEST_COLUMNS`, sorted by image_id, and the problems found."""

    manifest: pd.DataFrame
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class About:
    """Description of a data set for messages and model cards.

    Attributes:
        title: Full name.
        terms: Licence or terms of use in one line.
        licence: Licence identifier of the Hugging Face hub, such as ``cc-by-4.0``; "" without one.
        url: Address of the data set; "" if there is none.
        citations: Publications that its authors ask to cite.
        cameras: Origin of the photographs and cameras, in one or two sentences.
        limits: Limitations of results on it, one sentence each.
        hub: Id on the Hugging Face hub; "" without one.
        public: Whether anybody can get the photographs, possibly under conditions.
        drawn: Whether the photographs are synthetic.
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
        """Citations as the last lines of a message."""
        return textwrap.fill(f"Cite: {'; '.join(self.citations)}.", 110, break_on_hyphens=False)


class Source:
    """Reader of a data set on disk. A subclass reads one layout and never decodes a photograph.

    It implements :meth:`items`, or :meth:`read` if it has a manifest already.

    Attributes:
        how_to_get: Where to get the data set, its terms, the expected layout, and the command of the official
            client if there is one. Part of messages on missing files.
        about: Description of the data set; None if unknown.

    Args:
        root: Folder that paths in the manifest are relative to.
        name: Name of the data set; None for the default of the class.
    """

    name: str = ""
    how_to_get: str = ""
    about: ClassVar[About | None] = None

    def __init__(self, root: str | Path, name: str | None = None) -> None:
        self.root = Path(root)
        self.name = self.name if name is None else name

    def read(self) -> SourceTable:
        """Read labels and list photographs.

        Raises:
            DataError: If a folder, label file or column is missing, so that the data set cannot be used.
        """
        return collect(self.items(), self.name)

    def items(self) -> Iterable[Item]:
        """Yield the entry of each row of the label files, or the problem of an unusable row."""
        raise NotImplementedError

    def download(self) -> None:
        """Download the data set into the root in the layout of :meth:`read`, unless it exists.

        The default is for data sets whose terms the user must accept in person. It accepts any existing
        content of the root, so that ``download=true`` works with several data sets at once.

        Raises:
            DataError: If the data set is missing and drgrade may not download it, or if the download fails.
        """
        if self.root.is_dir() and any(self.root.iterdir()):
            return
        raise DataError(
            f"data={self.name} cannot be downloaded by drgrade, because you must accept its terms yourself. "
            f"Get it, then set data.root=DIR.\n{self.how_to_get}"
        )

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs, relative to the root."""
        return (".",)

    def unlisted(self) -> list[str]:
        """Return the sorted paths of photographs that no row of a label file names, usable or not.

        Raises:
            DataError: As :meth:`read`.
        """
        table = self.read()
        named = set(table.manifest["path"])
        named.update(*((problem.photograph, problem.path) for problem in table.problems))
        finders = (PhotoFinder(self.root, folder) for folder in self.photograph_folders())
        return sorted({path for finder in finders for path in finder.all_photographs()} - named)

    def need(self, *choices: str) -> str:
        """Return the first of several files or folders that exists.

        Args:
            choices: Paths relative to the root, the official one first.

        Raises:
            DataError: If none exists.
        """
        for choice in choices:
            if (self.root / choice).exists():
                return choice
        if not self.root.is_dir():
            state = f"{self.root} {'is not a folder' if self.root.exists() else 'does not exist'}"
            state += f": expected data={self.name} there"
        else:
            state = f"data={self.name} is missing or incomplete: {self.root / choices[0]} does not exist"
        automatic = type(self).download is not Source.download
        remedy = f"Set data.root=DIR to its folder{', or download=true to download it' if automatic else ''}."
        raise DataError(f"{state}. {remedy}\n{self.how_to_get}")

    def innermost(self, folder: str) -> str:
        """Return a folder, or one of the same name in it, which unpacking often creates."""
        nested = f"{folder}/{folder}"
        return nested if (self.root / nested).is_dir() else folder


def read_rows(
    labels: LabelFile,
    image_column: str,
    finder: PhotoFinder,
    entry: Callable[[LabelRow, str], Entry],
    *,
    locate: Callable[[str], str] = str,
    prefix: str = "",
) -> Iterator[Item]:
    """Yield the entry of each row of a label file, or its problem.

    Args:
        labels: The label file.
        image_column: Column that names the photograph.
        finder: Finds the file of a photograph.
        entry: Returns the entry of a row and the path of its photograph, without ``where``. May raise
            RowError.
        locate: Converts a value of the column to a file name.
        prefix: Prefix of image_id in problems.
    """
    for row in labels.rows:
        name, where, path = row.cells[image_column], f"{labels.path.name}:{row.line}", ""
        try:
            if row.surplus:
                raise RowError(f"{row.surplus} {MORE_VALUES}")
            if not name:
                raise RowError(f'empty id (column "{image_column}")')
            path = finder.find(locate(name))
            item = entry(row, path)._replace(where=where)
            yield item
            if finder.differs_in_case(locate(name), path):
                reason = f"found in other upper and lower case: {name} ({path})"
                yield Problem(item.image_id, where, reason, "converted", path)
        except RowError as error:
            yield Problem(f"{prefix}{finder.stem(name)}", where, str(error), "left out", path)


def read_folder(
    finder: PhotoFinder, entry: Callable[[str], Entry], skip: Container[str] = ()
) -> Iterator[Item]:
    """Yield the entry of each photograph of a folder, or its problem.

    Args:
        finder: Lists the photographs.
        entry: Returns the entry of a path, without ``where``. May raise RowError.
        skip: Paths to skip.
    """
    for path in finder.all_photographs():
        if path in skip:
            continue
        text = path.encode("utf-8", "backslashreplace").decode()
        if text != path:  # on Linux a file name may be any bytes
            yield Problem(text, text, "the file's name is not UTF-8: rename it", "left out", text)
            continue
        try:
            finder.find((finder.root / path).absolute().as_posix())
            yield entry(path)._replace(where=path)
        except RowError as error:
            yield Problem(finder.stem(path), path, str(error), "left out", path)


def collect(items: Iterable[Item], dataset: str) -> SourceTable:
    """Build the manifest, with each image_id and each file once.

    Of rows with equal content for one image_id or file the first is kept. Rows that disagree (grade, file,
    patient, eye or split) are all left out. Rows that are left out become problems.

    Args:
        items: Results of :func:`read_rows` and :func:`read_folder`.
        dataset: Value of the column ``dataset``.
    """
    items = list(items)
    entries = [item for item in items if isinstance(item, Entry)]
    problems = [item for item in items if isinstance(item, Problem)]
    conflicts = _conflicts(entries)
    by_id: dict[str, Entry] = {}
    by_path: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        reason = conflicts.get(number)
        if reason is None:
            first = by_id.get(entry.image_id) or by_path.get(entry.path)
            if first is None:
                by_id[entry.image_id] = by_path[entry.path] = entry
                continue
            named = "" if first.image_id == entry.image_id else f" ({first.image_id}, the same file)"
            reason = f"duplicate id: repeats {first.where}{named}"
        problems.append(Problem(entry.image_id, entry.where, reason, "left out", entry.path))
    rows = [(*e[:-2], dataset, e.split) for _, e in sorted(by_id.items())]
    manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype=object)
    types = {column: "Int64" if column == "grade" else "string" for column in MANIFEST_COLUMNS}
    return SourceTable(manifest.astype(types), tuple(problems))


def _conflicts(entries: list[Entry]) -> dict[int, str]:
    """Return the reasons of entries that disagree with others of the same image_id or file, by number."""
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
    """Strip a cell; return None for an empty value (``NaN``, ``NA``, ``null``, ...)."""
    text = text.strip()
    return None if text.lower() in _NO_VALUE else text


def parse_grade(text: str, *, ungradable: int | None = None) -> int | None:
    """Parse a grade.

    Args:
        text: Cell such as ``2``, ``2.0`` or ``2,0``; an empty cell is an ungraded photograph.
        ungradable: Value that marks a photograph as ungradable.

    Raises:
        RowError: For any other value, and for ``ungradable``.

    Example:
        >>> parse_grade("2.0"), parse_grade(" ")
        (2, None)
    """
    value = parse_text(text)
    if value is None:
        return None
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        raise RowError(f'grade "{value}" is not a number') from None
    if not math.isfinite(number) or number != int(number):
        raise RowError(f"grade {value} is not a whole number")
    if int(number) == ungradable:
        raise RowError(f"ungradable (grade {ungradable})")
    if int(number) not in range(NUM_GRADES):
        raise RowError(f"grade {value} is not one of 0-{NUM_GRADES - 1}")
    return int(number)


def parse_eye(text: str) -> str | None:
    """Parse ``left``, ``right``, ``L``, ``R``, ``OS`` or ``OD``; return None for an empty cell.

    Raises:
        RowError: For any other value.
    """
    return _one_of(text, _EYES, "eye", "left, right, L, R, OS, OD")


def parse_split(text: str) -> str | None:
    """Parse ``train``, ``val`` or ``test`` and common variants; return None for an empty cell.

    Raises:
        RowError: For any other value, because the photograph may be a test photograph.
    """
    return _one_of(text, _SPLITS, "split", "train, val, test")


def _one_of(text: str, known: dict[str, str], what: str, choices: str) -> str | None:
    value = parse_text(text)
    if value is None:
        return None
    if value.lower() not in known:
        raise RowError(f'{what} "{value}" is not one of {choices}')
    return known[value.lower()]


def build_once(target: Path, fill: Callable[[Path], None]) -> bool:
    """Create a folder completely or not at all; return False if it exists.

    The folder is filled under a temporary name and renamed. If several processes request it, one fills it
    and the others wait. Leftovers of killed processes are removed.

    Raises:
        DataError: If the folder cannot be written.
    """
    if target.exists():  # before locking, because the folder around it may be read-only
        return False
    parent, prefix = target.parent, f".{target.name}-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f".{target.name}.lock"):
            if target.exists():
                return False
            for leftover in parent.glob(f"{prefix}*"):
                shutil.rmtree(leftover)
            unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                unfinished.chmod(0o755)
                fill(unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error
    return True


def needs_extra(what: str, package: str) -> DataError:
    """Return the error for an optional package that the feature ``what`` needs."""
    return DataError(f"{what} needs the package {package}: pip install 'drgrade[datasets]'")


ENTRY_POINTS = "drgrade.sources"
"""Group of the entry points by which an installed package offers its own sources."""

_PACKAGE = "drgrade.data.sources."


def source_class(target: object) -> type[Source] | None:
    """Return the class of a source that an artefact may name; None for every other name.

    These are the sources of drgrade that ``conf/data`` names, and those that installed packages offer as
    entry points of the group :data:`ENTRY_POINTS`. Nothing else is imported.

    Example:
        >>> source_class("drgrade.data.sources.ddr.DDR").__name__
        'DDR'
        >>> source_class("os.system")
    """
    if not isinstance(target, str):
        return None
    if target in _own_sources():
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    else:
        found = installed_class(ENTRY_POINTS, target)
    return found if isinstance(found, type) and issubclass(found, Source) else None


@cache
def _own_sources() -> frozenset[str]:
    targets = re.compile(rf"^  _target_: ({re.escape(_PACKAGE)}\w+\.\w+)$", re.MULTILINE)
    files = (CONF / "data").glob("*.yaml")
    return frozenset(name for file in files for name in targets.findall(file.read_text(encoding="utf-8")))


def make_source(node: object) -> Source:
    """Make a source from the settings of an artefact, which are text, numbers and truth values.

    Raises:
        DataError: If they name no source, or a source refuses them.
    """
    settings = dict(node) if isinstance(node, Mapping) else {}
    target = settings.pop("_target_", None)
    kind = source_class(target)
    if kind is None:
        raise DataError(f"its source is {shortened(target)}, which is not a data set of drgrade")
    for name, value in settings.items():
        if isinstance(value, dict | list) or str(name).startswith("_"):
            raise DataError(f"its source has {name}={shortened(value)}, which is not allowed")
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise DataError(f"its source {kind.__name__} refuses its settings: {error}") from error
