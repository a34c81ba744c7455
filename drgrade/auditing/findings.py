"""Kinds of findings and the table of findings."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import pandas as pd

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: "error" (results on these data are wrong), "warning" (to be checked) or "note".
        title: Heading on the page.
        meaning: Explanation in one or two sentences.
    """

    severity: Severity
    title: str
    meaning: str


FINDINGS: dict[str, Kind] = {
    "conflicting_grades": Kind(
        "error", "Copies with different grades", "At least one of the two grades is wrong."
    ),
    "across_splits": Kind(
        "error",
        "Copies across the published test set",
        "Test photographs are also training photographs. A split drawn by drgrade keeps copies together.",
    ),
    "patient_across_splits": Kind(
        "error",
        "Patients across the published split",
        "Patients of the test set are also in training. A split drawn by drgrade keeps patients together.",
    ),
    "across_datasets": Kind(
        "error", "Copies across data sets", "A photograph of an external test set is also in training."
    ),
    "unreadable": Kind(
        "error", "Unreadable files", "The file is damaged, truncated or not a photograph; it was left out."
    ),
    "image_missing": Kind(
        "error", "Labels without a photograph", "A row of the label file names a file that does not exist."
    ),
    "label_invalid": Kind(
        "error",
        "Rows that cannot be used",
        "The grade is not 0-4, rows contradict each other, or a cell is invalid.",
    ),
    "identical": Kind(
        "warning", "Identical files", "Two files are equal byte for byte: the photograph counts twice."
    ),
    "near_duplicate": Kind(
        "warning",
        "Near-duplicates",
        "Two files show one exposure, re-encoded, resized, mirrored or slightly cropped.",
    ),
    "across_patients": Kind(
        "warning",
        "Copies filed under two patients",
        "One of the two patients is wrong, and possibly the grouping of other photographs.",
    ),
    "train_val_copies": Kind(
        "warning",
        "Copies across published train and val",
        "With the published val, a checkpoint would be chosen on training photographs. drgrade draws "
        "validation from both sets and keeps copies together.",
    ),
    "shortcut": Kind(
        "warning",
        "Grade can be predicted without the retina",
        "Size, file size, border and brightness alone predict the grade, and a model may use them too.",
    ),
    "blank": Kind(
        "warning",
        "Blank photographs",
        "The photograph shows no structure: it is black, has one colour, or is fogged.",
    ),
    "dark": Kind("warning", "Dark photographs", "Even the bright parts of the retina are nearly black."),
    "over_exposed": Kind("warning", "Over-exposed photographs", "A large part of the retina is saturated."),
    "out_of_focus": Kind(
        "warning",
        "Out-of-focus photographs",
        "Fine detail is missing relative to coarse detail at the size used for training.",
    ),
    "tiny": Kind(
        "warning",
        "Tiny photographs",
        "The disc has fewer pixels than lesions need, or than the size used for training.",
    ),
    "label_repeated": Kind("note", "Repeated rows", "A row repeats another one; it was left out."),
    "label_missing": Kind(
        "note",
        "Photographs without a label",
        "No row names the photograph, its grade is empty, or it was judged ungradable.",
    ),
    "converted": Kind(
        "note",
        "Converted photographs",
        "The photograph was used after a conversion, for example from 16 bits.",
    ),
}
"""All kinds of findings, the most important first."""


class Finding(NamedTuple):
    """One row of ``findings.csv``; None for values that do not apply.

    Fields that start with ``other_`` describe the second photograph of a pair or of a patient.

    Attributes:
        finding: One of :data:`FINDINGS`.
        split: Published split.
        similarity: Similarity of a pair in [0, 1].
        detail: Further details as text.
        path: File, or row of the label file, relative to the folder of the data set.
        row: Row in the manifest; not written.
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
    """Return a table with :data:`COLUMNS` and ``row``, sorted stably in the order of :data:`FINDINGS`."""
    order = list(FINDINGS)
    ordered = sorted(findings, key=lambda finding: order.index(finding.finding))
    table = pd.DataFrame(ordered, columns=list(Finding._fields), dtype=object)
    table.insert(1, "severity", [FINDINGS[finding.finding].severity for finding in ordered])
    types = {name: "Int64" if name in _INTEGERS else "string" for name in table} | {"similarity": "float64"}
    return table.astype(types)
