"""Splits of photographs into training, validation, test and external sets.

First every photograph gets a place from its role, the published test set, the test fold or the split file.
Then validation and training labels are drawn from the training side.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drgrade.data.splits.files import read_split_file
from drgrade.data.splits.remarks import Remark, disagreeing_copies, examples, remarks_on
from drgrade.data.splits.spec import (
    PUBLISHED,
    ROLES,
    Disagreeing,
    SplitFile,
    SplitSpec,
    draw_test_fold,
    draw_validation_and_training,
)
from drgrade.errors import ConfigError, DataError


def groups_of(manifest: pd.DataFrame) -> pd.Series:
    """Return the group of each photograph.

    Groups are the connected components of two relations: same patient, and copies of one photograph. Two
    patients who share a copied photograph are therefore one group.

    Args:
        manifest: Columns image_id and patient_id (may be missing); optional ``duplicate`` (cluster of copies,
            missing: none) and ``role`` (missing: labelled).

    Returns:
        Strings aligned with the manifest: ``patient:ID``, or ``image:ID`` if the patient is unknown. A joined
        group is named after its first patient in alphabetical order, else after its first photograph;
        labelled ones come first, so that a copy in another data set does not rename it.
    """
    own = "image:" + manifest["image_id"].astype("string")
    names = ("patient:" + manifest["patient_id"].astype("string")).fillna(own)
    if "duplicate" in manifest and manifest["duplicate"].notna().any():
        labelled = names[manifest["role"].fillna("labelled") == "labelled"] if "role" in manifest else names
        names = _joined(names, manifest["duplicate"].astype("string"), set(labelled))
    return names.astype(str).rename("group")


def _joined(names: pd.Series, clusters: pd.Series, labelled: set[str]) -> pd.Series:
    """Rename groups that are joined by a cluster of copies."""
    row, uniques = pd.factorize(names)
    unique = [str(name) for name in uniques]
    cluster, labels = pd.factorize(clusters)  # -1: none
    copied = cluster >= 0
    component = _components(row[copied], cluster[copied], len(unique), len(labels))

    # Labelled ones first, "patient:" before "image:", each in alphabetical order.
    def rank(i: int) -> tuple[bool, bool, str]:
        return unique[i] not in labelled, unique[i].startswith("image:"), unique[i]

    first: dict[int, str] = {}
    for i in sorted(range(len(unique)), key=rank):
        first.setdefault(int(component[i]), unique[i])
    return pd.Series([first[int(component[i])] for i in row], index=names.index, dtype="string")


def _components(
    group: npt.NDArray[np.intp], cluster: npt.NDArray[np.intp], groups: int, clusters: int
) -> npt.NDArray[np.int32]:
    """Return the component of each group in the bipartite graph of groups and clusters, (groups,)."""
    size = groups + clusters
    edges = coo_array((np.ones(len(group), np.int8), (group, groups + cluster)), shape=(size, size))
    _, component = connected_components(edges.tocsr(), directed=False)
    return np.asarray(component[:groups], np.int32)


_SIDE, _POOL = "side", "pool"
"""Places from which subsets are drawn: labelled photographs of the training side, and photographs of data
sets for pre-training only."""


@dataclass(frozen=True)
class Split:
    """A split with remarks on it.

    Attributes:
        table: Columns image_id, group, grade (missing if it must not be used), subset (one of
            :data:`SUBSETS`); in the order of the manifest.
        remarks: Remarks for readers of the results.
        training_side: Whether a photograph is on the training side and may be used for pre-training. It
            depends on neither the validation set nor the label fraction.
        foreign: Whether it belongs to an external data set, or to a group with a photograph that does.
    """

    table: pd.DataFrame
    remarks: tuple[Remark, ...]
    training_side: pd.Series
    foreign: pd.Series

    @property
    def counts(self) -> dict[str, int]:
        """Count of each remark by name."""
        return {remark.name: remark.count for remark in self.remarks}


def make_split(manifest: pd.DataFrame, spec: SplitSpec, *, need_grades: bool = True) -> Split:
    """Assign every photograph to one subset.

    Unless a split file requires it, no group is in two of train/unlabelled, val and test/external. No group
    is in both train and unlabelled, except for ungraded photographs and those of another role.

    Args:
        manifest: One row per photograph with columns image_id, grade (missing: ungraded), patient_id, split.
            Optional: ``duplicate`` (cluster of copies, missing: none), ``dataset``, ``role`` (one of
            :data:`ROLES`, missing: labelled).
        spec: Specification of the split.
        need_grades: Raise an error if no photograph has a grade; see :func:`split_sides`.

    Raises:
        DataError: If a required subset would be empty, the data have no published split, or the split file
            cannot be used.
        ConfigError: If the split file conflicts with ``val_within_fraction``.
    """
    table = _photographs(manifest)
    listed = read_split_file(table, spec) if spec.file is not None else None
    table["place"] = _places(table, spec, listed)
    # Published test sets (also those of a file) and external data sets keep their grades.
    table["untouched"] = (table["role"] == "external") | (table["place"] == "test")
    table["raw"], table["grade"] = table["grade"], _grades(table, spec, listed)
    graded = _graded_and_labelled(table)
    if need_grades and not graded.any():
        raise DataError(
            "no photograph has a grade: nothing to train or test on; "
            "pre-training works without grades: +experiment=rotation_pretrain"
        )
    if listed is None and spec.fold != PUBLISHED:
        tested = table["group"].isin(draw_test_fold(table[graded], spec)) & (table["role"] == "labelled")
        table["place"] = table["place"].mask(tested, "test")
    _exclude_relatives(table, obeyed=listed is not None)
    on_side = table["place"].isin([_SIDE, _POOL, "val", "unlabelled"])
    table["subset"] = _drawn(table, spec, listed)
    table["group"] = table["whole"]
    if graded.any():
        _check_usable(table, spec, listed)
    columns = ["image_id", "group", "grade", "subset"]
    foreign = _related(table, table["role"] == "external")
    return Split(table[columns], remarks_on(table, spec, listed), on_side, foreign)


def split_sides(manifest: pd.DataFrame, spec: SplitSpec) -> Split:
    """Split photographs without using grades, into those that pre-training may use and the others.

    Args:
        manifest: As for :func:`make_split`.
        spec: Specification, of which only ``fold`` and ``file`` are used.

    Returns:
        Split with the subset "unlabelled", or "excluded" for groups with a photograph that is external or in
        the published test set.

    Raises:
        DataError: If ``fold`` is "published" and the data have no published split, or the split file cannot
            be used.
    """
    # Grades of pools are kept: they are not used, but show which published test sets are graded.
    role = manifest.get("role", pd.Series("labelled", index=manifest.index))
    ungraded = manifest.assign(grade=manifest["grade"].astype("Int64").where(role == "unlabelled"))
    return make_split(ungraded, spec, need_grades=False)


def has_grades(manifest: pd.DataFrame) -> bool:
    """Return whether a labelled photograph has a grade, as :func:`make_split` requires."""
    return bool(_graded_and_labelled(_photographs(manifest)).any())


def split_hash(split: pd.DataFrame) -> str:
    """Return the SHA-256 of a split, independent of the order of rows.

    Args:
        split: Table of a :class:`Split`, or a ``split.csv``.

    Returns:
        64 hexadecimal digits.
    """
    columns = split[["image_id", "group", "subset"]].astype(str)
    grades = ["" if pd.isna(grade) else str(int(grade)) for grade in split["grade"]]
    rows = sorted(zip(columns["image_id"], columns["group"], grades, columns["subset"], strict=True))
    return hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()


def _photographs(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the working table, indexed from 0."""
    missing = pd.Series(pd.NA, index=manifest.index, dtype="string")
    role = manifest.get("role", missing).astype("string").fillna("labelled")
    unknown = sorted(set(role) - set(ROLES))
    if unknown:
        raise DataError(f'role "{unknown[0]}" of a photograph is not one of {", ".join(ROLES)}')
    whole = groups_of(manifest)
    # An external data set may exclude photographs, but must not change the draw.
    inside = groups_of(manifest[(role != "external").to_numpy()])
    columns = {
        "image_id": manifest["image_id"].astype(str),
        "whole": whole,
        "group": inside.reindex(manifest.index).fillna(whole).astype(str),
        "grade": manifest["grade"].astype("Int64").where(role != "unlabelled"),
        "role": role.astype(str),
        "dataset": manifest.get("dataset", missing).astype("string").fillna("").astype(str),
        "patient": manifest["patient_id"].astype("string"),
        "duplicate": manifest.get("duplicate", missing).astype("string"),
        "published": (manifest["split"].astype("string") == "test").fillna(False).astype(bool),
    }
    table = pd.DataFrame(columns).reset_index(drop=True)
    # A test set whose grades are not published (APTOS 2019) is not used for tests, so a pool may include it.
    known = table["dataset"][table["published"] & manifest["grade"].notna().to_numpy()]
    table["published"] &= (table["role"] != "unlabelled") | table["dataset"].isin(known)
    return table


def _graded_and_labelled(table: pd.DataFrame) -> pd.Series:
    return table["grade"].notna() & (table["role"] == "labelled")


def _places(table: pd.DataFrame, spec: SplitSpec, listed: SplitFile | None) -> pd.Series:
    """Return the place of each photograph from its role, the published test set or the file."""
    place = table["role"].map({"labelled": _SIDE, "unlabelled": _POOL, "external": "external"})
    labelled = table["role"] == "labelled"
    if listed is not None:
        return _listed_places(table, place, listed)
    if spec.fold == PUBLISHED:
        test = labelled & table["published"]
        if labelled.any() and not test.any():
            raise DataError(
                "fold=published: this data set has no published test set; use fold=0 (of folds=5)"
            )
        place = place.mask(test, "test")
    return place


def _listed_places(table: pd.DataFrame, place: pd.Series, listed: SplitFile) -> pd.Series:
    """Return places from the file; photographs missing from it are excluded unless their role decides."""
    named = table["image_id"].map(listed.subsets)
    external = table["role"] == "external"
    wrong = table["image_id"][external & named.notna() & ~named.isin(["external", "excluded"])]
    if len(wrong):
        raise DataError(
            f"{listed.path} uses photographs of an external data set {examples(wrong)}: those are only "
            "tested on; delete their rows, or remove the data set from data.external"
        )
    place = place.mask(named.notna() & ~external & (named != "train"), named)
    place = place.mask(external & (named == "excluded"), "excluded")
    return place.mask(named.isna() & (place == _SIDE), "excluded")


def _grades(table: pd.DataFrame, spec: SplitSpec, listed: SplitFile | None) -> pd.Series:
    """Return the grades to use."""
    copies = table["duplicate"].mask(table["role"] == "external")  # they do not vote on other copies
    grades = settle_grades(table.assign(duplicate=copies), spec.disagreeing)
    if listed is not None and listed.grades is not None:
        # The file of a run contains grades as settled by that run.
        given = table["image_id"].map(listed.grades).astype("Int64")
        grades = grades.mask((table["place"] == "test") & grades.notna() & given.notna(), given)
    return grades


def _exclude_relatives(table: pd.DataFrame, obeyed: bool) -> None:
    """Remove photographs from the training side whose group is tested on; column ``why`` has the reason.

    With ``obeyed``, a file made the split: its photographs keep their place unless the group is external.
    """
    place = table["place"]
    on_side = place.isin([_SIDE, "val", "unlabelled"])
    tested = _related(table, place == "test")
    external = _related(table, table["role"] == "external")
    held_out = _related(table, (place == "val") | ((table["role"] == "unlabelled") & table["published"]))
    table["why"] = ""
    _exclude(table, on_side & external, "external")
    if not obeyed:
        _exclude(table, on_side & tested, "tested")
    _exclude(table, (place == _POOL) & (tested | external | held_out), "pool")


def _related(table: pd.DataFrame, to: pd.Series) -> pd.Series:
    """Return which photographs are in a group with one of the given photographs."""
    return table["whole"].isin(table["whole"][to])


def _exclude(table: pd.DataFrame, which: pd.Series, why: str) -> None:
    table.loc[which & (table["place"] != "excluded"), "why"] = why
    table.loc[which, "place"] = "excluded"


def _drawn(table: pd.DataFrame, spec: SplitSpec, listed: SplitFile | None) -> pd.Series:
    """Return the subset of each photograph."""
    place, graded = table["place"], table["grade"].notna()
    on_side = place == _SIDE
    drawn = spec if listed is None or not listed.validates else _without_validation(spec, listed)
    val, train = draw_validation_and_training(table[on_side & graded], drawn)
    validates = table["group"].isin(val)
    subset = place.mask(place.isin([_SIDE, _POOL]), "unlabelled")
    subset = subset.mask(on_side & graded & table["group"].isin(train), "train")
    subset = subset.mask(validates & (subset == "unlabelled"), "excluded")
    subset = subset.mask(validates & on_side & graded, "val")
    return subset.mask(subset.isin(["val", "test", "external"]) & ~graded, "excluded")


def _without_validation(spec: SplitSpec, listed: SplitFile) -> SplitSpec:
    """Return the specification without a validation draw, as the file names the validation photographs."""
    if spec.val_within_fraction:
        raise ConfigError(
            f"{listed.path} names validation photographs, which conflicts with "
            "protocol.val_within_fraction=true: set it to false, or call them train in the file"
        )
    return replace(spec, val_fraction=0.0)


def _check_usable(split: pd.DataFrame, spec: SplitSpec, listed: SplitFile | None) -> None:
    counts = split["subset"].value_counts()
    of_external = split[split["role"] == "external"]
    for name, subsets in of_external.groupby("dataset")["subset"]:
        if "external" not in set(subsets):
            raise DataError(
                f"data.external: {name} has no photograph with a grade and cannot be tested on; use "
                "data.unlabelled to pre-train on ungraded photographs"
            )
    if not counts.get("test", 0):
        raise DataError(_no_test(spec))
    if not counts.get("train", 0):
        raise DataError(
            f"{_setting(spec)} leaves no photograph with a grade to train on: all are in test or validation "
            "groups; test and validate on fewer"
        )
    if listed is not None and listed.validates and not counts.get("val", 0):
        raise DataError(f"no validation photograph named by {_setting(spec)} has a usable grade")
    if spec.val_fraction and not counts.get("val", 0):
        raise DataError(
            f"protocol.val_fraction={spec.val_fraction} leaves no validation photograph; "
            "use a larger one, or 0 for none"
        )


def _no_test(spec: SplitSpec) -> str:
    if spec.file is not None:
        return f"{_setting(spec)} names no test photograph with a grade; add some"
    if spec.fold == PUBLISHED:
        return "fold=published: no photograph of the published test set has a grade; use fold=0"
    return f"{_setting(spec)} of folds={spec.folds} has no test photograph; use fewer folds"


def _setting(spec: SplitSpec) -> str:
    return f"split.file={spec.file}" if spec.file is not None else f"fold={spec.fold}"


def settle_grades(table: pd.DataFrame, how: Disagreeing) -> pd.Series:
    """Settle the grades of copies that disagree.

    The method "drop" removes the grades of all copies. The method "keep_one" keeps the grade of the first by
    image_id, or only those of untouched copies if there are any. The method "majority" gives all graded
    copies the grade of more than half of them; if there is none, all grades are removed.

    Args:
        table: One row per photograph with columns image_id, duplicate, grade, and untouched (takes part in
            the vote but keeps its grade).
        how: The method.
    """
    grades = table["grade"].copy()
    for _, copies in table[disagreeing_copies(table) & table["grade"].notna()].groupby("duplicate"):
        free = copies.index[~copies["untouched"]]
        winner, votes = Counter(copies["grade"]).most_common(1)[0]
        if how == "majority" and 2 * votes > len(copies):
            grades.loc[free] = winner
            continue
        if how == "keep_one" and not copies["untouched"].any():
            free = free.drop(copies.sort_values("image_id").index[0])
        grades.loc[free] = pd.NA
    return grades
