"""Report on photographs that were left out or converted."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from drgrade.data.sources.base import Problem

PROBLEM_COLUMNS = ("image_id", "path", "reason", "action")
_EXAMPLES = 10


def problem_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Return problems as a table with :data:`PROBLEM_COLUMNS`, those that excluded a photograph first."""
    ordered = sorted(problems, key=lambda p: (p.action != "left out", p.image_id, p.path))
    rows = [(p.image_id, p.path, p.reason, p.action) for p in ordered]
    return pd.DataFrame(rows, columns=list(PROBLEM_COLUMNS), dtype="string")


def read_problems(path: Path) -> pd.DataFrame:
    """Read a table of problems from CSV."""
    return pd.read_csv(path, dtype="string", keep_default_na=False)


def problem_summary(problems: pd.DataFrame, report: Path) -> str:
    """Summarise problems by reason, with counts and examples.

    Args:
        problems: Table with :data:`PROBLEM_COLUMNS`.
        report: File of the table, named in the last line.

    Returns:
        A few lines of text; empty without problems.
    """
    lines: list[str] = []
    for action in ("left out", "converted"):
        rows = problems[problems["action"] == action]
        if len(rows):
            lines.append(f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} {action}:")
            lines += _lines_by_reason(rows)
    return "\n".join([*lines, f"all problems: {report}"]) if lines else ""


def short_list(problems: pd.DataFrame, number: int = 3) -> str:
    """Return the first few problems on one line."""
    shown = [f"{_name(row.image_id, row.path)}: {row.reason}" for row in problems.head(number).itertuples()]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _lines_by_reason(problems: pd.DataFrame) -> list[str]:
    # Photographs share what stands before a colon or bracket of a reason.
    kinds = problems["reason"].str.split(":").str[0].str.split(" (", regex=False).str[0]
    counts = kinds.value_counts()
    lines = []
    for kind, count in counts.items():
        same = problems[kinds == kind]
        shown = same.head(max(2, _EXAMPLES // len(counts)))
        names = ", ".join(_name(row.image_id, row.path) for row in shown.itertuples())
        reason = same["reason"].iloc[0] if count == 1 else kind
        lines.append(f"  {count} x {reason}: {names}{', ...' if int(count) > len(shown) else ''}")
    return lines


def _name(image_id: object, path: object) -> str:
    return f"{image_id} ({path})" if image_id and str(path) != str(image_id) else str(path)
