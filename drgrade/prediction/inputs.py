"""The photographs that are to be graded: files, folders, lists. One at a time; no list is held in memory."""

import csv
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from drgrade.data.image_reader import IMAGE_EXTENSIONS, NO_PERMISSION
from drgrade.errors import ConfigError, DataError

STDIN = "-"
"""Input that stands for paths on standard input."""

PATH_COLUMNS = ("path", "image", "image_path", "file", "filename")
"""Columns of a .csv list that may hold the paths; the first of these that it has."""

_LISTS = (".txt", ".csv")


@dataclass(frozen=True)
class Item:
    """A row to be.

    Attributes:
        path: As the user can open it from where they are.
        image_id: The path below the input's folder, without its ending; or what a list's ``image_id`` says.
        problem: Why there is nothing to open; "" if there may be.
    """

    path: str
    image_id: str
    problem: str = ""


@dataclass(frozen=True)
class State:
    """What tells whether a file has changed.

    Attributes:
        size: In bytes; -1 if there is no such file.
        modified: In nanoseconds since 1970; -1 likewise.
        opens: False for what must not be opened: a pipe would be waited for, a device has no end.
    """

    size: int = -1
    modified: int = -1
    opens: bool = True


def state_of(path: str) -> State:
    """Look at a file without opening it.

    Args:
        path: Of a file, or of what may be none.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  (what a list calls a path may be none that pathlib takes)
    except (OSError, ValueError):  # reading it says why
        return State()
    opens = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return State(found.st_size, found.st_mtime_ns, opens)


class Inputs:
    """Photographs as the command line names them; looked for again each time that they are gone through.

    A folder is gone through with all below it, names in their order. Hidden files and folders are left out,
    and so are folders behind symbolic links. In a list, paths are relative to its folder.
    """

    def __init__(self, given: Sequence[str], leave_out: Path | None = None) -> None:
        """Look at what is given.

        Args:
            given: Files, folders, lists (.txt with a path per line, .csv with a column of them), ``-`` for
                paths on standard input, one per line.
            leave_out: A folder that is not gone through: that of the results.

        Raises:
            ConfigError: If nothing is given, something is not there, or standard input is not alone.
            DataError: If a list cannot be read.
        """
        if not given:
            raise ConfigError("no photographs are given: input=FILE_OR_FOLDER, or a list as .txt or .csv")
        if STDIN in given and len(given) > 1:
            raise ConfigError("input=- reads the paths from standard input: name nothing else beside it")
        for each in given:
            if each != STDIN and not Path(each).exists():
                raise ConfigError(f"input={each} is not there")
        self.given = tuple(given)
        self._leave_out = None if leave_out is None else leave_out.resolve()

    @property
    def from_stdin(self) -> bool:
        """Whether the paths come from standard input, and can be gone through once only."""
        return self.given == (STDIN,)

    @cached_property
    def total(self) -> int | None:
        """How many there are; None if nobody can know yet."""
        return None if self.from_stdin else sum(1 for _ in self)

    def __iter__(self) -> Iterator[Item]:
        for each in self.given:
            if each == STDIN:
                yield from _lines(sys.stdin.buffer, "")
            elif Path(each).is_dir():
                yield from self._folder(each, "")
            elif each.lower().endswith(_LISTS):
                yield from _list(each)
            else:
                yield Item(each, _stem(os.path.basename(each)))  # noqa: PTH119

    def _folder(self, top: str, below: str) -> Iterator[Item]:
        """Photographs of a folder and below it.

        Args:
            top: The input.
            below: Path of the folder below it; "" for itself.
        """
        folder = os.path.join(top, below) if below else top  # noqa: PTH118  (keeps what the user wrote)
        try:
            with os.scandir(folder) as entries:
                found = sorted((each.name, each.is_dir(follow_symlinks=False)) for each in entries)
        except PermissionError:
            yield Item(folder, below, NO_PERMISSION.replace("file", "folder"))
            return
        for name, is_folder in found:
            if name.startswith("."):
                continue
            inner = os.path.join(below, name)  # noqa: PTH118
            path = os.path.join(top, inner)  # noqa: PTH118
            if name.lower().endswith(IMAGE_EXTENSIONS):
                yield Item(path, _stem(inner))
            if is_folder and Path(path).resolve() != self._leave_out:
                yield from self._folder(top, inner)


def _list(path: str) -> Iterator[Item]:
    """Items of a list."""
    folder = os.path.dirname(path)  # noqa: PTH120
    with _readable(path):
        if path.lower().endswith(".csv"):
            # A path may be any bytes; they are kept as Python keeps them in file names.
            with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from _rows(file, path, folder)
        else:
            with Path(path).open("rb") as lines:
                yield from _lines(lines, folder)


def _lines(lines: IO[bytes], folder: str) -> Iterator[Item]:
    for number, line in enumerate(lines):
        text = os.fsdecode(line.rstrip(b"\r\n"))
        if number == 0:
            text = text.removeprefix("\ufeff")  # some editors begin a file so
        if text:
            yield Item(os.path.join(folder, text), _stem(text))  # noqa: PTH118


def _rows(file: IO[str], path: str, folder: str) -> Iterator[Item]:
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    column = next((name for name in PATH_COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"{path} has no column {' or '.join(PATH_COLUMNS[:2])}; "
            f"its columns are: {', '.join(names) or 'none'}"
        )
    for number, row in enumerate(csv.DictReader(file, names, restval="", delimiter=delimiter), start=1):
        name = row[column]
        if not name:
            yield Item(f"{path}, row {number}", "", f"row {number} of the list names no photograph")
        else:
            yield Item(os.path.join(folder, name), row.get("image_id") or _stem(name))  # noqa: PTH118


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Say what is wrong with a list."""
    try:
        yield
    except csv.Error as error:
        raise DataError(f"{path} is no table that can be read ({error})") from error
    except PermissionError:
        raise DataError(f"{path}: {NO_PERMISSION}") from None


def _stem(path: str) -> str:
    """A path without its ending, if that is one of a photograph."""
    base, ending = os.path.splitext(path)  # noqa: PTH122
    return base if ending.lower() in IMAGE_EXTENSIONS else path
