"""Remarks on a split for readers of the results."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from drgrade.data.splits.spec import SplitFile, SplitSpec


@dataclass(frozen=True)
class Remark:
    """Remark on a split for readers of the results.

    Attributes:
        name: Key in ``metrics.json``, such as ``copies_of_test``.
        count: Number of cases.
        text: A sentence.
        serious: Whether results may be wrong because of it, so that it is shown as a warning.
    """

    name: str
    count: int
    text: str
    serious: bool = False


_TESTED = {"tested": ("test", "the published test set"), "external": ("external", "an external data set")}

_SETTLED = {
    "drop": "none of their grades is used",
    "keep_one": "the first by name keeps its grade",
    "majority": "the majority's grade is used, or none",
}


def remarks_on(table: pd.DataFrame, spec: SplitSpec, listed: SplitFile | None) -> tuple[Remark, ...]:
    """Collect all remarks on a split.

    Args:
        table: Working table of :mod:`drgrade.data.splits.split`: image_id, group, grade (used), raw (grade
            before disagreement was settled), untouched, role, patient, duplicate, place, why, subset.
        spec: Specification of the split.
        listed: The split file, if one was given.
    """
    remarks = [
        *(_on_file(table, spec, listed) if listed is not None else ()),
        *_on_exclusions(table),
        _on_disagreement(table, spec),
        _on_joined_groups(table),
        *_on_missing_grades(table),
        *(_on_shots(table, spec.shots) if spec.shots is not None else ()),
    ]
    return tuple(remark for remark in remarks if remark.count)


def _on_file(table: pd.DataFrame, spec: SplitSpec, listed: SplitFile) -> Iterator[Remark]:
    path, ids, role = listed.path, table["image_id"], table["role"]
    subset = ids.map(listed.subsets)
    unused = [] if listed.folds else [f"fold={spec.fold}"]
    unused += [] if listed.folds and len(listed.folds) == spec.folds else [f"folds={spec.folds}"]
    unused += [f"protocol.val_fraction={spec.val_fraction}"] if listed.validates else []
    without = f" instead of {', '.join(unused)}" if unused else ""
    count = int(subset.notna().sum())
    yield Remark("file_named", count, f"{path} splits {number(count)}{without}")
    unnamed = ids[subset.isna() & (role == "labelled")]
    text = f"excluded: {number(len(unnamed))} not named by {path} {examples(unnamed)}"
    yield Remark("file_unnamed", len(unnamed), text)
    unknown = listed.unknown
    text = f"{path} names {number(len(unknown))} missing from the data {examples(unknown)}"
    yield Remark("file_unknown", len(unknown), text)
    needs_grade = subset.isin(["train", "val", "test", "external"]) & (role != "unlabelled")
    ungraded = ids[needs_grade & table["grade"].isna()]
    text = f"without a usable grade: {number(len(ungraded))} that {path} assigns to a subset"
    yield Remark("file_ungraded", len(ungraded), f"{text} {examples(ungraded)}")
    external = ids[(role == "labelled") & (subset == "external")]
    text = f"not used: {number(len(external))} that {path} calls external, of a data set that is not in"
    yield Remark("file_external", len(external), f"{text} data.external {examples(external)}", serious=True)
    pool = ids[(role == "unlabelled") & subset.isin(["train", "val", "test"])]
    text = f"{number(len(pool))} that {path} trains or tests on are in data.unlabelled, whose grades are not"
    yield Remark("file_of_pool", len(pool), f"{text} used {examples(pool)}", serious=True)
    yield _on_leaks(table, listed)


def _on_leaks(table: pd.DataFrame, listed: SplitFile) -> Remark:
    sides = {"train": 0, "unlabelled": 0, "val": 1, "test": 2, "external": 2}
    side = table["subset"].map(sides).groupby(table["group"]).nunique()
    leaking = side.index[side > 1]
    tested = set(table["group"][table["subset"] == "test"])
    of_test = sum(group in tested for group in leaking)
    text = (
        f"{listed.path} puts {number(len(leaking), 'group')} (same patient, or copies) on two sides "
        f"{examples(leaking)}, {of_test} of them on the test side; results may be too optimistic"
    )
    return Remark("file_leaking_groups", len(leaking), text, serious=True)


def _on_exclusions(table: pd.DataFrame) -> Iterator[Remark]:
    """Remark on labelled photographs and pools that were removed from the training side."""
    for why, (key, whose) in _TESTED.items():
        left = table[(table["why"] == why) & (table["role"] == "labelled")]
        tested = table["place"] == "test" if why == "tested" else table["role"] == "external"
        copied = left["duplicate"].isin(table["duplicate"][tested].dropna())
        copies, relatives = left["image_id"][copied], left["image_id"][~copied]
        off = "removed from the training side:"
        text = f"{off} {number(len(copies))} with copies in {whose} {examples(copies)}"
        yield Remark(f"copies_of_{key}", len(copies), text)
        text = f"{off} {number(len(relatives))} of patients in {whose} {examples(relatives)}"
        yield Remark(f"patients_of_{key}", len(relatives), text)
    pool = table["image_id"][(table["role"] == "unlabelled") & (table["subset"] == "excluded")]
    text = (
        f"excluded: {number(len(pool))} of unlabelled data sets, in their published test set or in test or "
        f"validation groups {examples(pool)}"
    )
    yield Remark("pool_excluded", len(pool), text)


def _on_disagreement(table: pd.DataFrame, spec: SplitSpec) -> Remark:
    raw = table[["duplicate"]].assign(grade=table["raw"])
    which = disagreeing_copies(raw) & table["raw"].notna()
    clusters = table["duplicate"][which].nunique()
    but = "; published test sets keep theirs" if (which & table["untouched"]).any() else ""
    count = int(which.sum())
    text = (
        f"graded differently: {number(count)} in {number(clusters, 'cluster')} of copies "
        f"{examples(table['image_id'][which])}; split.disagreeing={spec.disagreeing}: "
        f"{_SETTLED[spec.disagreeing]}{but}"
    )
    return Remark("disagreeing_copies", count, text)


def _on_joined_groups(table: pd.DataFrame) -> Remark:
    patients = table["patient"].groupby(table["group"]).nunique()
    joined = patients.index[patients > 1]
    size = int(table["group"].isin(joined).groupby(table["group"]).sum().max()) if len(joined) else 0
    text = (
        f"{number(len(joined), 'group')} of several patients, who share copies of a photograph "
        f"{examples(joined)}; the largest has {number(size)}"
    )
    return Remark("joined_groups", len(joined), text)


def _on_missing_grades(table: pd.DataFrame) -> Iterator[Remark]:
    """Remark on grades missing from a subset."""
    graded = table[table["grade"].notna() & (table["role"] == "labelled")]
    grades = sorted(graded["grade"].unique())
    for subset in ("train", "val", "test"):
        present = set(graded["grade"][graded["subset"] == subset])
        missing = [str(grade) for grade in grades if grade not in present]
        if present:
            text = f"no {subset} photograph has grade {', '.join(missing)}"
            yield Remark(f"{subset}_grades_missing", len(missing), text)


def _on_shots(table: pd.DataFrame, shots: int) -> Iterator[Remark]:
    """Remark on grades with fewer or more photographs than shots."""
    side = table[table["subset"].isin(["train", "unlabelled"]) & (table["role"] == "labelled")]
    grades = sorted(side["grade"].dropna().unique())
    counts = side["grade"][side["subset"] == "train"].value_counts().reindex(grades, fill_value=0)
    few = counts[counts < shots]
    listed = ", ".join(f"grade {grade}: {count}" for grade, count in few.items())
    text = f"fewer than protocol.shots={shots} training photographs, so all are used: {listed}"
    yield Remark("shots_lacking", len(few), text)
    beyond = int((counts - shots).clip(lower=0).sum())
    text = (
        f"{number(beyond)} more than protocol.shots={shots} per grade to train on, because patients and "
        "copies stay together"
    )
    yield Remark("shots_beyond", beyond, text)


def disagreeing_copies(table: pd.DataFrame) -> pd.Series:
    """Return which photographs, graded or not, are in a cluster of copies with several grades.

    Args:
        table: Columns duplicate (missing: no copies) and grade (missing: none).
    """
    graded = table[table["duplicate"].notna() & table["grade"].notna()]
    grades = graded.groupby("duplicate")["grade"].nunique()
    return table["duplicate"].isin(grades.index[grades > 1])


def number(count: int, noun: str = "photograph") -> str:
    """Return a count with its noun: ``1 photograph``, ``2 photographs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


_EXAMPLES = 3


def examples(names: Iterable[str]) -> str:
    """Return the first few names in alphabetical order, in brackets."""
    ordered = sorted(names)
    return f"({', '.join(ordered[:_EXAMPLES])}{', ...' if len(ordered) > _EXAMPLES else ''})"
