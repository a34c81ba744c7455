"""The words for what an audit finds, and the table of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import pandas as pd

from drgrade.config import nearest
from drgrade.errors import ConfigError


@dataclass(frozen=True)
class AuditSettings:
    """Thresholds of an audit. Figures behind the defaults: ``docs/audit.md``.

    Attributes:
        fail_on: Findings, names of :data:`~drgrade.auditing.findings.FINDINGS`, that the audit fails on.
        tiny_below: Diameter of the disc, in pixels of the file, below which a photograph is tiny. It is so,
            too, below the size of the prepared photographs.
        blank_below: Contrast (see :class:`~drgrade.data.quality.Quality`) below which it is blank.
        dark_below: Level, 0-255, of the brightest twentieth of the disc below which it is dark.
        over_exposed_above: Share of the disc, 0-1, above which it is over-exposed.
        blurred_below: Focus below which it is out of focus whatever the rest of the data set is like.
        outlying_below: Focus below which it is out of focus if it is an outlier of its data set.
        outlying_deviations: How many (robust) standard deviations below the median an outlier lies.
        folds: Of the cross validation of the shortcut probe.
        permutations: How often the probe is repeated with shuffled grades.
        resamples: Of the bootstrap, for the probe's interval.
        probe_photographs: The probe takes at most so many photographs of a data set.
        shortcut_above: QWK of the probe from which on it is a finding, if it is significant, too.
        seed: Of the probe.
        pairs_on_page: The page shows at most so many pairs; all are in ``pairs.csv``.
    """

    fail_on: Sequence[str] = ()
    tiny_below: float = 128.0
    blank_below: float = 0.004
    dark_below: float = 32.0
    over_exposed_above: float = 0.25
    blurred_below: float = 0.5
    outlying_below: float = 0.6
    outlying_deviations: float = 4.0
    folds: int = 5
    permutations: int = 30
    resamples: int = 500
    probe_photographs: int = 10_000
    shortcut_above: float = 0.2
    seed: int = 0
    pairs_on_page: int = 200

    def __post_init__(self) -> None:
        given: object = self.fail_on  # of a config, so that it may be anything
        if isinstance(given, str):
            raise ConfigError(f"fail_on={given} is not a list: fail_on=[{given}]")
        if not isinstance(given, Sequence):
            value = "null" if given is None else given
            raise ConfigError(
                f"fail_on={value} is not a list: fail_on=[] to pass whatever is found, "
                "or fail_on=[across_splits] and the like"
            )
        for name in self.fail_on:
            if name not in FINDINGS:
                raise ConfigError(
                    f"fail_on: there is no finding {name!r}; {nearest(str(name), list(FINDINGS))}"
                )
        least = {"folds": 2, "permutations": 19, "resamples": 100, "probe_photographs": 100}
        for field in fields(self)[1:]:
            value, lowest = getattr(self, field.name), least.get(field.name, 0)
            whole = isinstance(field.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "whole number" if whole else "number"
                raise ConfigError(f"audit.{field.name}={value} is not a {kind}")
            if value < lowest:
                raise ConfigError(f"audit.{field.name}={value} is too small: {lowest} at least")


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
