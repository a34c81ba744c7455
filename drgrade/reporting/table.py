"""A table of a report as text cells, from which the page, Markdown, LaTeX and the terminal make theirs.

A figure that there is not is a dash, and the table says why below itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from drgrade.stats import formatting as words


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: Its heading.
        number: Whether numbers stand in it, to the right.
        strong: Whether it is what counts.
        over: A heading above this one, which neighbours may share.
    """

    name: str
    number: bool = True
    strong: bool = False
    over: str = ""

    @property
    def title(self) -> str:
        """Both headings, where there is room for one line only."""
        return f"{self.over}: {self.name}" if self.over else self.name


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
class ReportTable:
    """A table.

    Attributes:
        name: Short, for files and labels.
        caption: What it shows.
        group_column: Heading of the groups' names.
        columns: The others.
        groups: In the order in which they are shown.
        remarks: What stands below it: why there are dashes.
        inline: Whether each group is one line, in front of which its name stands.
    """

    name: str
    caption: str
    group_column: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    remarks: Sequence[str]
    inline: bool = False

    @property
    def lines(self) -> int:
        """How many lines it has."""
        return sum(len(group.lines) for group in self.groups)

    @property
    def over(self) -> list[tuple[str, int]]:
        """The upper headings, each with the number of columns below it; empty if there are none."""
        if not any(column.over for column in self.columns):
            return []
        return [(name, len(list(below))) for name, below in groupby(column.over for column in self.columns)]


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


def plain_table(table: ReportTable) -> str:
    """Write a table in columns of one width.

    Args:
        table: Any table of the report.

    Returns:
        Lines, the last one without a line break.
    """
    head = [table.group_column, *(column.title for column in table.columns)]
    right = [False, *(column.number for column in table.columns)]
    lines = [
        [f"{group.name} (published)" if group.published else group.name, *line]
        for group in table.groups
        for line in group.lines
    ]
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    ruled = [head, ["-" * width for width in widths], *lines]
    return "\n".join([*(_line(line, widths, right) for line in ruled), *table.remarks])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if to_the_right else cell.ljust(width)
        for cell, width, to_the_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(padded).rstrip()
