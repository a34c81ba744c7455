"""Input files of a prediction job: photographs, folders and lists, read one at a time."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from drgrade.data.image_reader import IMAGE_EXTENSIONS, NO_PERMISSION
from drgrade.data.sources.label_files import SURPLUS, read_records, utf16_encoding
from drgrade.errors import ConfigError, DataError
from drgrade.files import original_cell, require_regular, special_kind

STDIN = "-"
"""Input that stands for paths on standard input."""

PATH_COLUMNS = ("path", "image", "image_path", "file", "filename")
"""Columns of a .csv list that may hold the paths, by priority."""

_LISTS = (".txt", ".csv")
_NAMED_KINDS = 10
_START = 4096  # bytes from which the encoding of a list is detected


@dataclass(frozen=True)
class InputFile:
    """A file to grade.

    Attributes:
        path: Path relative to the working directory, or absolute.
        image_id: Path below the input folder without ending, or the ``image_id`` of a list.
        problem: Why there is no file to open; empty if there may be one.
    """

    path: str
    image_id: str
    problem: str = ""


@dataclass(frozen=True)
class InputState:
    """Properties of a file by which a change is detected.

    Attributes:
        size: In bytes; -1 if there is no such file.
        modified: In nanoseconds since 1970; -1 likewise.
        opens: False for what must not be opened (:func:`~drgrade.files.special_kind`).
    """

    size: int = -1
    modified: int = -1
    opens: bool = True


def file_state(path: str) -> InputState:
    """Return the state of a file, which need not exist, without opening it."""
    try:
        facts = os.stat(path)  # noqa: PTH116  (entries of a list may be no valid path for pathlib)
    except (OSError, ValueError):  # reading the file gives the reason
        return InputState()
    return InputState(facts.st_size, facts.st_mtime_ns, opens=not special_kind(path))


class Inputs:
    """Photographs named on the command line; listed anew on each iteration.

    Folders are searched recursively in the order of their names. Hidden files, hidden folders and symbolic
    links to folders are skipped. Paths in a list are relative to the folder of the list.
    """

    def __init__(self, given: Sequence[str], leave_out: Path | None = None) -> None:
        """Check the inputs.

        Args:
            given: Files, folders, lists (.txt with one path per line, .csv with a column of paths), or ``-``
                for paths on standard input, one per line.
            leave_out: Folder that is not searched: that of the results.

        Raises:
            ConfigError: If nothing is given, an input does not exist, or ``-`` is combined with other inputs.
        """
        if not given:
            raise ConfigError("no photographs are given: input=FILE_OR_FOLDER, or a list as .txt or .csv")
        if STDIN in given and len(given) > 1:
            raise ConfigError(
                "input=- reads paths from standard input and cannot be combined with other inputs"
            )
        for each in given:
            if each != STDIN and not Path(each).exists():
                raise ConfigError(f"input={each} does not exist")
        self.given = tuple(given)
        self._skipped: dict[str, tuple[int, str]] = {}  # number and first path by ending
        self._leave_out = None if leave_out is None else leave_out.resolve()

    @property
    def from_stdin(self) -> bool:
        """True for paths on standard input, which allow only one iteration."""
        return self.given == (STDIN,)

    @cached_property
    def total(self) -> int | None:
        """Number of photographs; None for standard input.

        Raises:
            DataError: If a list cannot be read.
        """
        return None if self.from_stdin else sum(1 for _ in self)

    @property
    def skipped(self) -> dict[str, int]:
        """Numbers of other files that the last iteration found in folders, by ending."""
        return {ending: number for ending, (number, _) in sorted(self._skipped.items())}

    def describe_skipped(self) -> str:
        """Count and name these files; empty if there are none."""
        kinds = sorted(self._skipped.items(), key=lambda kind: -kind[1][0])
        listed = [
            f"{number} {ending or 'without ending'} ({first}{', ...' if number > 1 else ''})"
            for ending, (number, first) in kinds[:_NAMED_KINDS]
        ]
        listed += [f"{len(kinds) - _NAMED_KINDS} more kinds"] if len(kinds) > _NAMED_KINDS else []
        return f"{sum(self.skipped.values())} other files skipped: {', '.join(listed)}" if kinds else ""

    def __iter__(self) -> Iterator[InputFile]:
        self._skipped = {}
        for each in self.given:
            if each == STDIN:
                yield from _read_lines(sys.stdin.buffer, "")
            elif Path(each).is_dir():
                yield from self._search(each)
            elif each.lower().endswith(_LISTS):
                yield from _read_list(each)
            else:
                yield InputFile(each, _stem(os.path.basename(each)))  # noqa: PTH119

    def _search(self, top: str) -> Iterator[InputFile]:
        """Yield the photographs of a folder and of its subfolders, which may be nested to any depth."""
        waiting = [("", True)]
        while waiting:
            inner, is_folder = waiting.pop()
            path = os.path.join(top, inner) if inner else top  # noqa: PTH118  (keeps the user's spelling)
            if inner.lower().endswith(IMAGE_EXTENSIONS):
                yield InputFile(path, _stem(inner))
            elif not is_folder:
                self._skip(path)
            if not is_folder or (inner and self._is_left_out(Path(path))):
                continue
            try:
                with os.scandir(path) as entries:
                    listed = [(each.name, each.is_dir(follow_symlinks=False)) for each in entries]
            except PermissionError:
                yield InputFile(path, inner, NO_PERMISSION.replace("file", "folder"))
            except OSError as error:
                yield InputFile(path, inner, f"the folder cannot be read: {error.strerror}")
            else:
                shown = sorted(each for each in listed if not each[0].startswith("."))
                waiting += [(os.path.join(inner, name), folder) for name, folder in reversed(shown)]  # noqa: PTH118

    def _is_left_out(self, folder: Path) -> bool:
        left_out = self._leave_out  # the name is compared first, because resolving a deep path takes long
        return left_out is not None and folder.name == left_out.name and folder.resolve() == left_out

    def _skip(self, path: str) -> None:
        ending = os.path.splitext(path)[1].lower()  # noqa: PTH122
        number, first = self._skipped.get(ending, (0, path))
        self._skipped[ending] = (number + 1, first)


def _read_list(path: str) -> Iterator[InputFile]:
    folder = os.path.dirname(path)  # noqa: PTH120
    require_regular(Path(path))
    with _list_errors(path):
        with Path(path).open("rb") as file:
            start = file.read(_START)
        # Text begins with UTF-16 only if it contains zeros; otherwise the mark is part of a name.
        encoding = utf16_encoding(start) if b"\0" in start else None
        # File names may contain any bytes; surrogateescape keeps them.
        table = path.lower().endswith(".csv")
        encoding, newline = encoding or "utf-8-sig", "" if table else "\n"
        with Path(path).open(encoding=encoding, errors="surrogateescape", newline=newline) as text:
            if table:
                yield from _read_table(text, path, folder)
            else:
                yield from _read_lines((os.fsencode(line) for line in text), folder)


def _read_lines(lines: Iterable[bytes], folder: str) -> Iterator[InputFile]:
    for number, line in enumerate(lines):
        text = os.fsdecode(line.rstrip(b"\r\n"))
        if number == 0:
            text = text.removeprefix("\ufeff")  # byte order mark
        if text:
            yield InputFile(os.path.join(folder, text), _stem(text))  # noqa: PTH118


def _read_table(file: TextIO, path: str, folder: str) -> Iterator[InputFile]:
    rows = read_records(file, Path(path))
    names = [name.strip() for name in next(rows, (0, []))[1]]
    column = next((name for name in PATH_COLUMNS if name in names), None)
    if column is None:
        listed = ", ".join(filter(None, names)) or "none"
        raise DataError(f"{path} has no column {' or '.join(PATH_COLUMNS[:2])}; its columns are: {listed}")
    for number, (_, values) in enumerate(rows, start=1):
        row = dict(zip(names, values, strict=False))
        name = original_cell(row.get(column, ""))
        if any(value.strip() for value in values[len(names) :]):
            yield InputFile(f"{path}, row {number}", "", f"row {number} of the list {SURPLUS}")
        elif not name:
            yield InputFile(f"{path}, row {number}", "", f"row {number} of the list names no photograph")
        else:
            yield InputFile(os.path.join(folder, name), original_cell(row.get("image_id", "")) or _stem(name))  # noqa: PTH118


@contextmanager
def _list_errors(path: str) -> Iterator[None]:
    """Convert errors of reading a list to DataError."""
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"{path} is not text: {error}") from error
    except PermissionError:
        raise DataError(f"{path}: {NO_PERMISSION}") from None


def _stem(path: str) -> str:
    """Remove the ending of a photograph."""
    base, ending = os.path.splitext(path)  # noqa: PTH122
    return base if ending.lower() in IMAGE_EXTENSIONS else path
