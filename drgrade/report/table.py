"""A table of a report as text cells, from which the page, Markdown, LaTeX and the terminal make theirs.

A figure that there is not is a dash, and the table says why below itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from drgrade.report import words


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
class Table:
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
