"""Rare grades: exchange groups until no grade is missing from a part that it could be in.

A proportional order is within about one image of proportional, which for a grade of a few images in groups of
several can be none. Parts (test folds; validation and the rest) say which grades they want; where one is
missing, groups are moved between parts, as few as possible.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrade.data.splits.order import Counts, Kinds

Whole = npt.NDArray[np.int64]

MAX_STATES = 10_000
"""Assignments that a search for a chain of moves looks at, a few tenths of a second. Small cases are searched
completely by that; in large ones a single move is nearly always enough."""

_TRAIN_FIRST = 10
"""What a grade in training is worth, against 1 in validation: more than all five grades there."""


@dataclass(frozen=True)
class Wish:
    """What the parts should hold.

    Attributes:
        worth: (grades, parts) worth of a grade's being in a part.
        goal: (grades,) sum of worths that satisfies a grade; more is not better.
        share: (parts,) share of all images that a part should have.
    """

    worth: Whole
    goal: Whole
    share: Counts


def wish_for_folds(kinds: Kinds, folds: int) -> Wish:
    """Each grade in every fold, or, of a grade in fewer groups than folds, no two groups in one fold."""
    groups = _groups_of_grades(kinds)
    worth = np.ones((len(groups), folds), np.int64)
    return Wish(worth, np.minimum(groups, folds), np.full(folds, 1 / folds))


def wish_for_validation(kinds: Kinds, fraction: float) -> Wish:
    """Parts 0 (the rest) and 1 (validation).

    Every grade in the rest, before anything else; a grade of two groups or more in validation too if its
    share of the groups there is over one half.
    """
    groups = _groups_of_grades(kinds)
    validates = (groups >= 2) & (fraction * groups > 0.5 + 1e-9)
    worth = np.stack([np.full(len(groups), _TRAIN_FIRST), validates.astype(np.int64)], axis=1)
    return Wish(worth, worth.sum(axis=1), np.array([1 - fraction, fraction]))


def keep_rare_grades(parts: dict[str, int], kinds: Kinds, wish: Wish) -> dict[str, int]:
    """Move groups between parts until the wish is fulfilled, or no way to do better is found.

    Always fulfilled where groups have one grade each (of a grade that a fold misses another fold has two
    groups, of which one can move without loss). Where groups of several grades stand in each other's way, the
    best that searches of :data:`MAX_STATES` assignments each find.

    Args:
        parts: Part of each group.
        kinds: What is in the groups.
        wish: What the parts should hold.

    Returns:
        Part of each group; the same where nothing was missing.
    """
    counts = np.zeros((len(kinds.members), len(wish.share)), np.int64)
    for kind, members in enumerate(kinds.members):
        np.add.at(counts[kind], [parts[group] for group in members], 1)
    search, moved = _Search(kinds, wish), dict(parts)
    while chain := search.improvement(counts):
        for kind, source, target in chain:
            counts[kind, source] -= 1
            counts[kind, target] += 1
            # The last one taken: of a kind all are alike.
            group = next(name for name in reversed(kinds.members[kind]) if moved[name] == source)
            moved[group] = target
    return moved


Move = tuple[int, int, int]
"""A group of a kind goes from one part to another: (kind, source, target)."""


class _Search:
    """Looks for the shortest chain of moves that brings the parts nearer to the wish."""

    def __init__(self, kinds: Kinds, wish: Wish) -> None:
        self._holds, self._shape, self._wish = kinds.holds.astype(np.int64), kinds.shape, wish
        sizes = np.array([len(members) for members in kinds.members], dtype=float)
        self._target = np.outer(wish.share, sizes @ kinds.shape)
        self._budget = 0

    def improvement(self, counts: Whole) -> list[Move]:
        """Breadth first from ``counts`` (kinds, parts); empty if nothing is missing or nothing better found.

        Each step moves a group of a grade that is missing somewhere. That is enough to reach any better
        assignment: of a grade that it serves better, at least one group is not yet where it is there.
        """
        self._budget, start = MAX_STATES, int(self._missing(counts).sum())
        level: list[tuple[Whole, list[Move]]] = [(counts, [])] if start else []
        seen = {counts.tobytes()}
        while level and self._budget > 0:
            following = []
            for state, chain in level:
                for move, moved in self._moves(state, seen):
                    following.append((self._cost(moved), moved, [*chain, move]))
                if self._budget <= 0:
                    break
            following.sort(key=lambda found: found[0])
            if following and following[0][0][0] < start:
                return following[0][2]
            level = [(state, chain) for _, state, chain in following]
        return []

    def _moves(self, state: Whole, seen: set[bytes]) -> Iterator[tuple[Move, Whole]]:
        """All moves of a group with a grade that is missing somewhere, to assignments not seen before."""
        missing = self._missing(state) > 0
        for kind in np.flatnonzero(self._holds[:, missing].any(axis=1)):
            for source in np.flatnonzero(state[kind]):
                for target in range(state.shape[1]):
                    moved = state.copy()
                    moved[kind, source] -= 1
                    moved[kind, target] += 1
                    if (key := moved.tobytes()) not in seen:
                        seen.add(key)
                        self._budget -= 1
                        yield (int(kind), int(source), target), moved

    def _missing(self, counts: Whole) -> Whole:
        """(grades,) worth that is missing."""
        covered = (self._holds.T @ counts) > 0
        missing: Whole = np.maximum(self._wish.goal - (covered * self._wish.worth).sum(axis=1), 0)
        return missing

    def _cost(self, counts: Whole) -> tuple[int, float]:
        gap = counts.T @ self._shape - self._target
        return int(self._missing(counts).sum()), float((gap**2).sum())


def _groups_of_grades(kinds: Kinds) -> Whole:
    """(grades,) number of groups that hold each grade."""
    sizes = np.array([len(members) for members in kinds.members], np.int64)
    groups: Whole = sizes @ kinds.holds.astype(np.int64)
    return groups
