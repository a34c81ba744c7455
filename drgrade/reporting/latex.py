"""The tables of a report for LaTeX, with booktabs."""

import textwrap

from drgrade.reporting.schema import Study
from drgrade.reporting.table import Group, ReportTable
from drgrade.reporting.tables import all_tables
from drgrade.stats import formatting as words

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",  # after \\ or \midrule a bare one begins an argument, and TeX does not end
    "]": "{]}",
    "*": "{*}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    words.MINUS: "$-$",
    words.BETTER: r"$\uparrow$",
    words.WORSE: r"$\downarrow$",
    words.DASH: "--",
}
_PAGE, _CHARACTER, _GAP = 455.0, 3.7, 6.0
"""Points: between margins of 25 mm on A4, of a character in ``footnotesize``, between columns."""

_NAME = 110
"""Characters of a name that fit in a line."""

_ON_A_PAGE = 50
"""Lines of a table that fit on a page; a longer one is a ``longtable``."""

_MANY = 8
"""More columns are set still smaller."""

_HEAD = """\
% {title}
% Tables of a report of drgrade.
% In the preamble: \\usepackage{{booktabs,longtable}} and \\usepackage[T1]{{fontenc}}.
% Names in other scripts than the Latin one need XeLaTeX or LuaLaTeX, and a font that has them.
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


def _table(table: ReportTable) -> str:
    """A table that fits a page of A4: small; over several pages if it is long."""
    apart = _is_wide(table)
    columns = ("" if apart else "l") + "".join("r" if column.number else "l" for column in table.columns)
    head = [column.name for column in table.columns]
    titles = [
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    top = [
        r"\toprule",
        *_over(table, apart),
        _line([escape(cell) for cell in (head if apart else [table.group_column, *head])]),
        r"\midrule",
    ]
    rows = _rows(table, apart)
    below = [rf"\par\smallskip\raggedright {escape(remark)}\par" for remark in _remarks(table)]
    if sum(len(group.lines) + apart for group in table.groups) > _ON_A_PAGE:
        first = [*titles[:-1], titles[-1] + r" \\", *top]
        parts = [r"\begingroup", *_small(table), rf"\begin{{longtable}}{{@{{}}{columns}@{{}}}}", *first]
        parts += [r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endfoot", *rows]
        return "\n".join([*parts, r"\end{longtable}", *below, r"\endgroup", ""])
    parts = [r"\begin{table}", r"\centering", *titles, *_small(table)]
    parts += [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", *top, *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*parts, *below, r"\end{table}", ""])


def _over(table: ReportTable, apart: bool) -> list[str]:
    """The line of upper headings, with a rule below each."""
    cells, rules, column = [] if apart else [""], [], 1 if apart else 2
    for name, count in table.over:
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{column}-{column + count - 1}}}")
        column += count
    return [_line(cells), "".join(rules)] if table.over else []


def _small(table: ReportTable) -> list[str]:
    size = r"\scriptsize" if len(table.columns) > _MANY else r"\footnotesize"
    return [size, r"\setlength{\tabcolsep}{3pt}"]


def _is_wide(table: ReportTable) -> bool:
    """Whether names of groups need lines of their own: the page is too narrow for a column of them."""
    lines = [
        [column.name for column in table.columns],
        *(line for group in table.groups for line in group.lines),
    ]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    names = max((len(group.name) + 12 * group.published for group in table.groups), default=0)
    return _CHARACTER * (names + sum(widths)) + _GAP * len(widths) > _PAGE


def _remarks(table: ReportTable) -> list[str]:
    """What stands below it, in one paragraph; what is said of several groups is said once."""
    groups: dict[str, list[str]] = {}
    for group in table.groups:
        if group.remark:
            groups.setdefault(group.remark, []).append(group.name)
    said = [*table.remarks, *(f"{'; '.join(names)}: {remark}." for remark, names in groups.items())]
    return [" ".join(said)] if said else []


def _rows(table: ReportTable, apart: bool) -> list[str]:
    rows: list[str] = []
    for number, group in enumerate(table.groups):
        if number:
            first_published = group.published and not table.groups[number - 1].published
            rows.append(r"\midrule" if first_published else r"\addlinespace")
        rows += _group(table, group, apart)
    return rows


def _group(table: ReportTable, group: Group, apart: bool) -> list[str]:
    """Lines of a group; its name stands in the first one, or above them."""
    parts = textwrap.wrap(group.name, _NAME) or [""] if apart else [group.name]
    names = [rf"\emph{{{escape(part)}}}" if group.published else escape(part) for part in parts]
    if group.published:
        names[-1] += " (published)"
    whole = rf"\multicolumn{{{len(table.columns)}}}{{@{{}}l@{{}}}}"
    lines = [rf"{whole}{{{name}}} \\*" for name in names] if apart else []
    for number, line in enumerate(group.lines):
        cells = [
            rf"\textbf{{{escape(cell)}}}" if column.strong and not group.published else escape(cell)
            for cell, column in zip(line, table.columns, strict=True)
        ]
        lines.append(_line(cells if apart else [names[0] if number == 0 else "", *cells]))
    return lines


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
