"""Overview table: mean QWK of methods, with protocols side by side and papers below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drgrade.reporting.comparison import ALPHA
from drgrade.reporting.schema import Study
from drgrade.reporting.table import Column, Group, ReportTable
from drgrade.stats.formatting import BETTER, WORSE, decimal, fraction

PAPERS = "papers"
_FEW = 4
_PUBLISHED = "published"
"""Protocol of the papers."""


@dataclass(frozen=True)
class Block:
    """Columns of one protocol, and of probes that use the same labels at each fraction and fold."""

    name: str
    protocols: Sequence[str]
    fractions: Sequence[float]


def overview_table(study: Study) -> ReportTable | None:
    """Build the overview; return None if the main table is as short."""
    columns = blocks(study)
    if len(study.methods) <= _FEW and len(columns) < 2:
        return None
    lines = _arrange(study, columns)
    papers = [row for row in study.published if row.beside in {name for name, _ in lines}]
    block_of_papers = _PUBLISHED
    if papers and all(block.name != _PUBLISHED for block in columns):
        block_of_papers = PAPERS
        columns.append(Block(PAPERS, [], sorted({row.label_fraction for row in papers})))
    places = [(block.name, share) for block in columns for share in block.fractions]
    cells = _cells(study)
    groups = []
    for (name, own_protocol), methods in lines.items():
        line = [cells.get((methods.get(block, ""), share), "") for block, share in places]
        groups.append(Group(f"{name}, {own_protocol}" if own_protocol else name, "", [line]))
        beside = [] if own_protocol else [row for row in papers if row.beside == name]
        for label in dict.fromkeys(row.label for row in beside):
            means = {
                row.label_fraction: f"{decimal(row.mean)} {study.footnotes.get(row.caveat, '')}".strip()
                for row in beside
                if row.label == label
            }
            line = [means.get(share, "") if block == block_of_papers else "" for block, share in places]
            groups.append(Group(label, "", [line], published=True))
    published = ", with published results below it" if any(row.beside for row in study.published) else ""
    caption = (
        f"Mean QWK over the folds of each method, by protocol and label fraction{published}; the tables "
        "below contain folds, intervals and other metrics"
    )
    heads = [
        Column(_head(study, block, share), over=block.name) for block in columns for share in block.fractions
    ]
    return ReportTable("overview", caption, "method", heads, groups, _remarks(study, groups), inline=True)


def _head(study: Study, block: Block, share: float) -> str:
    """Return the label fraction of a column, as the rows of its protocols name it."""
    protocols = {method.key: method.protocol for method in study.methods}
    rows = [row for row in study.rows if row.label_fraction == share]
    names = [row.share for row in rows if protocols.get(row.method) in block.protocols]
    return names[0] if names else fraction(share)


def blocks(study: Study) -> list[Block]:
    """Group the protocols into blocks of columns; probes join a protocol that uses the same labels."""
    probing = {budget.method for budget in study.budgets if not budget.trained}
    trained = {method.protocol for method in study.methods if method.key not in probing}
    columns: list[list[str]] = []
    for protocol in dict.fromkeys(method.protocol for method in study.methods):
        same = [names for names in columns if names[0] in trained and _same_labels(study, names[0], protocol)]
        if protocol in trained or not same:
            columns.append([protocol])
        else:
            same[-1].append(protocol)
    protocols = {method.key: method.protocol for method in study.methods}
    return [
        Block(
            names[0],
            names,
            sorted({row.label_fraction for row in study.rows if protocols.get(row.method) in names}),
        )
        for names in columns
    ]


def _same_labels(study: Study, one: str, other: str) -> bool:
    both = [
        (code, study.splits[other, share, draw, fold])
        for (protocol, share, draw, fold), code in study.splits.items()
        if protocol == one and (other, share, draw, fold) in study.splits
    ]
    return bool(both) and all(first == second for first, second in both)


def _arrange(study: Study, columns: Sequence[Block]) -> dict[tuple[str, str], dict[str, str]]:
    """Return the lines of the table: (name, protocol if not that of its block) to method key by block."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for method in study.methods:
        block = next(block for block in columns if method.protocol in block.protocols)
        own = "" if method.protocol == block.name or method.protocol in method.name else method.protocol
        lines.setdefault((method.name, own), {})[block.name] = method.key
    return lines


def _significance_marks(study: Study) -> Mapping[tuple[str, float], str]:
    """Return the marks of methods that differ significantly from their reference."""
    references = {method.key: method.reference for method in study.methods}
    marks = {}
    for each in study.comparisons:
        if not each.p_holm < ALPHA:  # NaN: no p-value
            continue
        for method, other, sign in ((each.first, each.second, 1), (each.second, each.first, -1)):
            if references.get(method) == other:
                ahead = sign * each.difference.value > 0
                marks[method, each.label_fraction] = BETTER if ahead else WORSE
    return marks


def _cells(study: Study) -> dict[tuple[str, float], str]:
    """Return the mean of each row, with the marks of incomplete rows and significant differences."""
    marks = _significance_marks(study)
    cells = {}
    for row in study.rows:
        place = (row.method, row.label_fraction)
        cells[place] = f"{decimal(row.mean.value)}{'' if row.complete else '*'}{marks.get(place, '')}"
    return cells


def _remarks(study: Study, groups: Sequence[Group]) -> list[str]:
    text = "".join(cell for group in groups for line in group.lines for cell in line)
    remarks = []
    if BETTER in text or WORSE in text or any(method.reference for method in study.methods):
        remarks.append(
            f"{BETTER} {WORSE}: better or worse than random initialisation of the same "
            f"encoder under the same protocol, with p (Holm) below {ALPHA}."
        )
    if "*" in text:
        remarks.append("*: some runs of this row are missing.")
    remarks += [f"{mark}: {caveat}." for caveat, mark in study.footnotes.items() if mark in text]
    return remarks
