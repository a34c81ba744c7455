"""Overview table: mean QWK of methods, with protocols side by side and papers below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drgrade.reporting.schema import Method, PublishedRow, ResultRow, Study
from drgrade.reporting.table import Column, Group, ReportTable
from drgrade.stats.formatting import BETTER, WORSE, decimal, fraction

PAPERS = "papers"
_FEW = 4
_P = 0.05
_PUBLISHED = "published"
"""Protocol of the papers."""


@dataclass(frozen=True)
class Block:
    """Columns of one protocol.

    Attributes:
        name: Name of the protocol.
        protocols: This protocol, and probes that use the same labels at each fraction and fold.
        fractions: Label fractions, ascending.
    """

    name: str
    protocols: Sequence[str]
    fractions: Sequence[float]


def overview_table(study: Study) -> ReportTable | None:
    """Build the overview; return None if the main table is as short."""
    found = blocks(study)
    if len(study.methods) <= _FEW and len(found) < 2:
        return None
    placed = _arrange(study, found)
    papers = [row for row in study.published if row.beside in {name for name, _ in placed}]
    columns = [Column(fraction(share), over=block.name) for block in found for share in block.fractions]
    own_columns = bool(papers) and all(block.name != _PUBLISHED for block in found)
    shares = sorted({row.label_fraction for row in papers}) if own_columns else []
    columns += [Column(fraction(share), over=PAPERS) for share in shares]
    better = _significance_marks(study)
    groups = []
    for (name, apart), methods in placed.items():
        lines = [_line(study, methods, found, better) + [""] * len(shares)]
        groups.append(Group(f"{name}, {apart}" if apart else name, "", lines))
        if not apart:
            groups += _papers([row for row in papers if row.beside == name], found, shares)
    return ReportTable(
        "overview", _caption(study), "method", columns, groups, _remarks(study, groups), inline=True
    )


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
    return [_block(study, names) for names in columns]


def _block(study: Study, names: Sequence[str]) -> Block:
    keys = {method.key for method in study.methods if method.protocol in names}
    fractions = sorted({row.label_fraction for row in study.rows if row.method in keys})
    return Block(names[0], names, fractions)


def _same_labels(study: Study, one: str, other: str) -> bool:
    first, second = _splits(study, one), _splits(study, other)
    common = first.keys() & second.keys()
    return bool(common) and all(first[cell] == second[cell] for cell in common)


def _splits(study: Study, protocol: str) -> dict[tuple[float, str], str]:
    return {(share, fold): code for (name, share, fold), code in study.splits.items() if name == protocol}


def _arrange(study: Study, found: Sequence[Block]) -> dict[tuple[str, str], dict[str, Method]]:
    """Return the lines of the table: (name, protocol if it is not that of its block) to method by block."""
    placed: dict[tuple[str, str], dict[str, Method]] = {}
    for method in study.methods:
        block = next(block for block in found if method.protocol in block.protocols)
        own = "" if method.protocol == block.name or method.protocol in method.name else method.protocol
        placed.setdefault((method.name, own), {})[block.name] = method
    return placed


def _significance_marks(study: Study) -> Mapping[tuple[str, float], str]:
    """Return the marks of methods that differ significantly from their reference."""
    references = {method.key: method.reference for method in study.methods}
    marks = {}
    for each in study.comparisons:
        if each.p_holm >= _P:
            continue
        for method, other, sign in ((each.first, each.second, 1), (each.second, each.first, -1)):
            if references.get(method) == other:
                ahead = sign * each.difference.value > 0
                marks[method, each.label_fraction] = BETTER if ahead else WORSE
    return marks


def _line(
    study: Study,
    methods: Mapping[str, Method],
    found: Sequence[Block],
    better: Mapping[tuple[str, float], str],
) -> list[str]:
    rows = {(row.method, row.label_fraction): row for row in study.rows}
    cells = []
    for block in found:
        key = methods[block.name].key if block.name in methods else ""
        cells += [_cell(rows.get((key, share)), better.get((key, share), "")) for share in block.fractions]
    return cells


def _cell(row: ResultRow | None, mark: str) -> str:
    if row is None:
        return ""
    return f"{decimal(row.mean.value)}{'' if row.complete else '*'}{mark}"


def _papers(rows: Sequence[PublishedRow], found: Sequence[Block], shares: Sequence[float]) -> list[Group]:
    """Return one line for each paper, in the columns of the published protocol or in its own columns."""
    groups = []
    for label in dict.fromkeys(row.label for row in rows):
        means = {row.label_fraction: decimal(row.mean) for row in rows if row.label == label}
        cells = [
            means.get(share, "") if block.name == _PUBLISHED else ""
            for block in found
            for share in block.fractions
        ]
        groups.append(
            Group(label, "", [[*cells, *(means.get(share, "") for share in shares)]], published=True)
        )
    return groups


def _caption(study: Study) -> str:
    papers = ", with published results below it" if any(row.beside for row in study.published) else ""
    return (
        f"Mean QWK over the folds of each method, by protocol and label fraction{papers}; the tables below "
        "contain folds, intervals and other metrics"
    )


def _remarks(study: Study, groups: Sequence[Group]) -> list[str]:
    text = "".join(cell for group in groups for line in group.lines for cell in line)
    remarks = []
    if BETTER in text or WORSE in text or any(method.reference for method in study.methods):
        remarks.append(
            f"{BETTER} {WORSE}: better or worse than random initialisation of the same "
            f"encoder under the same protocol, with p (Holm) below {_P}."
        )
    if "*" in text:
        remarks.append("*: some runs of this row are missing.")
    return remarks
