"""Label files (CSV of any common dialect, lists without header, .xlsx) and the photographs that they name."""

import csv
import io
import os
import posixpath
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

from drgrade.artefacts import read_bytes
from drgrade.data.image_reader import FURTHER_EXTENSIONS, IMAGE_EXTENSIONS
from drgrade.errors import DataError
from drgrade.files import original_cell, special_kind

MAX_BYTES = 256_000_000
"""Largest label file in bytes; 100,000 photographs take about 10 MB."""

MORE_VALUES = "more values than columns"
"""Reason of a row with surplus cells. Reasons are part of the key of a store."""

SURPLUS = f"has {MORE_VALUES}: put those that contain the separator in quotation marks"
"""The same reason, with what to do about it."""

_REPAIR = "a label file has a header and a row for each photograph"
_SEPARATORS = ",;\t|"
_MOST_UNPACKED = 200_000_000  # bytes of a spreadsheet, all parts together
_MOST_ROWS, _MOST_COLUMNS = 1_048_576, 1_000  # of a sheet: those of Excel, and more than any list has
_SEPARATOR_LINE = re.compile(r'\ufeff?"?sep=([^\w\s"]|\t)?"?[,;\t|]*\s*$', re.IGNORECASE | re.MULTILINE)
_SAMPLE, _SAMPLED_ROWS = 100_000, 100  # characters and rows from which the form of a table is detected
# Raised by openpyxl on damaged files.
_SHEET_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, SyntaxError, RuntimeError, EOFError),
    *(ArithmeticError, AssertionError, zipfile.BadZipFile, zlib.error),
)


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


Record = tuple[int, list[str]]
"""Line of a table, counted from 1, and its cells as they are in the file."""


def read_label_file(path: Path) -> LabelFile:
    """Read a CSV file or the first sheet of an .xlsx file.

    Separator (comma, semicolon, tab, bar, or that of a line ``sep=;``) and encoding (UTF-8, UTF-16, Latin-1)
    are detected. Byte order mark, blanks around headers and cells, columns without a name and empty rows are
    dropped.

    Raises:
        DataError: If the file cannot be read, is empty, is not text, or names a column twice.
    """
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        records = unwrap(_sheet(path))
    else:
        records = read_records(io.StringIO(_decode(path), newline=""), path)
    header = [_clean(name).replace("\xa0", " ") for name in next(records, (0, []))[1]]
    columns = tuple(name for name in header if name)
    if not columns:
        raise DataError(f"{path} is empty: expected a table with a header line")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {', '.join(twice)} more than once; rename one of them")
    return LabelFile(path, columns, tuple(_row(line, values, header) for line, values in records))


def read_records(file: TextIO, path: Path) -> Iterator[Record]:
    """Yield the rows of a CSV file that are not empty, the header first.

    Args:
        file: The content, opened with ``newline=""`` and seekable.
        path: The file, for messages.

    Raises:
        DataError: If it is not CSV.
    """
    sample = file.read(_SAMPLE)
    file.seek(0)
    directive = _SEPARATOR_LINE.match(sample)
    separator = (directive and directive[1]) or _separator(sample[directive.end() if directive else 0 :])
    _check_quotes(file, path, separator)
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
    try:
        yield from unwrap((reader.line_num, values) for values in reader)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} cannot be read as CSV: {error}") from error


def _check_quotes(file: TextIO, path: Path, separator: str) -> None:
    """Refuse a quotation mark that is not closed, because the rows after it would be part of one cell."""
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    start, more = 0, True
    while more:
        try:
            more = next(reader, None) is not None
        except csv.Error:
            if reader.line_num > start + 1:
                raise DataError(
                    f"{path}:{start + 1} cannot be read as CSV: a quotation mark is not closed"
                ) from None
        start = reader.line_num
    file.seek(0)


def unwrap(records: Iterable[Record]) -> Iterator[Record]:
    """Undo what spreadsheets and R do to a table.

    A line ``sep=;`` and empty rows are dropped, rows in a single cell (``"a.jpg,2"``) are split, and a header
    without the column of row numbers gets a column without a name.
    """
    records = (record for record in records if any(map(_clean, record[1])))
    first = list(islice(records, _SAMPLED_ROWS))
    if first and _SEPARATOR_LINE.match(_clean(first[0][1][0])):
        del first[0]
    if not first:
        return
    separator = _separator_inside(first)
    rows = ((line, _split(values, separator)) for line, values in chain(first, records))
    line, header = next(rows)
    yield line, ["", *header] if _are_numbered(len(header), [values for _, values in first[1:]]) else header
    yield from rows


def _are_numbered(columns: int, rows: list[list[str]]) -> bool:
    """Return True if rows are one cell longer than the header because they begin with their number."""
    if not rows or any(len(values) != columns + 1 for values in rows):
        return False
    start = 0 if rows[0][0] == "0" else 1
    counted = [values[0] for values in rows] == [str(start + i) for i in range(len(rows))]
    return counted and any(values[-1].strip("0") for values in rows)  # else decimals of "2,0"


def _split(values: list[str], separator: str) -> list[str]:
    """Split a row that is in its first cell; an empty separator splits nothing."""
    if not separator or any(map(_clean, values[1:])):
        return values
    return next(csv.reader([values[0]], delimiter=separator, skipinitialspace=True), [""])


def _separator_inside(records: list[Record]) -> str:
    """Return the separator inside the first cells, if the others are empty; "" otherwise."""
    header, *rows = (values for _, values in records)
    if any(_clean(value) for values in rows for value in values[1:]):
        return ""
    for separator in _SEPARATORS:
        if all(len(_split(values, separator)) > 1 for values in (header, *rows)):
            return separator
    return ""


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
    padded = [original_cell(_clean(value)) for value in values] + [""] * (len(header) - len(values))
    cells = {name: value for name, value in zip(header, padded, strict=False) if name}
    return LabelRow(line, cells, sum(map(bool, padded[len(header) :])))


def _clean(value: str) -> str:
    """Strip blanks, visible or not, and the ``="..."`` by which spreadsheets keep leading zeros."""
    value = value.strip().strip("\ufeff\u200b").strip()
    return value[2:-1].strip() if value.startswith('="') and value.endswith('"') else value


def _decode(path: Path) -> str:
    content = read_bytes(path, _REPAIR, MAX_BYTES)
    encoding = utf16_encoding(content)
    text = content.decode(encoding, errors="replace") if encoding else ""
    if "\0" in text or (not encoding and b"\0" in content):
        raise DataError(f"{path} is not a text file: expected CSV (a spreadsheet must be exported first)")
    if encoding:
        return text
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def utf16_encoding(start: bytes) -> str | None:
    """Return the variant of UTF-16 in which a text begins, or None."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    zeros = [not byte for byte in start[:2]]
    return "utf-16-le" if zeros == [False, True] else "utf-16-be" if zeros == [True, False] else None


def _sheet(path: Path) -> Iterator[Record]:
    """Yield the rows of the first sheet of a spreadsheet, one by one: a small file may unpack to any size."""
    content = read_bytes(path, _REPAIR, MAX_BYTES)
    remedy = f"export the sheet as {path.with_suffix('.csv').name} beside it"
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(f"{path} needs openpyxl: pip install 'drgrade[datasets]', or {remedy}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())  # reading a part ends there
        if unpacked > _MOST_UNPACKED:
            raise DataError(
                f"{path} unpacks to {unpacked:,} bytes, at most {_MOST_UNPACKED:,} are read; {remedy}"
            )
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # they may be any
        for number, row in enumerate(sheet.iter_rows(), start=1):
            if number > _MOST_ROWS or len(row) > _MOST_COLUMNS:
                most = f"{_MOST_ROWS:,} rows and {_MOST_COLUMNS:,} columns"
                raise DataError(f"{path} has more than {most}; {remedy}")
            yield number, [_cell_text(cell.value, cell.data_type) for cell in row]
    except _SHEET_ERRORS as error:
        raise DataError(f"{path} cannot be read as a spreadsheet: {error}") from error


def _cell_text(value: object, kind: str) -> str:
    """Format a cell as pandas does: whole numbers without decimals, errors as ``nan``."""
    if value is None:
        return ""
    if kind == "e":
        return "nan"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _separator(sample: str) -> str:
    """Return the separator for which most rows have as many cells as the header; a comma for one column."""
    return max(_SEPARATORS, key=lambda separator: _fit(sample, separator))


def _fit(sample: str, separator: str) -> tuple[int, int, int]:
    """Return the number of rows as long as the header, and of shorter ones, and the length of the header."""
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        header, *lengths = (len(values) for values in islice(filter(any, reader), _SAMPLED_ROWS))
    except (csv.Error, ValueError):  # no row
        return 0, 0, 0
    return (lengths.count(header), sum(1 < n < header for n in lengths), header) if header > 1 else (0, 0, 0)


class RowError(Exception):
    """A row of a label file cannot be used; the message is the reason."""


class PhotoFinder:
    """Find the files that label files name, inside one folder.

    Names are compared in Unicode NFC, because files copied from a Mac have decomposed accents (NFD). A name
    that fits no file fits the only one that differs in upper and lower case.

    Args:
        root: Folder that resulting paths are relative to. Files outside it are rejected.
        folder: Folder that names are relative to, relative to ``root``.
        extensions: Lower-case extensions of photographs; names may lack them.
        loose: Also ignore the extension if no file matches, as copies of public data sets often differ in it.
            Several loose matches are an error.
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
            if folder not in self._listings:
                folder = self._existing_folder(folder)
            listing = self._listing(folder)
            known = listing.plain.get(base)
            if known is None or not (known or Path(folder, base).is_file()):
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
            for name in self._photographs(sorted(files)):
                if not name.startswith("."):
                    yield (below / name).as_posix()

    def _photographs(self, files: list[str]) -> list[str]:
        """Return the photographs, without copies: see :data:`FURTHER_EXTENSIONS`."""
        photographs = [file for file in files if file.lower().endswith(self.extensions)]
        further = {file for file in photographs if file.lower().endswith(FURTHER_EXTENSIONS)}
        names = {self.stem(file).casefold() for file in photographs if file not in further}
        return [
            each for each in photographs if each not in further or self.stem(each).casefold() not in names
        ]

    def _with_ending(self, listing: "_Listing", folder: str, base: str, name: str) -> str:
        key = self._key(self.stem(base) if self.loose else base)
        matches = listing.by_name.get(key) or listing.without_case.get(
            unicodedata.normalize("NFC", base).casefold(), []
        )
        if len(matches) > 1:
            raise RowError(f"several files fit {name}: {', '.join(matches)}")
        # is_file(): the file system may ignore case; if it fails, the error has the reason
        if not matches and not Path(folder, base).is_file():
            raise RowError(f"the file is not there: {name}")
        return matches[0] if matches else base

    def differs_in_case(self, name: str, path: str) -> bool:
        """Return True if :meth:`find` returned this path for a name that differs in upper and lower case."""
        wanted, *names = (unicodedata.normalize("NFC", each) for each in (name, path, self.stem(path)))
        wanted = posixpath.normpath(wanted.replace("\\", "/"))
        if self.loose or any(each.endswith(wanted) for each in names):
            return False
        return any(each.casefold().endswith(wanted.casefold()) for each in names)

    def _existing_folder(self, folder: str) -> str:
        """Return a folder; if it does not exist, the only one that differs in upper and lower case."""
        missing: list[str] = []
        while folder != self._top and not Path(folder).is_dir():
            folder, name = os.path.split(folder)
            missing.insert(0, name)
        for name in missing:
            same = [
                other
                for other, is_file in _scan(folder)
                if not is_file and other.casefold() == name.casefold()
            ]
            folder = os.path.join(folder, same[0] if len(same) == 1 else name)  # noqa: PTH118
        return folder

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
            plain, by_name, without_case = dict[str, bool](), dict[str, list[str]](), dict[str, list[str]]()
            files = _scan(folder)
            photographs = set(self._photographs([file for file, _ in files]))
            for file, is_plain in files:
                stem = self.stem(file) if file in photographs else file
                if stem != file and not stem.startswith("."):
                    by_name.setdefault(self._key(stem), []).append(file)
                if not (self.loose or file.isascii()):
                    by_name.setdefault(self._key(file), []).append(file)
                for name in () if self.loose or stem == file else {stem.casefold(), file.casefold()}:
                    without_case.setdefault(unicodedata.normalize("NFC", name), []).append(file)
                plain[file] = is_plain
            inside = Path(folder).resolve().is_relative_to(self.root.resolve())
            self._listings[folder] = _Listing(inside, plain, by_name, without_case)
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
    without_case: dict[str, list[str]]  # by case-folded name with and without extension, unless loose


def _scan(folder: str) -> list[tuple[str, bool]]:
    """Return names in a folder and whether they are regular files; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []  # find() gets the reason when it accesses a file in it
