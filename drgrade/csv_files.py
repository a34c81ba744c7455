"""CSV files whose text is not executed by spreadsheets, and which drgrade reads as they were."""

import re
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from drgrade.files import require_regular

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets split at semicolons or tabs too, depending on the country.
_START = r"(^|[;\t\r\n])"
_FORMULA = r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"  # the last four are full-width forms of =+-@
_UNSAFE = re.compile(rf"{_START}(?='*{_FORMULA})")
_MARKED = re.compile(rf"{_START}'(?='*{_FORMULA})")

_Cell = TypeVar("_Cell")


def safe_cell(value: _Cell) -> _Cell | str:
    """Put ``'`` before text that a spreadsheet would execute; other values are returned as they are.

    Example:
        >>> safe_cell("=1+1"), safe_cell("IMG-1"), safe_cell(-1)
        ("'=1+1", 'IMG-1', -1)
    """
    return _UNSAFE.sub(r"\1'", value) if isinstance(value, str) else value


def original_cell(value: _Cell) -> _Cell | str:
    """Undo :func:`safe_cell`.

    Example:
        >>> original_cell("'=1+1"), original_cell("'a")
        ('=1+1', "'a")
    """
    return _MARKED.sub(r"\1", value) if isinstance(value, str) else value


def to_csv(table: "pd.DataFrame", **options: Any) -> str:
    """Format a table as CSV with :func:`safe_cell` in the columns of text; options as for pandas."""
    safe = table.copy()
    for name in _text_columns(table):
        safe[name] = table[name].map(safe_cell, na_action="ignore")
    return str(safe.to_csv(index=False, **options))


def read_csv(file: Path | IO[str], **options: Any) -> "pd.DataFrame":
    """Read a table that :func:`to_csv` has formatted; options as for ``pandas.read_csv``.

    Raises:
        DataError: If it is no regular file.
        ValueError: If it is no such table, or has rows with more values than columns.
    """
    import pandas as pd

    if isinstance(file, Path):
        require_regular(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Otherwise the first values of rows that are all longer than the header would be an index.
            table: pd.DataFrame = pd.read_csv(file, index_col=False, **options)
    except pd.errors.ParserWarning as error:
        raise ValueError("rows have more values than columns") from error
    for name in _text_columns(table):
        table[name] = table[name].map(original_cell, na_action="ignore").astype(table[name].dtype)
    return table


def _text_columns(table: "pd.DataFrame") -> list[str]:
    return list(table.select_dtypes(exclude=["number", "bool"]).columns)
