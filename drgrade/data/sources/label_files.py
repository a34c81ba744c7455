"""Label files (CSV of any common dialect, lists without header, .xlsx) and the photographs that they name."""

import csv
import io
import os
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.errors import DataError
from drgrade.files import require_regular, special_kind


@dataclass(frozen=True)
class LabelRow:
    """Row of a label file: line, counted from 1, and stripped cells by column."""

    line: int
    cells: dict[str, str]
    surplus: int = 0
    """Number of filled cells beyond the last column."""


@dataclass(frozen=True)
class LabelFile:
    """A label file.

    Attributes:
        path: The file.
        columns: Named columns, stripped.
        rows: Rows that are not empty.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[LabelRow, ...]

    def require(self, **settings: str | None) -> None:
        """Check that columns exist.

        Args:
            settings: Column by the setting that names it, as in ``image_column="image"``; None is skipped.

        Raises:
            DataError: If a column is missing.
        """
        known = (None, *self.columns)
        missing = {setting: column for setting, column in settings.items() if column not in known}
        if missing:
            overrides = " ".join(f"data.{setting}=..." for setting in missing)
            raise self._without(
                " and ".join(f'"{column}"' for column in missing.values()), f"Set {overrides}"
            )

    def column(self, *names: str) -> str:
        """Return the first of several column names that exists.

        Raises:
            DataError: If none exists.
        """
        for name in names:
            if name in self.columns:
                return name
        raise self._without(
            " or ".join(f'"{name}"' for name in names),
            "This is not the official file; data=folder reads other files with data.csv, data.image_column "
            "and data.grade_column",
        )

    def _without(self, names: str, remedy: str) -> DataError:
        columns = ", ".join(self.columns) or "(none)"
        return DataError(f"{self.path} has no column {names}; its columns are {columns}. {remedy}")


def read_label_file(path: Path) -> LabelFile:
    """Read a CSV file or the first sheet of an .xlsx file.

    Separator (comma, semicolon, tab) and encoding (UTF-8, UTF-16, Latin-1) are detected. A byte order mark,
    blanks around headers and cells, empty unnamed columns and empty rows are dropped.

    Raises:
        DataError: If the file cannot be read, is empty, is not text, or names a column twice.
    """
    lines = io.StringIO(_sheet(path) if path.suffix.lower() == ".xlsx" else _decode(path), newline="")
    reader = csv.reader(lines, delimiter=_separator(lines.getvalue()), skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = tuple(name for name in header if name)
        if not columns:
            raise DataError(f"{path} is empty: expected a CSV file with a header line")
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise DataError(f"{path} has the column {', '.join(twice)} more than once; rename one of them")
        rows = tuple(
            _row(reader.line_num, values, header) for values in reader if any(map(str.strip, values))
        )
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} cannot be read as CSV: {error}") from error
    return LabelFile(path, columns, rows)


def read_list_file(path: Path, columns: tuple[str, ...]) -> LabelFile:
    """Read a text file without header whose values are separated by blanks, as in ``a.jpg 0``.

    Args:
        path: The file.
        columns: Names of the values; missing values are empty. The first value may contain blanks.

    Raises:
        DataError: If the file cannot be read, is not text, or is empty.
    """
    lines = enumerate(_decode(path).splitlines(), start=1)
    rows = tuple(
        _row(number, line.rsplit(None, len(columns) - 1), list(columns))
        for number, line in lines
        if line.strip()
    )
    if not rows:
        raise DataError(f"{path} is empty: expected a line for each photograph ({' '.join(columns)})")
    return LabelFile(path, columns, rows)


def _row(line: int, values: list[str], header: list[str]) -> LabelRow:
    padded = [value.strip() for value in values] + [""] * (len(header) - len(values))
    cells = {name: value for name, value in zip(header, padded, strict=False) if name}
    unnamed = [value for name, value in zip(header, padded, strict=False) if not name]
    return LabelRow(line, cells, sum(map(bool, unnamed + padded[len(header) :])))


def _decode(path: Path) -> str:
    try:
        content = require_regular(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise DataError(f"{path} is not a text file: expected CSV (a spreadsheet must be exported first)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _sheet(path: Path) -> str:
    """Convert the first sheet of a spreadsheet to CSV."""
    try:
        sheet = pd.read_excel(
            require_regular(path), header=None, dtype=str, keep_default_na=False, engine="openpyxl"
        )
    except ImportError:
        raise DataError(
            f"{path} needs openpyxl: pip install 'drgrade[datasets]', or export the sheet as "
            f"{path.with_suffix('.csv').name} beside it"
        ) from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a spreadsheet: {error}") from error
    return sheet.to_csv(index=False, header=False)


def _separator(text: str) -> str:
    """Return the most frequent separator of the header line; a comma for a single column."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=header.count)


class RowError(Exception):
    """A row of a label file cannot be used; the message is the reason."""


class PhotoFinder:
    """Find the files that label files name, inside one folder.

    Names are compared in Unicode NFC, because files copied from a Mac have decomposed accents (NFD).

    Args:
        root: Folder that resulting paths are relative to. Files outside it are rejected.
        folder: Folder that names are relative to, relative to ``root``.
        extensions: Lower-case extensions of photographs; names may lack them.
        loose: Ignore upper and lower case and the extension if no file matches exactly, as copies of public
            data sets often differ in them. Several loose matches are an error.
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
        """Return the path of a photograph relative to the root, with forward slashes.

        Args:
            name: File name or path, with or without extension.

        Raises:
            RowError: If it does not exist, is not a file, is ambiguous, or lies outside the root.
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
        """Remove the extension of a photograph from a path."""
        base, ending = os.path.splitext(path)  # noqa: PTH122  (pathlib drops what may belong to the name)
        return base if ending.lower() in self.extensions else path

    def all_photographs(self) -> Iterator[str]:
        """Yield all photographs in the folder and below, relative to the root, except hidden ones."""
        for folder, subfolders, files in os.walk(self.root / self.folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = Path(os.path.relpath(folder, self.root))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(self.extensions):
                    yield (below / name).as_posix()

    def _with_ending(self, listing: "_Listing", folder: str, base: str, name: str) -> str:
        matches = listing.by_name.get(self._key(self.stem(base) if self.loose else base), [])
        if len(matches) > 1:
            raise RowError(f"several files fit {name}: {', '.join(matches)}")
        # is_file(): the file system may ignore case; if it fails, the error has the reason
        if not matches and not Path(folder, base).is_file():
            raise RowError(f"the file is not there: {name}")
        return matches[0] if matches else base

    def _check_link(self, path: Path, name: str) -> None:
        """Check that a file that is, or lies behind, a symbolic link is inside the root."""
        kind = special_kind(path)
        if kind or not path.is_file():
            raise RowError(f"{f'{kind}, not a file' if kind else 'the file is not there'}: {name}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise RowError(f"path outside the root {self.root} (through a symbolic link): {name}")

    def _listing(self, folder: str) -> "_Listing":
        """List a folder, once, because large data sets have folders of 50,000 files."""
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
        """Return the normalised form by which names are compared."""
        name = unicodedata.normalize("NFC", name)
        return unicodedata.normalize("NFC", name.casefold()) if self.loose else name


class _Listing(NamedTuple):
    """Content of a folder."""

    inside: bool  # the folder is inside the root after resolving links
    plain: dict[str, bool]  # by name: whether it is a regular file and not a link
    by_name: dict[str, list[str]]  # by normalised name without extension; non-ASCII names also with it


def _scan(folder: str) -> list[tuple[str, bool]]:
    """Return names in a folder and whether they are regular files; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []  # find() gets the reason when it accesses a file in it
