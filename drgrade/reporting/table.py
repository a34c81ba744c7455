"""Tables of text cells, which the writers turn into HTML, Markdown, LaTeX and plain text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tabulate import tabulate

from drgrade.reporting.schema import ResultRow, Study
from drgrade.stats.formatting import DASH


@dataclass(frozen=True)
class Column:
    """A column of a table; ``over`` is a heading above its name that neighbouring columns may share."""

    name: str
    number: bool = True
    strong: bool = False
    over: str = ""

    @property
    def title(self) -> str:
        """Both headings in one line."""
        return f"{self.over}: {self.name}" if self.over else self.name


@dataclass(frozen=True)
class Group:
    """Consecutive lines of a table, such as those of one method or one paper."""

    name: str
    remark: str
    lines: Sequence[Sequence[str]]
    published: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A table of text cells.

    Attributes:
        name: Short name, used in file names and labels.
        caption: Caption without a final full stop.
        group_column: Heading of the column of group names.
        columns: The other columns.
        groups: In display order.
        remarks: Sentences below the table, such as the reasons for missing values.
        inline: Every group is a single line, with its name in front.
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
        """Number of lines."""
        return sum(len(group.lines) for group in self.groups)

    @property
    def over(self) -> list[tuple[str, int]]:
        """Upper headings with the number of columns below each; empty if there are none."""
        if not any(column.over for column in self.columns):
            return []
        return [(name, len(list(below))) for name, below in groupby(column.over for column in self.columns)]

    @property
    def all_remarks(self) -> list[str]:
        """Remarks on the table and on its groups; equal remarks on several groups are merged."""
        names: dict[str, list[str]] = {}
        for group in self.groups:
            if group.remark:
                names.setdefault(group.remark, []).append(group.name)
        return [*self.remarks, *(f"{'; '.join(of)}: {remark}." for remark, of in names.items())]

    def text(
        self, fmt: str, escape: Callable[[str], str] = str, strong: str = "{}", paper: str = "{}"
    ) -> str:
        """Write headings and lines in a format of tabulate: ``simple`` for a terminal, ``pipe`` for Markdown.

        Args:
            fmt: Format of tabulate.
            escape: Applied to every cell.
            strong: Template for cells of strong columns.
            paper: Template for the names of published groups.
        """
        lines = []
        for group in self.groups:
            name = escape(group.name)
            if group.published:
                name = f"{paper.format(name)} (published)"
            for line in group.lines:
                cells = [
                    strong.format(escape(cell)) if column.strong and not group.published else escape(cell)
                    for cell, column in zip(line, self.columns, strict=True)
                ]
                lines.append([name, *cells])
        heads = [escape(self.group_column), *(escape(column.title) for column in self.columns)]
        sides = ["left", *("right" if column.number else "left" for column in self.columns)]
        return tabulate(lines, heads, tablefmt=fmt, colalign=sides, disable_numparse=True)

    def plain(self) -> str:
        """Write the table with its remarks for a terminal."""
        return "\n".join([self.text("simple"), *self.remarks])


@dataclass
class Dashes:
    """Reasons for missing values of a table."""

    reasons: list[str] = field(default_factory=list)

    def cell(self, text: str, why: str) -> str:
        """Return ``text``; if it is a dash, record the reason ``why``."""
        if text == DASH:
            self.note(why)
        return text

    def note(self, why: str) -> None:
        """Record a reason once."""
        if why not in self.reasons:
            self.reasons.append(why)

    @property
    def remarks(self) -> list[str]:
        """One sentence with all reasons; empty if no value is missing."""
        return [f"{DASH}: {'; '.join(self.reasons)}."] if self.reasons else []


def table_by_method(
    study: Study,
    name: str,
    caption: str,
    columns: Sequence[Column],
    lines: Callable[[ResultRow, Dashes], list[list[str]]],
) -> ReportTable:
    """Build a table with the lines of each row of the main table, after a column with the label fraction."""
    dashes = Dashes()
    groups = []
    for method in study.methods:
        rows = study.rows_of(method.key)
        cells = [[row.share, *line] for row in rows for line in lines(row, dashes)]
        groups.append(Group(method.label, "", cells))
    return ReportTable(name, caption, "method", [Column("labels"), *columns], groups, dashes.remarks)
