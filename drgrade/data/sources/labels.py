"""Reading label files: CSV as spreadsheets, archives and people really write it."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from drgrade.errors import DataError


@dataclass(frozen=True)
class LabelRow:
    """A row of a label file: its line, counted from 1, and its cells by column, without outer blanks."""

    line: int
    cells: dict[str, str]
    surplus: int = 0
    """How many filled cells stand beyond the last column."""


@dataclass(frozen=True)
class LabelFile:
    """A label file.

    Attributes:
        path: The file.
        columns: Its named columns, without outer blanks.
        rows: Its rows, without the empty ones.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[LabelRow, ...]

    def require(self, **settings: str | None) -> None:
        """Check that columns are there.

        Args:
            settings: Column by the setting that names it, as in ``image_column="image"``; None is skipped.

        Raises:
            DataError: If one is not: which columns there are, and how to name the right one.
        """
        missing = {
            setting: column for setting, column in settings.items() if column not in (None, *self.columns)
        }
        if missing:
            names = " and ".join(f'"{column}"' for column in missing.values())
            overrides = " ".join(f"data.{setting}=..." for setting in missing)
            raise DataError(
                f"{self.path} has no column {names}; its columns are {', '.join(self.columns) or '(none)'}. "
                f"Name the right one: {overrides}"
            )


def read_label_file(path: Path) -> LabelFile:
    """Read a CSV file whatever its separator (comma, semicolon, tab) and encoding (UTF-8, UTF-16, Latin-1).

    A byte order mark, blanks around headers and cells, unnamed columns without content and empty rows are
    dropped.

    Raises:
        DataError: If the file cannot be read, is empty, is not text, or names a column twice.
    """
    lines = io.StringIO(_decode(path), newline="")
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


def _row(line: int, values: list[str], header: list[str]) -> LabelRow:
    padded = [value.strip() for value in values] + [""] * (len(header) - len(values))
    cells = {name: value for name, value in zip(header, padded, strict=False) if name}
    unnamed = [value for name, value in zip(header, padded, strict=False) if not name]
    return LabelRow(line, cells, sum(map(bool, unnamed + padded[len(header) :])))


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
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


def _separator(text: str) -> str:
    """The separator that the header line uses most; a comma if it has but one column."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=header.count)
