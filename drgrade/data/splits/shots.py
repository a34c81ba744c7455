"""Few-shot labels: so many photographs of each grade, whole groups, fewer inside more."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def shot_groups(groups: Iterable[tuple[str, int]], shots: int, seed: list[int]) -> set[str]:
    """Choose groups until every grade has its shots, or has no group left.

    The number wanted of every grade rises from 1 to ``shots``, and groups are taken as they are needed: so
    the choice for a smaller number is inside that for a larger one. Of the groups that have a grade which is
    wanted, one is taken that adds least beyond what is wanted; among equal ones a seeded shuffle decides.
    With photographs that are their own groups every grade gets exactly its shots, or all that there are.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        shots: Photographs wanted of each grade, at least 1.
        seed: Seeds the shuffle.

    Returns:
        The groups taken.
    """
    names, contents = _contents(groups, seed)
    total = contents.sum(axis=0)
    taken, have = np.zeros(len(names), bool), np.zeros_like(total)
    for wanted in range(1, min(shots, int(total.max(initial=0))) + 1):
        goal = np.minimum(wanted, total)
        for grade in range(len(total)):
            while have[grade] < goal[grade]:
                able = np.flatnonzero(~taken & (contents[:, grade] > 0))
                beyond = np.maximum(have + contents[able] - goal, 0).sum(axis=1)
                best = able[beyond.argmin()]
                taken[best] = True
                have += contents[best]
    return {name for name, chosen in zip(names, taken, strict=True) if chosen}


def _contents(groups: Iterable[tuple[str, int]], seed: list[int]) -> tuple[list[str], Counts]:
    """Groups in a random order that does not depend on the input's, and (groups, grades) photographs."""
    found = sorted(groups)
    names = sorted({group for group, _ in found})
    grades = sorted({grade for _, grade in found})
    contents = np.zeros((len(names), len(grades)), np.int64)
    rows, columns = ({each: place for place, each in enumerate(known)} for known in (names, grades))
    for group, grade in found:
        contents[rows[group], columns[grade]] += 1
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[place] for place in order], contents[order]
