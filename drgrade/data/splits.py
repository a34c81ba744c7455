"""Which photograph is used for what: test folds, validation, and nested label fractions.

One primitive serves all three: an order of the groups in which *every* prefix holds each grade in proportion
(:func:`proportional_order`). Folds are consecutive pieces of that order, the validation set is a prefix of
it, and the label
fraction ``f`` is the prefix that ends at ``f``; so 5 % is inside 10 % is inside 25 % by construction.

A split depends on the photographs, their groups and grades, and ``split.seed``; never on the training seed,
on the
number of processes, or on the order of rows in a file.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.errors import ConfigError, DataError

SUBSETS = ("train", "unlabelled", "val", "test", "excluded")
"""``unlabelled``: training side, its grade is not to be used. ``excluded``: its group is tested
or validated on, but it has no grade, or is not in the published test set."""

PUBLISHED: Literal["published"] = "published"

_Times = dict[Hashable, float]
Counts = npt.NDArray[np.float64]

_STEPS = 4000
"""Resolution of a fraction: one part in 4000. It divides 5, 10, 25 and 50 %."""

_KIND_WEIGHT = 0.1
"""Without it single images, which correct best, would all be taken first and leave the pairs to the end."""


@dataclass(frozen=True)
class SplitSpec:
    """How to split.

    Attributes:
        fold: Test fold, 0 to ``folds - 1``, or ``"published"`` for the test set that came with the data.
        folds: Number of test folds, at least 2.
        label_fraction: Share of the training labels that may be used, in (0, 1].
        val_fraction: Share of the labels of the training side that validate, in [0, 1).
        val_within_fraction: Take the validation labels out of the label fraction, instead of before it.
        seed: Seed of the split; not the training seed.
    """

    fold: int | Literal["published"] = 0
    folds: int = 5
    label_fraction: float = 1.0
    val_fraction: float = 0.05
    val_within_fraction: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} is not in (0, 1]; 10 % is label_fraction=0.1"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"protocol.val_fraction={self.val_fraction} is not in [0, 1)")
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds}: cross validation needs at least 2 folds")
        if self.seed < 0:
            raise ConfigError(f"split.seed={self.seed} is negative")
        if isinstance(self.fold, str):
            if self.fold != PUBLISHED:
                raise ConfigError(f"fold={self.fold!r} is neither a number nor 'published'")
        elif self.fold not in range(self.folds):
            raise ConfigError(
                f"fold={self.fold} is not in 0..{self.folds - 1}: folds are counted from 0 "
                f"(folds={self.folds})"
            )


def make_split(manifest: pd.DataFrame, spec: SplitSpec) -> pd.DataFrame:
    """Assign every photograph to one subset.

    Args:
        manifest: Columns image_id, grade (missing for ungraded), patient_id, split; one row a photograph.
        spec: How to split.

    Returns:
        Columns image_id, group, grade, subset (one of :data:`SUBSETS`), in the order of the manifest. No
        group is in
        two of train/unlabelled, val and test; nor, as fractions are of groups, in both train and unlabelled,
        unless a photograph of it
        has no grade.

    Raises:
        DataError: If a subset that is needed would be empty, or the data have no published split.
    """
    table = _without_subsets(manifest)
    graded = table[table["grade"].notna()]
    if graded.empty:
        raise DataError(
            "no photograph has a grade: nothing to train or test on; "
            "pre-training alone works: +experiment=rotation_pretrain"
        )
    test = _published_test(manifest, table) if spec.fold == PUBLISHED else _fold_groups(graded, spec)
    side = graded[~graded["group"].isin(test)]
    val, train = _validation_and_training(side, spec)
    table["subset"] = [
        _subset(group, pd.notna(grade), test, val, train)
        for group, grade in zip(table["group"], table["grade"], strict=True)
    ]
    if spec.fold == PUBLISHED:
        # The other eye of a tested patient, published for training: neither trained on nor added to the test.
        enlarging = (table["subset"] == "test").to_numpy() & ~_in_published_test(manifest)
        table.loc[enlarging, "subset"] = "excluded"
    _check_usable(table, spec)
    return table.reset_index(drop=True)


def ungraded_split(manifest: pd.DataFrame, spec: SplitSpec) -> pd.DataFrame:
    """Sides of photographs of which none has a grade: they can be pre-trained on.

    Args:
        manifest: As for :func:`make_split`.
        spec: Of which only ``fold`` matters.

    Returns:
        As :func:`make_split`: unlabelled, but for the published test set, which is excluded.

    Raises:
        DataError: If the data have no published split and ``fold`` asks for it.
    """
    table = _without_subsets(manifest)
    test = _published_test(manifest, table) if spec.fold == PUBLISHED else set()
    table["subset"] = np.where(table["group"].isin(test), "excluded", "unlabelled")
    return table.reset_index(drop=True)


def groups_of(manifest: pd.DataFrame) -> pd.Series:
    """Name the group of each photograph: its patient where known, else the photograph itself.

    Args:
        manifest: Columns image_id and patient_id (may be missing); a column ``group`` wins where it has a
                value.

    Returns:
        Strings, aligned with the manifest.
    """
    own = "image:" + manifest["image_id"].astype("string")
    group = ("patient:" + manifest["patient_id"].astype("string")).fillna(own)
    if "group" in manifest:
        group = manifest["group"].astype("string").fillna(group)
    return group.astype(str).rename("group")


def _without_subsets(manifest: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "image_id": manifest["image_id"].astype(str),
        "group": groups_of(manifest),
        "grade": manifest["grade"].astype("Int64"),
    }
    return pd.DataFrame(columns)


def split_hash(split: pd.DataFrame) -> str:
    """SHA-256 of a split, independent of the order of its rows.

    Args:
        split: What :func:`make_split` returned, or a ``split.csv`` read back.

    Returns:
        64 hexadecimal digits.
    """
    columns = split[["image_id", "group", "subset"]].astype(str)
    grades = ["" if pd.isna(grade) else str(int(grade)) for grade in split["grade"]]
    rows = sorted(zip(columns["image_id"], columns["group"], grades, columns["subset"], strict=True))
    return hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()


def proportional_order(
    groups: Iterable[tuple[str, int]], seed: Sequence[int], *, cover: bool = False
) -> _Times:
    """Order groups so that every prefix holds every grade in proportion.

    Each group gets a time in [0, 1]; the prefix at ``t`` is all groups with time <= ``t``. Time runs from 0
    to 1, and a group is
    taken whenever that brings the grades' counts nearer (in squares) to their share ``t * total``. Groups of
    one image then
    stay within half an image of it at every ``t``; groups of several images with different grades within
    about one.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        seed: Seeds the order among groups with the same grades.
        cover: Take one image of every grade at time 0, so that a rare grade is not lost at a small fraction.
            It is still within one
            image of proportional.

    Returns:
        Time of each group.
    """
    contents: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for group, grade in groups:
        contents[group][grade] += 1
    if not contents:
        return {}
    kinds = _shuffled_kinds(contents, seed)
    grades = sorted({grade for counts in contents.values() for grade in counts})
    shape = np.array([[dict(kind).get(grade, 0) for grade in grades] for kind in kinds], dtype=float)
    return _sweep_times(list(kinds.values()), shape, cover)


def _shuffled_kinds(
    contents: dict[str, Counter[int]], seed: Sequence[int]
) -> dict[tuple[tuple[int, int], ...], list[str]]:
    """Collect groups with the same grades, in a random order that does not depend on the input's."""
    kinds: defaultdict[tuple[tuple[int, int], ...], list[str]] = defaultdict(list)
    for group in sorted(contents):
        kinds[tuple(sorted(contents[group].items()))].append(group)
    rng = np.random.default_rng(list(seed))
    return {kind: [kinds[kind][i] for i in rng.permutation(len(kinds[kind]))] for kind in sorted(kinds)}


def _sweep_times(members: list[list[str]], shape: Counts, cover: bool) -> _Times:
    """Let time run and take groups while that lowers the squared deviation.

    Args:
        members: Groups of each kind, in the order in which they are taken.
        shape: (kinds, grades) images of each grade in one group of each kind.
        cover: See :func:`proportional_order`.
    """
    size = np.array([len(groups) for groups in members], dtype=float)
    total = size @ shape
    taken = np.zeros(len(members))
    times: _Times = {}
    for step in range(_STEPS + 1):
        t = step / _STEPS
        while (kind := _best_kind(taken, size, total, shape, t, cover)) is not None:
            times[members[kind][int(taken[kind])]] = t
            taken[kind] += 1
    return times


def _best_kind(
    taken: Counts, size: Counts, total: Counts, shape: Counts, t: float, cover: bool
) -> int | None:
    """Kind of group whose taking lowers the cost most; None if none does (at t = 1: if none is left)."""
    count = taken @ shape
    grade_gap, kind_gap = count - t * total, taken - t * size
    # Taking kind k adds shape[k] to the grades' gaps and 1 to its own: the change of the sum of squares,
    # written out.
    gain = -(2 * shape @ grade_gap + (shape**2).sum(axis=1)) - _KIND_WEIGHT * (2 * kind_gap + 1)
    if cover and t == 0:
        # By grades that are new, not by deviation: a grade that comes only in pairs would wait for its half.
        gain = ((shape > 0) & (count == 0)).sum(axis=1) / shape.sum(axis=1)
    gain = np.where(taken < size, gain, -np.inf)
    best = int(gain.argmax())
    return best if gain[best] > (-np.inf if t == 1 else 1e-9) else None


def _prefix(times: _Times, fraction: float) -> set[Hashable]:
    return {group for group, time in times.items() if time <= fraction + 1e-9}


def _order(photographs: pd.DataFrame, *seed: int, cover: bool = False) -> _Times:
    pairs = zip(photographs["group"], photographs["grade"], strict=True)
    return proportional_order(((str(group), int(grade)) for group, grade in pairs), seed, cover=cover)


def _fold_groups(graded: pd.DataFrame, spec: SplitSpec) -> set[Hashable]:
    times = _order(graded, spec.seed, 0)
    assert isinstance(spec.fold, int)
    start, end = spec.fold / spec.folds, (spec.fold + 1) / spec.folds
    return {group for group, time in times.items() if start < time <= end or (start == time == 0)}


def _in_published_test(manifest: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return (manifest["split"].astype("string") == "test").fillna(False).to_numpy(dtype=bool)


def _published_test(manifest: pd.DataFrame, table: pd.DataFrame) -> set[Hashable]:
    test = table["group"][_in_published_test(manifest)]
    if test.empty:
        raise DataError("fold=published: this data set has no published test set; use fold=0 (of folds=5)")
    return set(test)


def _validation_and_training(side: pd.DataFrame, spec: SplitSpec) -> tuple[set[Hashable], set[Hashable]]:
    """Groups of the training side that validate, and those whose labels train."""
    if spec.val_within_fraction:
        side = side[side["group"].isin(_prefix(_order(side, spec.seed, 2, cover=True), spec.label_fraction))]
        val = _prefix(_order(side, spec.seed, 1), spec.val_fraction) if spec.val_fraction else set()
        return val, set(side["group"]) - val
    val = _prefix(_order(side, spec.seed, 1), spec.val_fraction) if spec.val_fraction else set()
    rest = side[~side["group"].isin(val)]
    return val, _prefix(_order(rest, spec.seed, 2, cover=True), spec.label_fraction)


def _subset(group: str, graded: bool, test: set[Hashable], val: set[Hashable], train: set[Hashable]) -> str:
    for name, groups in (("test", test), ("val", val)):
        if group in groups:
            return name if graded else "excluded"
    return "train" if graded and group in train else "unlabelled"


def _check_usable(split: pd.DataFrame, spec: SplitSpec) -> None:
    counts = split["subset"].value_counts()
    if not counts.get("test", 0) and spec.fold == PUBLISHED:
        raise DataError("fold=published: no photograph of the published test set has a grade; use fold=0")
    if not counts.get("test", 0):
        raise DataError(f"fold={spec.fold} of folds={spec.folds} has no test photograph; use fewer folds")
    if not counts.get("train", 0):
        raise DataError(
            f"label_fraction={spec.label_fraction} leaves no training photograph; use a larger fraction"
        )
    if spec.val_fraction and not counts.get("val", 0):
        raise DataError(
            f"protocol.val_fraction={spec.val_fraction} leaves no validation photograph; "
            "use a larger one, or 0 for none"
        )
