"""The words for what an audit finds, and the table of it."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pandas as pd

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: ``error``: numbers on these data are wrong; ``warning``: look at it; ``note``: good to know.
        title: For people.
        meaning: What it is, and why it matters, in a sentence.
    """

    severity: Severity
    title: str
    meaning: str


FINDINGS: dict[str, Kind] = {
    "conflicting_grades": Kind(
        "error",
        "Copies with different grades",
        "At least one of the two grades is wrong.",
    ),
    "across_splits": Kind(
        "error",
        "Copies across the published test set",
        "What is tested on was trained on. A split that drgrade draws keeps copies together.",
    ),
    "patient_across_splits": Kind(
        "error",
        "Patients across the published split",
        "The test is on patients who were trained on. A split that drgrade draws keeps patients together.",
    ),
    "across_datasets": Kind(
        "error",
        "Copies across data sets",
        "An external test on a photograph that was trained on is none.",
    ),
    "unreadable": Kind(
        "error",
        "Unreadable files",
        "The file is damaged, truncated or no photograph; it was left out.",
    ),
    "image_missing": Kind(
        "error",
        "Labels without a photograph",
        "A row of the label file names a file that is not there.",
    ),
    "label_invalid": Kind(
        "error",
        "Rows that cannot be used",
        "The grade is none of 0-4, rows contradict each other, or a cell makes no sense.",
    ),
    "identical": Kind(
        "warning",
        "Identical files",
        "Two files are the same byte for byte: the photograph counts twice.",
    ),
    "near_duplicate": Kind(
        "warning",
        "Near-duplicates",
        "Two files show one exposure: encoded anew, resized, mirrored or slightly cropped.",
    ),
    "across_patients": Kind(
        "warning",
        "Copies filed under two patients",
        "One of the two patients is wrong, and so perhaps is the grouping of other photographs.",
    ),
    "train_val_copies": Kind(
        "warning",
        "Copies across published train and val",
        "A checkpoint would be chosen on what was trained on, if the published val were used. drgrade draws "
        "validation from both, and keeps copies together.",
    ),
    "shortcut": Kind(
        "warning",
        "Grade can be told without the retina",
        "Size, file size, border and brightness alone predict the grade: a model may use them, too.",
    ),
    "blank": Kind(
        "warning",
        "Blank photographs",
        "There is no structure to be seen: black, of one colour, or fogged all over.",
    ),
    "dark": Kind("warning", "Dark photographs", "Even the bright parts of the retina are nearly black."),
    "over_exposed": Kind(
        "warning", "Over-exposed photographs", "A large part of the retina is so bright that nothing shows."
    ),
    "out_of_focus": Kind(
        "warning",
        "Out-of-focus photographs",
        "Fine detail is missing in comparison with coarse detail, at the size that is trained at.",
    ),
    "tiny": Kind(
        "warning",
        "Tiny photographs",
        "The disc has fewer pixels than lesions need, or than the size that is trained at.",
    ),
    "label_repeated": Kind(
        "note", "Repeated rows", "A row says again what another one says; it was left out."
    ),
    "label_missing": Kind(
        "note",
        "Photographs without a label",
        "No row names the photograph, its grade is empty, or it was judged ungradable.",
    ),
    "converted": Kind(
        "note",
        "Converted photographs",
        "The photograph could be used after a conversion, such as from 16 bits.",
    ),
}
"""Every kind of finding, those that matter most first."""


class Finding(NamedTuple):
    """One row of ``findings.csv``; what does not apply is None.

    Attributes:
        finding: One of :data:`FINDINGS`.
        image_id: The photograph, as far as it is known.
        other_image_id: The other one of a pair, or of a patient.
        dataset: Data set of the photograph.
        other_dataset: Data set of the other one.
        grade: Its grade.
        other_grade: Grade of the other one.
        split: Its split, as published.
        other_split: Split of the other one.
        similarity: Of a pair, 0-1.
        detail: In words.
        path: Its file, or the row of the label file, relative to the data set's folder.
        other_path: File of the other one.
        row: Row of the manifest; not written.
    """

    finding: str
    image_id: str | None = None
    other_image_id: str | None = None
    dataset: str | None = None
    other_dataset: str | None = None
    grade: int | None = None
    other_grade: int | None = None
    split: str | None = None
    other_split: str | None = None
    similarity: float | None = None
    detail: str = ""
    path: str | None = None
    other_path: str | None = None
    row: int | None = None


COLUMNS = ("finding", "severity", *Finding._fields[1:-1])
"""Columns of ``findings.csv``, in order."""

_INTEGERS = ("grade", "other_grade", "row")


def finding_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """Make a table with :data:`COLUMNS` and ``row``, in the order of :data:`FINDINGS`.

    Args:
        findings: Those of one kind stay in their order.
    """
    order = list(FINDINGS)
    ordered = sorted(findings, key=lambda found: order.index(found.finding))
    table = pd.DataFrame(ordered, columns=list(Finding._fields), dtype=object)
    table.insert(1, "severity", [FINDINGS[found.finding].severity for found in ordered])
    types = {name: "Int64" if name in _INTEGERS else "string" for name in table} | {"similarity": "float64"}
    return table.astype(types)


def plain(value: Any) -> Any:
    """A cell of a table as an ordinary Python value, None if it is missing."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
