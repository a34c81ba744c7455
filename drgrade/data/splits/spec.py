"""Specification of a split, and settlement of grades that disagree between copies."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from drgrade.errors import ConfigError, check_range

SUBSETS = ("train", "unlabelled", "val", "test", "external", "excluded")
"""Subsets of a split.

``unlabelled``: on the training side, grade not used. ``external``: of a data set for testing only.
``excluded``: not used, because its group is in the test or validation set."""

ROLES = ("labelled", "unlabelled", "external")
"""Use of a data set: to be split, for pre-training only, or for testing only."""

PUBLISHED: Literal["published"] = "published"

Disagreeing = Literal["drop", "keep_one", "majority"]


@dataclass(frozen=True)
class SplitSpec:
    """Specification of a split.

    Attributes:
        fold: Test fold, 0 to ``folds - 1``, or "published" for the published test set. With a ``file`` of
            folds, the number of the test fold in the file.
        folds: Number of test folds, at least 2.
        label_fraction: Share of the training labels that may be used, in (0, 1].
        val_fraction: Share of the labels of the training side used for validation, in [0, 1).
        val_within_fraction: Take validation labels from the label fraction instead of before it.
        shots: Number of labelled training photographs per grade (few-shot), instead of ``label_fraction``.
        seed: Seed of test fold, validation and labels, independent of the training seed.
        label_seed: Further seed of the drawn labels alone; 0 is the draw of ``seed``.
        disagreeing: Treatment of copies of a photograph with different grades: "drop" all grades, "keep_one"
            (the first by image_id), or the strict "majority" for all.
        file: CSV file with the split, instead of ``fold``; see :mod:`drgrade.data.splits.files`.
    """

    fold: int | Literal["published"] = 0
    folds: int = 5
    label_fraction: float = 1.0
    val_fraction: float = 0.05
    val_within_fraction: bool = False
    shots: int | None = None
    seed: int = 0
    label_seed: int = 0
    disagreeing: Disagreeing = "drop"
    file: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} is not in (0, 1]; 10 % is label_fraction=0.1"
            )
        check_range("[0, 1)", "protocol.", val_fraction=self.val_fraction)
        if self.shots is not None:
            self._check_shots(self.shots)
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds}: cross validation needs at least 2 folds")
        for name in ("seed", "label_seed"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"split.{name}={value} is negative")
        if self.disagreeing not in get_args(Disagreeing):
            raise ConfigError(
                f"split.disagreeing={self.disagreeing!r} is not one of {', '.join(get_args(Disagreeing))}"
            )
        self._check_fold()

    def _check_shots(self, shots: int) -> None:
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
            raise ConfigError(
                f"protocol.shots={shots} is not a whole number of at least 1; use null for label_fraction"
            )
        if self.label_fraction != 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} and protocol.shots={shots} exclude each other: leave "
                "label_fraction at 1.0, or set protocol.shots=null"
            )
        if self.val_within_fraction:
            raise ConfigError(
                f"protocol.val_within_fraction=true cannot be used with protocol.shots={shots}, as all shots "
                "are trained on; protocol.val_fraction=0 uses no other label"
            )

    def _check_fold(self) -> None:
        if isinstance(self.fold, str):
            if self.fold != PUBLISHED:
                raise ConfigError(f"fold={self.fold!r} is neither a number nor 'published'")
        elif self.file is None and self.fold not in range(self.folds):
            raise ConfigError(
                f"fold={self.fold} is not in 0..{self.folds - 1}: folds are counted from 0 "
                f"(folds={self.folds})"
            )


def disagreeing_copies(table: pd.DataFrame) -> pd.Series:
    """Return which photographs, graded or not, are in a cluster of copies with several grades.

    Args:
        table: Columns duplicate (missing: no copies) and grade (missing: none).
    """
    graded = table[table["duplicate"].notna() & table["grade"].notna()]
    grades = graded.groupby("duplicate")["grade"].nunique()
    return table["duplicate"].isin(grades.index[grades > 1])


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


@dataclass(frozen=True)
class SplitFile:
    """Split file matched with photographs.

    Attributes:
        path: The file.
        subsets: Subset of each photograph in the file. In a file of folds, "test" for the test fold and
            "train" for the others.
        grades: Values of the column ``grade``; None without that column.
        unknown: Names in the file that no photograph has.
        folds: Folds in the file; empty if it names subsets.
    """

    path: Path
    subsets: dict[str, str]
    grades: dict[str, int] | None
    unknown: tuple[str, ...]
    folds: tuple[int, ...] = ()

    @property
    def validates(self) -> bool:
        """True if the file names validation photographs."""
        return "val" in self.subsets.values()
