"""A table of a report as text cells, from which the page, Markdown, LaTeX and the terminal make theirs.

A figure that there is not is a dash, and the table says why below itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from drgrade.report import words


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether numbers stand in it (to the right), and whether it is what counts."""

    name: str
    number: bool = True
    strong: bool = False


@dataclass(frozen=True)
class Group:
    """Lines that belong together, as those of one method.

    Attributes:
        name: Their heading.
        remark: Said of all of them; empty for nothing.
        lines: Cells, one for each column.
        published: Whether the figures are a paper's, not computed here.
    """

    name: str
    remark: str
    lines: Sequence[Sequence[str]]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Short, for files and labels.
        caption: What it shows.
        group_column: Heading of the groups' names.
        columns: The others.
        groups: In the order in which they are shown.
        remarks: What stands below it: why there are dashes.
    """

    name: str
    caption: str
    group_column: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    remarks: Sequence[str]


@dataclass
class Dashes:
    """Collects why figures are missing while a table is made."""

    reasons: list[str] = field(default_factory=list)

    def cell(self, text: str, why: str) -> str:
        """Hand a cell on; remember why, if it is a dash."""
        if text == words.DASH:
            self.note(why)
        return text

    def note(self, why: str) -> None:
        """Remember why a figure is missing."""
        if why not in self.reasons:
            self.reasons.append(why)

    @property
    def remarks(self) -> list[str]:
        """What stands below the table."""
        return [f"{words.DASH}: {'; '.join(self.reasons)}."] if self.reasons else []
