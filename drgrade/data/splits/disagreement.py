"""Copies of one photograph that were graded differently."""

from collections import Counter

import pandas as pd

from drgrade.data.splits.spec import Disagreeing


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
