"""The tables of a report for LaTeX, with booktabs."""

from drgrade.report import words
from drgrade.report.contents import Study
from drgrade.report.table import Group, Table
from drgrade.report.tables import all_tables

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    words.MINUS: "$-$",
    words.DASH: "--",
}
_HEAD = """\
% {title}
% Tables of a report of drgrade. In the preamble: \\usepackage{{booktabs}} and \\usepackage[T1]{{fontenc}}.
% Figures lie beside this file, as in \\includegraphics{{figures/curve.pdf}}.
"""


def render_latex(study: Study) -> str:
    """Write all tables, each a ``table`` with caption and label ``tab:NAME``.

    Args:
        study: What they say.
    """
    head = _HEAD.format(title=" ".join(study.title.split()))
    return "\n".join([head, *(_table(table) for table in all_tables(study))])


def escape(text: str) -> str:
    """Escape what LaTeX would take for a command; per cent signs keep to their number."""
    plain = "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
    return plain.replace(r" \%", r"\,\%")


def _table(table: Table) -> str:
    columns = "l" + "".join("r" if column.number else "l" for column in table.columns)
    head = [table.group_column, *(column.name for column in table.columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        _line([escape(cell) for cell in head]),
        r"\midrule",
    ]
    for number, group in enumerate(table.groups):
        lines += (
            [r"\midrule"]
            if number and group.published and not table.groups[number - 1].published
            else ([r"\addlinespace"] if number else [])
        )
        lines += _group(table, group)
    lines += [r"\bottomrule", r"\end{tabular}"]
    remarks = [f"{group.name}: {group.remark}." for group in table.groups if group.remark]
    lines += [rf"\par\smallskip\footnotesize {escape(remark)}" for remark in [*table.remarks, *remarks]]
    return "\n".join([*lines, r"\end{table}", ""])


def _group(table: Table, group: Group) -> list[str]:
    """Lines of a group; its name stands in the first one."""
    name = rf"\emph{{{escape(group.name)}}} (published)" if group.published else escape(group.name)
    lines = []
    for number, line in enumerate(group.lines):
        cells = [
            rf"\textbf{{{escape(cell)}}}" if column.strong and not group.published else escape(cell)
            for cell, column in zip(line, table.columns, strict=True)
        ]
        lines.append(_line([name if number == 0 else "", *cells]))
    return lines


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
