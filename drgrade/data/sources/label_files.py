"""Reading of label files: CSV of any common dialect, lists without header, and .xlsx."""

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from drgrade.errors import DataError


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
        missing = {
            setting: column for setting, column in settings.items() if column not in (None, *self.columns)
        }
        if missing:
            names = " and ".join(f'"{column}"' for column in missing.values())
            overrides = " ".join(f"data.{setting}=..." for setting in missing)
            raise DataError(
                f"{self.path} has no column {names}; its columns are {', '.join(self.columns) or '(none)'}. "
                f"Set {overrides}"
            )

    def column(self, *names: str) -> str:
        """Return the first of several column names that exists.

        Raises:
            DataError: If none exists.
        """
        for name in names:
            if name in self.columns:
                return name
        wanted = " or ".join(f'"{name}"' for name in names)
        raise DataError(
            f"{self.path} has no column {wanted}; its columns are {', '.join(self.columns) or '(none)'}. "
            "This is not the official file; data=folder reads other files with data.csv, data.image_column "
            "and "
            "data.grade_column"
        )


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


def _sheet(path: Path) -> str:
    """Convert the first sheet of a spreadsheet to CSV."""
    import pandas as pd

    try:
        sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
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
