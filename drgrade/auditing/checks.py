"""Checks of files, labels, copies, patients and image quality."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from drgrade.auditing.findings import FINDINGS, Finding
from drgrade.data.photographs import Collection
from drgrade.data.quality import Quality, measure
from drgrade.data.sources.base import Source
from drgrade.data.store import Store
from drgrade.data.store_builder import PROBLEM_COLUMNS
from drgrade.progress import track
from drgrade.settings import AuditThresholds

_BY_REASON = {
    "the file is not there": "image_missing",
    "none of its photographs is there": "image_missing",
    "the file cannot be used": "unreadable",
    "ungradable": "label_missing",
    "duplicate id: repeats": "label_repeated",
    "all black": "blank",
    "blank": "blank",
    "no fundus photograph": "blank",
}
"""Kind of finding by the beginning of the reason of a problem."""

_LINE = re.compile(r":\d+$")


def file_findings(collection: Collection) -> Iterator[Finding]:
    """Report photographs that were left out, converted or have no label, in all data sets."""
    for number, (store, (source, role)) in enumerate(zip(collection.stores, collection.roles, strict=True)):
        prefix = f"{store.name}/" if number else ""
        yield from problem_findings(store, prefix)
        if role != "unlabelled":
            yield from _unlabelled(store, source, prefix)


def problem_findings(store: Store, prefix: str = "") -> Iterator[Finding]:
    """Report the problems of a store, with a prefix before its image_ids."""
    for image_id, path, reason, action in store.problems[list(PROBLEM_COLUMNS)].to_numpy(dtype=str).tolist():
        kind = "converted" if action == "converted" else _finding_of(reason, path)
        image_id = f"{prefix}{image_id}" if image_id else None
        yield Finding(kind, image_id, dataset=store.name, detail=reason, path=path)


def _finding_of(reason: str, path: str) -> str:
    for beginning, kind in _BY_REASON.items():
        if reason.startswith(beginning):
            return kind
    # The path of a row of a label file ends in a line number.
    return "label_invalid" if _LINE.search(path) else "unreadable"


def _unlabelled(store: Store, source: Source, prefix: str) -> Iterator[Finding]:
    """Report photographs without a row, and ungraded ones in a set that has grades."""
    for path in source.unlisted():
        name = f"{prefix}{PurePosixPath(path).with_suffix('')}"
        yield Finding(
            "label_missing",
            name,
            dataset=store.name,
            detail="no row for this file in the label files",
            path=path,
        )
    split = store.manifest["split"].fillna("")
    graded = store.manifest["grade"].notna()
    # A set without any grades is ungraded on purpose, as the test set of a competition.
    expected = graded.groupby(split).transform("any")
    for row in rows(store.manifest.loc[~graded & expected, ["image_id", "split", "path"]]):
        name = f"{prefix}{row['image_id']}"
        place = {"dataset": store.name, "split": row["split"], "path": row["path"]}
        yield Finding("label_missing", name, detail="no grade", **place)


_DESCRIBED = ("image_id", "dataset", "grade", "split", "patient_id", "eye", "role", "path")

PAIR_COLUMNS = (
    "kind",
    "similarity",
    "mirrored",
    "turned",
    "findings",
    *(name for column in _DESCRIBED for name in (column, f"other_{column}")),
)
"""Columns of ``pairs.csv``; ``findings`` are separated by blanks."""


def pair_table(manifest: pd.DataFrame, duplicates: pd.DataFrame) -> pd.DataFrame:
    """Return pairs of copies with errors first, then the most similar.

    Args:
        manifest: Manifest of a :class:`~drgrade.data.photographs.Collection`.
        duplicates: Columns first, second (rows of the manifest), kind, similarity, mirrored, turned.

    Returns:
        Columns :data:`PAIR_COLUMNS`, first and second.
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
    """Report the pairs of :func:`pair_table`; one pair may have several findings."""
    shared = [name for name in Finding._fields if name in pairs]
    for pair in rows(pairs):
        for kind in pair["findings"].split():
            values = {name: pair[name] for name in shared}
            yield Finding(kind, **values, detail=_detail(kind, pair), row=pair["first"])


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries of Python values, with None for missing ones."""
    values = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in values.to_dict("records")]


def _kinds(pair: dict[str, Any]) -> list[str]:
    """Return the kinds of findings of a pair."""
    kinds = ["identical" if pair["kind"] == "identical" else "near_duplicate"]
    if _differ(pair, "grade"):
        kinds.append("conflicting_grades")
    if pair["dataset"] != pair["other_dataset"]:
        # Splits and patients of different data sets are unrelated.
        return [*kinds, "across_datasets"]
    if _differ(pair, "split"):
        # A published val belongs to the training side: drgrade draws validation from it and train.
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


_PATIENT = ["dataset", "patient_id"]
_PATIENT_FIELDS = ("image_id", "grade", "split", "path")


def patient_findings(manifest: pd.DataFrame) -> Iterator[Finding]:
    """Report patients in both the published test set of a data set and its training side (train, val).

    Patients of two data sets are different. The finding of a patient names the first test photograph and the
    first photograph of the training side.

    Args:
        manifest: Columns image_id, path, grade, patient_id, dataset, split. Photographs whose patient or
            split is unknown are ignored.
    """
    known = _sided(manifest)
    across = known[known.groupby(_PATIENT)["tested"].transform("nunique") > 1]
    counts = across.groupby([*_PATIENT, "split"]).size().to_dict()
    first, other = (across[across["tested"] == tested].drop_duplicates(_PATIENT) for tested in (True, False))
    for pair in rows(first.merge(other, on=_PATIENT, suffixes=("", "_other"))):
        dataset, patient = pair["dataset"], pair["patient_id"]
        numbers = {split: counts.get((dataset, patient, split), 0) for split in ("train", "val", "test")}
        listed = ", ".join(f"{number} {split}" for split, number in numbers.items() if number)
        yield Finding(
            "patient_across_splits",
            dataset=dataset,
            other_dataset=dataset,
            **{name: pair[name] for name in _PATIENT_FIELDS},
            **{f"other_{name}": pair[f"{name}_other"] for name in _PATIENT_FIELDS},
            detail=f"patient {patient}: {listed}",
        )


def patients_comparable(manifest: pd.DataFrame) -> bool:
    """Return whether a data set has a published split with known patients on both sides."""
    known = _sided(manifest)
    return bool(set(known["dataset"][known["tested"]]) & set(known["dataset"][~known["tested"]]))


def _sided(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return photographs with known patient and published split, with a column ``tested``."""
    known = manifest[manifest["patient_id"].notna() & manifest["split"].notna()]
    return known.assign(tested=(known["split"] == "test").astype(bool))


_LEAST_RANKED = 20  # photographs needed to detect an outlier


def measure_all(store: Store) -> pd.DataFrame:
    """Measure every photograph of a store; row i has the columns of :class:`Quality` of image i."""
    diameters = 2 * store.manifest["circle_r"].to_numpy(dtype=float)
    numbers = track(range(len(store)), len(store), "measuring", f"photographs of {store.name}")
    measured = [measure(np.asarray(store.images[i]), store.thumbnails[i] > 0, diameters[i]) for i in numbers]
    return pd.DataFrame(measured, columns=list(Quality._fields), dtype="float64")


def quality_findings(
    manifest: pd.DataFrame, qualities: pd.DataFrame, image_size: int, settings: AuditThresholds
) -> Iterator[Finding]:
    """Report photographs of poor quality, the worst of each kind first.

    Args:
        manifest: Row i describes photograph i.
        qualities: Result of :func:`measure_all`.
        image_size: Side of the prepared photographs in pixels.
        settings: Thresholds.
    """
    least = max(settings.tiny_below, image_size)
    blank = qualities["contrast"] < settings.blank_below
    tests = {
        "blank": (blank, qualities["contrast"], "contrast {:.4f}"),
        "dark": (qualities["level"] < settings.dark_below, qualities["level"], "level {:.0f} of 255"),
        "over_exposed": (
            qualities["over_exposed"] > settings.over_exposed_above,
            -qualities["over_exposed"],
            "{:.0%} of the disc",
        ),
        "out_of_focus": (
            _out_of_focus(manifest["dataset"], qualities["focus"], settings) & ~blank,
            qualities["focus"],
            "focus {:.2f}",
        ),
        "tiny": (
            qualities["diameter"] < least,
            qualities["diameter"],
            f"disc {{:.0f}} px across, {least:.0f} wanted",
        ),
    }
    for kind, (poor, badness, text) in tests.items():
        ordered = badness[poor].sort_values(kind="stable")
        described = rows(manifest.iloc[ordered.index][["image_id", "dataset", "grade", "split", "path"]])
        for number, value, values in zip(ordered.index, ordered, described, strict=True):
            yield Finding(kind, **values, detail=text.format(abs(value)), row=int(number))


def _out_of_focus(datasets: pd.Series, focus: pd.Series, settings: AuditThresholds) -> pd.Series:
    """Return which photographs are blurred, or outliers of their data set."""
    blurred = focus < settings.blurred_below
    logarithm = np.log(focus.where(focus > 0))
    for _, values in logarithm.groupby(datasets):
        known = values.dropna()
        if len(known) >= _LEAST_RANKED:
            spread = 1.4826 * float((known - known.median()).abs().median())
            limit = float(known.median()) - settings.outlying_deviations * spread
            outlying = known.index[(known < limit) & (focus[known.index] < settings.outlying_below)]
            blurred[outlying] = True
    return blurred
