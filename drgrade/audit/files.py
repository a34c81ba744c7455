"""Files and labels that do not fit together, or cannot be used."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pandas as pd

from drgrade.audit.findings import Finding, plain
from drgrade.data.collection import Collection, Role
from drgrade.data.problems import COLUMNS
from drgrade.data.sources.base import Source
from drgrade.data.store import Store

_BY_REASON = {
    "the file is not there": "image_missing",
    "none of its photographs is there": "image_missing",
    "the file cannot be used": "unreadable",
    "ungradable": "label_missing",
    "duplicate id: repeats": "label_repeated",
    "all black": "blank",
    "blank": "blank",
}
"""What the reasons of sources and of the preparation begin with: the finding that they are."""

_LINE = re.compile(r":\d+$")


def file_findings(collection: Collection) -> Iterator[Finding]:
    """What the preparation left out or converted, and photographs without a label, of all data sets."""
    for number, (store, (source, role)) in enumerate(zip(collection.stores, collection.roles, strict=True)):
        prefix = f"{store.name}/" if number else ""
        yield from problem_findings(store, prefix)
        yield from _unlabelled(store, source, role, prefix)


def problem_findings(store: Store, prefix: str = "") -> Iterator[Finding]:
    """What was wrong when a data set was prepared.

    Args:
        store: The data set.
        prefix: Stands before its image_ids.
    """
    for image_id, path, reason, action in store.problems[list(COLUMNS)].to_numpy(dtype=str).tolist():
        kind = "converted" if action == "converted" else _finding_of(reason, path)
        image_id = f"{prefix}{image_id}" if image_id else None
        yield Finding(kind, image_id, dataset=store.name, detail=reason, path=path)


def _finding_of(reason: str, path: str) -> str:
    for beginning, kind in _BY_REASON.items():
        if reason.startswith(beginning):
            return kind
    # A row of a label file has a line, a photograph has none.
    return "label_invalid" if _LINE.search(path) else "unreadable"


def _unlabelled(store: Store, source: Source, role: Role, prefix: str) -> Iterator[Finding]:
    """Photographs that no row names, or that have no grade where their neighbours have one."""
    if role == "unlabelled":
        return
    for path in source.unlisted():
        name = f"{prefix}{PurePosixPath(path).with_suffix('')}"
        yield Finding("label_missing", name, dataset=store.name, detail="no row names it", path=path)
    split = store.manifest["split"].fillna("")
    graded = store.manifest["grade"].notna()
    # All of a set without grades are so on purpose: the test set of a competition.
    expected = graded.groupby(split).transform("any")
    for _, row in store.manifest[~graded & expected].iterrows():
        yield Finding(
            "label_missing",
            f"{prefix}{row['image_id']}",
            dataset=store.name,
            split=plain(row["split"]),
            detail="no grade",
            path=str(row["path"]),
        )


def counts_by_reason(findings: pd.DataFrame) -> dict[str, int]:
    """How many findings have which kind of reason, the most frequent first.

    Args:
        findings: Column ``detail``.
    """
    kinds = findings["detail"].str.split(r"[:(]", n=1, regex=True).str[0].str.strip()
    return {str(kind): int(count) for kind, count in kinds.value_counts().items()}
