"""The words of a split, and its settings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from drgrade.errors import ConfigError

_EXAMPLES = 3


@dataclass(frozen=True)
class Remark:
    """One thing that a reader of the results should know about the split.

    Attributes:
        name: What is counted, as a key for ``metrics.json``: ``copies_of_test``.
        count: How many.
        text: A sentence.
        serious: Whether results may be wrong because of it: to be shown as a warning.
    """

    name: str
    count: int
    text: str
    serious: bool = False


def examples(names: Iterable[str]) -> str:
    """The first few of some names in alphabetical order, in brackets."""
    found = sorted(names)
    return f"({', '.join(found[:_EXAMPLES])}{', ...' if len(found) > _EXAMPLES else ''})"


def number(count: int, noun: str = "photograph") -> str:
    """``1 photograph``, ``2 photographs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


SUBSETS = ("train", "unlabelled", "val", "test", "external", "excluded")
"""``unlabelled``: training side, its grade is not to be used. ``external``: of a data set that is only tested
on. ``excluded``: neither trained nor tested on, because its group is tested or validated on."""

ROLES = ("labelled", "unlabelled", "external")
"""What a data set is for: to be split; for pre-training only, whatever its grades; for testing only."""

PUBLISHED: Literal["published"] = "published"

Disagreeing = Literal["drop", "keep_one", "majority"]


@dataclass(frozen=True)
class SplitSpec:
    """How to split.

    Attributes:
        fold: Test fold, 0 to ``folds - 1``, or ``"published"`` for the test set that came with the data. With
            a ``file`` of folds, the file's number of the test fold.
        folds: Number of test folds, at least 2.
        label_fraction: Share of the training labels that may be used, in (0, 1].
        val_fraction: Share of the labels of the training side that validate, in [0, 1).
        val_within_fraction: Take the validation labels out of the label fraction, instead of before it.
        shots: Labelled training photographs of each grade (few-shot), instead of a fraction; None: the
            fraction. See :mod:`drgrade.data.splits.draw`.
        seed: Seed of the split; not the training seed.
        disagreeing: What becomes of the grades of copies of one photograph that are graded differently:
            ``drop`` all, ``keep_one`` (the first by image_id), or the strict ``majority`` for all.
        file: CSV file with the split, instead of ``fold``; see :mod:`drgrade.data.splits.files`.
    """

    fold: int | Literal["published"] = 0
    folds: int = 5
    label_fraction: float = 1.0
    val_fraction: float = 0.05
    val_within_fraction: bool = False
    shots: int | None = None
    seed: int = 0
    disagreeing: Disagreeing = "drop"
    file: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} is not in (0, 1]; 10 % is label_fraction=0.1"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"protocol.val_fraction={self.val_fraction} is not in [0, 1)")
        if self.shots is not None:
            self._check_shots(self.shots)
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds}: cross validation needs at least 2 folds")
        if self.seed < 0:
            raise ConfigError(f"split.seed={self.seed} is negative")
        if self.disagreeing not in get_args(Disagreeing):
            raise ConfigError(
                f"split.disagreeing={self.disagreeing!r} is not one of {', '.join(get_args(Disagreeing))}"
            )
        self._check_fold()

    def _check_shots(self, shots: int) -> None:
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
            raise ConfigError(
                f"protocol.shots={shots} is not a whole number of at least 1; null: by label_fraction"
            )
        if self.label_fraction != 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} with protocol.shots={shots}: labels are chosen by one "
                "of them; leave label_fraction at 1.0, or set protocol.shots=null"
            )
        if self.val_within_fraction:
            raise ConfigError(
                f"protocol.val_within_fraction=true with protocol.shots={shots}: all shots train; "
                "protocol.val_fraction=0 uses no other label"
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
    """Whether the cluster of a photograph has several grades.

    Args:
        table: Columns duplicate (missing: no copies) and grade (missing: none).

    Returns:
        Booleans, aligned with the table; true also for ungraded photographs of such a cluster.
    """
    graded = table[table["duplicate"].notna() & table["grade"].notna()]
    grades = graded.groupby("duplicate")["grade"].nunique()
    return table["duplicate"].isin(grades.index[grades > 1])


def settle_grades(table: pd.DataFrame, how: Disagreeing) -> pd.Series:
    """Grades after disagreement between copies is settled.

    ``drop``: all copies lose their grade. ``keep_one``: the first by image_id keeps its grade, the others
    lose theirs; if some are untouched, those are kept and no other. ``majority``: all graded copies get the
    grade that more than half of them have; if there is none, all lose theirs.

    Args:
        table: Columns image_id, duplicate, grade, and untouched: votes, but keeps its grade whatever the
            others have. One row a photograph.
        how: What to do.

    Returns:
        Int64, aligned with the table.
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
