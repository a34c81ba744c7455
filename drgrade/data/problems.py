"""The report on photographs that could not be used, or only after a conversion."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from drgrade.data.sources.base import Problem

COLUMNS = ("image_id", "path", "reason", "action")
_EXAMPLES = 10


def problem_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Problems as a table with :data:`COLUMNS`, those that cost a photograph first."""
    ordered = sorted(problems, key=lambda p: (p.action != "left out", p.image_id, p.path))
    rows = [(p.image_id, p.path, p.reason, p.action) for p in ordered]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype="string")


def read_problems(path: Path) -> pd.DataFrame:
    """Read back a table that was written with ``to_csv(index=False)``."""
    return pd.read_csv(path, dtype="string", keep_default_na=False)


def summary(problems: pd.DataFrame, report: Path) -> str:
    """Say how many photographs have which problem, with examples and where the whole list is.

    Args:
        problems: Table with :data:`COLUMNS`.
        report: File that holds the table.

    Returns:
        A few lines of text; empty without problems.
    """
    lines: list[str] = []
    for action in ("left out", "converted"):
        concerned = problems[problems["action"] == action]
        if len(concerned):
            lines.append(f"{len(concerned)} {'row' if len(concerned) == 1 else 'rows'} {action}:")
            lines += _by_reason(concerned)
    return "\n".join([*lines, f"all of them: {report}"]) if lines else ""


def examples(problems: pd.DataFrame, number: int = 3) -> str:
    """The first few problems on one line."""
    named = [f"{_name(row.image_id, row.path)}: {row.reason}" for row in problems.head(number).itertuples()]
    more = len(problems) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def _by_reason(problems: pd.DataFrame) -> list[str]:
    """A line for each kind of reason, the most frequent first, sharing the examples among them."""
    kinds = problems["reason"].map(_kind)
    counts = kinds.value_counts()
    each = max(2, _EXAMPLES // len(counts))
    lines = []
    for kind, count in counts.items():
        of_kind = problems[kinds == kind]
        names = [_name(row.image_id, row.path) for row in of_kind.head(each).itertuples()]
        reason = of_kind["reason"].iloc[0] if count == 1 else kind
        lines.append(f"  {count} x {reason}: {_listed(names, int(count))}")
    return lines


def _kind(reason: str) -> str:
    """The part of a reason that photographs share: what stands before a colon or bracket."""
    return reason.split(":")[0].split(" (")[0]


def _name(image_id: object, path: object) -> str:
    return f"{image_id} ({path})" if image_id and str(path) != str(image_id) else str(path)


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")
