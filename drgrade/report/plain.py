"""A table as text for the terminal."""

from collections.abc import Sequence

from drgrade.report.table import Table


def plain_table(table: Table) -> str:
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
