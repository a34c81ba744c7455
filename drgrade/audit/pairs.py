"""Copies: which photographs they are of, and what follows from it."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from drgrade.audit.findings import FINDINGS, Finding, plain

_DESCRIBED = ("image_id", "dataset", "grade", "split", "patient_id", "eye", "role", "path")

PAIR_COLUMNS = (
    "kind",
    "similarity",
    "mirrored",
    "turned",
    "findings",
    *(name for column in _DESCRIBED for name in (column, f"other_{column}")),
)
"""Columns of ``pairs.csv``, in order; ``findings`` are separated by blanks."""


def pair_table(manifest: pd.DataFrame, duplicates: pd.DataFrame) -> pd.DataFrame:
    """Describe pairs of copies.

    Args:
        manifest: Of a :class:`~drgrade.data.collection.Collection`.
        duplicates: Columns first, second (rows of the manifest), kind, similarity, mirrored, turned.

    Returns:
        :data:`PAIR_COLUMNS`, first and second; pairs with errors first, then the most similar.
    """
    pairs = duplicates[["first", "second", *PAIR_COLUMNS[:4]]].reset_index(drop=True)
    for column in _DESCRIBED:
        values = manifest[column]
        pairs[column] = values.take(pairs["first"].to_numpy()).array
        pairs[f"other_{column}"] = values.take(pairs["second"].to_numpy()).array
    pairs["findings"] = pd.Series([" ".join(_kinds(pair)) for pair in rows(pairs)], dtype="string")
    errors = [sum(FINDINGS[name].severity == "error" for name in text.split()) for text in pairs["findings"]]
    ordered = pairs.assign(errors=errors).sort_values(
        ["errors", "kind", "similarity", "image_id", "other_image_id"],
        ascending=[False, True, False, True, True],
        kind="stable",
        ignore_index=True,
    )
    return ordered[[*PAIR_COLUMNS, "first", "second"]]


def pair_findings(pairs: pd.DataFrame) -> Iterator[Finding]:
    """What is wrong with pairs; one pair may be several findings.

    Args:
        pairs: As :func:`pair_table` gives them.
    """
    shared = [name for name in Finding._fields if name in pairs]
    for pair in rows(pairs):
        for kind in pair["findings"].split():
            values = {name: pair[name] for name in shared}
            yield Finding(kind, **values, detail=_detail(kind, pair), row=pair["first"])


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, with None for what is missing."""
    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _kinds(pair: dict[str, Any]) -> list[str]:
    """The findings that a pair is."""
    kinds = ["identical" if pair["kind"] == "identical" else "near_duplicate"]
    if _differ(pair, "grade"):
        kinds.append("conflicting_grades")
    if pair["dataset"] != pair["other_dataset"]:
        # Splits and patients of different data sets have nothing to do with each other.
        return [*kinds, "across_datasets"]
    if _differ(pair, "split"):
        # A published val is training side: drgrade draws validation from it and train.
        tested = "test" in (pair["split"], pair["other_split"])
        kinds.append("across_splits" if tested else "train_val_copies")
    if _differ(pair, "patient_id"):
        kinds.append("across_patients")
    return kinds


def _differ(pair: dict[str, Any], column: str) -> bool:
    one, other = pair[column], pair[f"other_{column}"]
    return one is not None and other is not None and one != other


def _detail(kind: str, pair: dict[str, Any]) -> str:
    if kind == "conflicting_grades":
        return f"grade {pair['grade']} and grade {pair['other_grade']}"
    if kind in ("across_splits", "train_val_copies"):
        return f"{pair['split']} and {pair['other_split']}"
    if kind == "across_datasets":
        return f"{pair['dataset']} ({pair['role']}) and {pair['other_dataset']} ({pair['other_role']})"
    if kind == "across_patients":
        return f"patient {pair['patient_id']} and patient {pair['other_patient_id']}"
    notes = ["mirrored"] if pair["mirrored"] else []
    if pair["turned"]:
        notes.append(f"turned by {pair['turned']} degrees")
    if _differ(pair, "eye") and not _differ(pair, "patient_id"):
        notes.append(f"filed as {pair['eye']} and as {pair['other_eye']} eye")
    return ", ".join(notes)
