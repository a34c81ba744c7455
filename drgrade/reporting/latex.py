"""LaTeX tables of a report, with booktabs and longtable."""

import re

import pandas as pd

from drgrade.reporting.schema import Study
from drgrade.reporting.table import ReportTable
from drgrade.reporting.tables import all_tables
from drgrade.stats.formatting import BETTER, DASH, MINUS, WORSE

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",  # a bare bracket after \\ or \midrule starts an optional argument
    "]": "{]}",
    "*": "{*}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    MINUS: "$-$",
    BETTER: r"$\uparrow$",
    WORSE: r"$\downarrow$",
    DASH: "--",
}
_PAGE, _CHARACTER, _GAP = 455.0, 3.7, 6.0
"""Points: text width of A4 with 25 mm margins, a character in ``footnotesize``, space between columns."""

_NARROWEST = 60.0
"""Least width in points of a wrapped column of group names."""

_LINES_PER_PAGE = 50
_MANY_COLUMNS = 8

_HEAD = """\
% {title}
% Tables of a report of drgrade.
% In the preamble: \\usepackage{{booktabs,longtable}} and \\usepackage[T1]{{fontenc}}.
% Names in non-Latin scripts need XeLaTeX or LuaLaTeX and a suitable font.
% Figures are in the folder figures: \\includegraphics{{figures/curve.pdf}}.
"""


def render_latex(study: Study) -> str:
    """Write all tables of a study, each with a caption and the label ``tab:NAME``."""
    head = _HEAD.format(title=" ".join(study.title.split()))
    return "\n".join([head, *(_table(table) for table in all_tables(study))])


def escape(text: str) -> str:
    """Escape special characters of LaTeX, and keep per cent signs on the line of their number."""
    plain = "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
    return plain.replace(r" \%", r"\,\%")


def _table(table: ReportTable) -> str:
    """Write one table in small type: a ``longtable`` if it is longer than a page, else a ``table``."""
    long = table.lines > _LINES_PER_PAGE
    size = r"\scriptsize" if len(table.columns) > _MANY_COLUMNS else r"\footnotesize"
    small = f"{size}\n\\setlength{{\\tabcolsep}}{{3pt}}\n"
    sides = "".join("r" if column.number else "l" for column in table.columns)
    text = _frame(table).to_latex(
        index=False,
        longtable=long,
        caption=escape(table.caption),
        label=f"tab:{table.name}",
        column_format=f"@{{}}{_name_column(table)}{sides}@{{}}",
        multicolumn_format="c",
    )
    text = re.sub(r"(\\toprule\n.*\n)", lambda top: top[1] + _rules(table), text)
    remarks = escape(" ".join(table.all_remarks))
    below = f"\\par\\smallskip\\raggedright {remarks}\\par\n" if remarks else ""
    if long:
        return f"\\begingroup\n{small}{text}{below}\\endgroup\n"
    text = text.replace("\\begin{table}\n", f"\\begin{{table}}\n\\centering\n{small}", 1)
    return text.replace("\\end{table}\n", f"{below}\\end{{table}}\n")


def _rules(table: ReportTable) -> str:
    """Return rules below the upper headings."""
    rules, column = "", 2
    for name, count in table.over:
        rules += rf"\cmidrule(lr){{{column}-{column + count - 1}}}" if name else ""
        column += count
    return f"{rules}\n" if rules else ""


def _frame(table: ReportTable) -> pd.DataFrame:
    """Return escaped cells, with group names in first lines and space or a rule between groups."""
    lines = []
    for number, group in enumerate(table.groups):
        name = rf"\emph{{{escape(group.name)}}} (published)" if group.published else escape(group.name)
        first_paper = group.published and not table.groups[number - 1].published
        apart = "" if number == 0 else r"\midrule " if first_paper else r"\addlinespace "
        for place, line in enumerate(group.lines):
            cells = [
                rf"\textbf{{{escape(cell)}}}" if column.strong and not group.published else escape(cell)
                for cell, column in zip(line, table.columns, strict=True)
            ]
            lines.append([apart + name if place == 0 else "", *cells])
    names = [table.group_column, *(column.name for column in table.columns)]
    heads = pd.Index([escape(name) for name in names])
    if table.over:
        over = ["", *(escape(column.over) for column in table.columns)]
        heads = pd.MultiIndex.from_arrays([over, heads])
    return pd.DataFrame(lines, columns=heads)


def _name_column(table: ReportTable) -> str:
    """Return the format of the column of group names: wrapped where the table is wider than the page."""
    lines = [[column.name for column in table.columns]]
    lines += [list(line) for group in table.groups for line in group.lines]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    free = _PAGE - _CHARACTER * sum(widths) - _GAP * len(widths)
    longest = max((len(group.name) + 12 * group.published for group in table.groups), default=0)
    return "l" if _CHARACTER * longest <= free else f"p{{{max(free, _NARROWEST):.0f}pt}}"
