"""Which pairs of photographs are worth a closer look."""

from collections.abc import Iterator

import numpy as np

from drgrade.data.duplicates.features import Floats, Ints, parities, turned

LEAST_SCORE = 0.65
"""Least correlation of two descriptors: copies have 0.8 or more, and one other pair in 10^5 has 0.65."""

MOST_PER_PHOTOGRAPH = 100
"""Of one photograph's pairs with those that follow it, so many of the best are looked at.

Copies stay connected, as each is still paired with a later one; memory and time stay bounded where one
photograph is there a thousand times.
"""

_Turns = tuple[int, int, int, int]

_BLOCK = 2048  # photographs; the scores of a block take 16 MB

_FAMILIES = ((0, (0, 4, 6, 2)), (5, (5, 3, 1, 7)))
"""Photographs as they are, and transposed (turn 5): the turns by which these are laid as they are, mirrored
left to right, mirrored upside down, and both."""


def candidates(descriptors: Floats) -> tuple[Ints, Ints, Ints]:
    """Find the pairs that may be copies.

    All pairs are scored for all 8 ways to lay the second, in blocks.

    Args:
        descriptors: float32 (N, D), see :func:`~drgrade.data.duplicates.features.descriptor`.

    Returns:
        The first photograph of each pair, the second (first < second), and the ``turn`` that lays the second
        like the first; each int64 (P,), ordered by first and second.
    """
    if len(descriptors) == 0:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    families = [(turned(descriptors, base), turns) for base, turns in _FAMILIES]
    found = [
        _best(*_block_pairs(descriptors, families, start)) for start in range(0, len(descriptors), _BLOCK)
    ]
    first, second, turn = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, turn


def _block_pairs(
    descriptors: Floats, families: list[tuple[Floats, _Turns]], start: int
) -> tuple[Ints, Ints, Ints, Floats]:
    """All pairs over the least score of which the first is in the block: first, second, turn, score."""
    rows = descriptors[start : start + _BLOCK]
    parts = []
    for other in range(start, len(descriptors), _BLOCK):
        for laid, turns in families:
            for i, j, turn, score in _scored(rows, laid[other : other + _BLOCK], turns):
                later = i + start < j + other
                parts.append((i[later] + start, j[later] + other, turn[later], score[later]))
    first, second, turn, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, turn, score


def _scored(rows: Floats, columns: Floats, turns: _Turns) -> Iterator[tuple[Ints, Ints, Ints, Floats]]:
    """Pairs of a block over the least score, for no, either or both mirror images of the columns.

    The score is a sum over the four parities of the spectrum, in which mirror images have other signs: one
    matrix product does for four.
    """
    even, across, down, both = (rows[:, part] @ columns[:, part].T for part in parities())
    none, left_right, upside_down, half_turn = turns
    even, across = even + across, even - across
    down, both = down + both, down - both
    for kept, changing, with_plus, with_minus in (
        (even, down, none, upside_down),
        (across, both, left_right, half_turn),
    ):
        scores = np.abs(changing)
        scores += kept
        i, j = np.nonzero(scores >= LEAST_SCORE)
        yield i, j, np.where(changing[i, j] >= 0, with_plus, with_minus), scores[i, j]


def _best(first: Ints, second: Ints, turn: Ints, score: Floats) -> tuple[Ints, Ints, Ints]:
    """Keep the best turn of each pair, and the best pairs of each first photograph."""
    order = np.lexsort((turn, -score, second, first))
    first, second, turn, score = first[order], second[order], turn[order], score[order]
    best_turn = np.ones(len(first), bool)
    best_turn[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    first, second, turn, score = first[best_turn], second[best_turn], turn[best_turn], score[best_turn]
    order = np.lexsort((second, -score, first))
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first)) - np.searchsorted(first, first)
    kept = rank < MOST_PER_PHOTOGRAPH
    return first[kept], second[kept], turn[kept]
