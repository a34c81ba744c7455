"""Search for duplicates: retrieval of candidate pairs and their verification."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drgrade.data.duplicates.features import (
    LEAST_DIAMETER,
    Floats,
    Ints,
    distinctive_descriptor,
    parities,
    turn_picture,
    turned,
)
from drgrade.data.duplicates.thumbnail import THUMBNAIL_SIZE
from drgrade.data.duplicates.verification import CopyMatch, Portrait, compare
from drgrade.progress import track

LEAST_SCORE = 0.65
"""Smallest correlation of descriptors of candidates: copies have 0.8 or more, 1 in 10^5 other pairs 0.65."""

MOST_PER_PHOTOGRAPH = 100
"""Largest number of candidates of a photograph among the following ones, the best first.

Clusters stay connected, because each copy is still paired with a later one, and memory and time are bounded
if a photograph occurs a thousand times.
"""

_Turns = tuple[int, int, int, int]

_BLOCK = 2048  # photographs; the scores of a block take 16 MB

_FAMILIES = ((0, (0, 4, 6, 2)), (5, (5, 3, 1, 7)))
"""Base orientation (none, or transposition: turn 5), and the turns that result if it is not mirrored,
mirrored left to right, upside down, and both."""


def candidates(descriptors: Floats) -> tuple[Ints, Ints, Ints]:
    """Find pairs that may be copies, by scoring all pairs in all 8 orientations of the second.

    Args:
        descriptors: float32 (N, D), see :func:`~drgrade.data.duplicates.features.descriptor`.

    Returns:
        First and second photograph of each pair (first < second) and the ``turn`` that gives the second the
        orientation of the first; each int64 (P,), ordered by first and second.
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
    """Return pairs above the smallest score whose first is in the block: first, second, turn, score."""
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
    """Yield pairs of a block above the smallest score, for all mirror images of the columns.

    The score is a sum over the four parities of the spectrum with signs that depend on the mirror image, so
    one matrix product serves four orientations.
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
    """Keep the best turn of each pair and the best pairs of each first photograph."""
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


DUPLICATES_VERSION = 1
"""Raised whenever the same photographs would give other pairs, so that older results are not used."""

IDENTICAL, NEAR = "identical", "near"

MOST_LISTED = 50
"""Files that occur more often are listed as pairs with their first row only, instead of N²/2 pairs."""

_COLUMNS = {
    "first": "int64",
    "second": "int64",
    "kind": "str",
    "similarity": "float64",
    "mirrored": "bool",
    "turned": "int64",
    "scale": "float64",
    "shift": "float64",
}
_PORTRAITS = 512  # in memory, 0.1 MB each

_T = TypeVar("_T")
_Pair = tuple[int, int, str, float, bool, int, float, float]


def find_duplicates(
    thumbnails: npt.NDArray[np.uint8],
    hashes: Sequence[str],
    diameters: npt.NDArray[np.floating],
    progress: bool = False,
) -> pd.DataFrame:
    """Find identical files and copies of one exposure.

    A copy may be re-encoded, resized, slightly cropped, slightly brighter or darker, mirrored, and turned by
    quarters. The two eyes of a patient and two exposures of one eye are not copies. Photographs that show too
    little detail are compared by their bytes only. The result does not depend on the order of the
    photographs, except for files that occur more than :data:`MOST_LISTED` times.

    Args:
        thumbnails: uint8 (N, T, T), see :func:`~drgrade.data.duplicates.thumbnail.make_thumbnail`; may be
            memory-mapped.
        hashes: SHA-256 of each file, N of them.
        diameters: (N,), diameters of the discs in pixels of the original photographs.
        progress: Show progress on stderr.

    Returns:
        One row for each pair, ordered by the first two columns:

        - ``first``, ``second``: row numbers, first < second;
        - ``kind``: ``identical`` (the same bytes) or ``near``;
        - ``similarity``: correlation of the detail, 0..1;
        - ``mirrored``: whether one is the mirror image of the other;
        - ``turned``: 0, 90, 180 or 270: the second, mirrored left to right if ``mirrored`` and then turned
          counter-clockwise by so many degrees, looks like the first;
        - ``scale``: size of the retina on the second thumbnail relative to the first, about 1;
        - ``shift``: shift of its centre as a share of the diameter, about 0.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check(thumbnails, hashes, diameters)
    copies = _copies(hashes)
    rows: list[_Pair] = []
    for of_one in copies:
        rows += [(*pair, IDENTICAL, 1.0, False, 0, 1.0, 0.0) for pair in _pairs_within(of_one)]
    for one, other, turn, match in _near(thumbnails, copies, np.asarray(diameters), progress):
        for row, other_row in product(_listed(copies[one]), _listed(copies[other])):
            rows.append(_near_row(row, other_row, turn, match))
    columns = zip(*rows, strict=True) if rows else [[]] * len(_COLUMNS)
    table = pd.DataFrame(
        {
            name: pd.Series(list(values), dtype=_COLUMNS[name])
            for name, values in zip(_COLUMNS, columns, strict=True)
        }
    )
    return table.sort_values(["first", "second"], ignore_index=True)


def clusters(pairs: pd.DataFrame, count: int) -> Ints:
    """Return the connected components of pairs.

    Args:
        pairs: Rows of the result of :func:`find_duplicates`.
        count: Number of photographs.

    Returns:
        int64 (count,): smallest row number in the cluster of each photograph; its own without duplicates.
    """
    return _smallest_connected(pairs["first"].to_numpy(), pairs["second"].to_numpy(), count)


def _smallest_connected(first: Ints, second: Ints, count: int) -> Ints:
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    return np.asarray(smallest[component], np.int64)


def _check(
    thumbnails: npt.NDArray[np.uint8], hashes: Sequence[str], diameters: npt.NDArray[np.floating]
) -> None:
    expected = (len(hashes), THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    if len(hashes) == 0 == len(thumbnails):
        return
    if thumbnails.shape != expected or thumbnails.dtype != np.uint8:
        raise ValueError(f"thumbnails are {thumbnails.dtype} {thumbnails.shape}, not uint8 {expected}")
    if np.shape(diameters) != expected[:1]:
        raise ValueError(f"{len(hashes)} hashes, but diameters of shape {np.shape(diameters)}")


def _copies(hashes: Sequence[str]) -> list[list[int]]:
    """Return the rows of each file sorted by hash, so that results do not depend on the order of rows."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        rows.setdefault(digest, []).append(row)
    return [rows[digest] for digest in sorted(rows)]


def _listed(of_one: list[int]) -> list[int]:
    return of_one if len(of_one) <= MOST_LISTED else of_one[:1]


def _pairs_within(of_one: list[int]) -> Iterable[tuple[int, int]]:
    if len(of_one) <= MOST_LISTED:
        return combinations(of_one, 2)
    return ((of_one[0], row) for row in of_one[1:])


def _near(
    thumbnails: npt.NDArray[np.uint8],
    copies: list[list[int]],
    diameters: npt.NDArray[np.floating],
    progress: bool,
) -> Iterator[tuple[int, int, int, CopyMatch]]:
    """Find near-duplicates among files: numbers, turn of the second, and match."""
    large = [number for number, rows in enumerate(copies) if diameters[rows[0]] >= LEAST_DIAMETER]
    files, descriptors = _describe(thumbnails, copies, large, progress)
    first, second, turn = candidates(descriptors)
    # By connected photographs, so that those in memory are used again.
    order = np.lexsort((second, first, _smallest_connected(first, second, len(files))[first]))

    @lru_cache(maxsize=_PORTRAITS)
    def portrait(number: int, turn: int) -> Portrait:
        return Portrait.of(turn_picture(thumbnails[copies[files[number]][0]], turn))

    for number in _tracked(order, len(order), "comparing", "pairs of photographs", progress):
        i, j, how = int(first[number]), int(second[number]), int(turn[number])
        match = compare(portrait(i, 0), portrait(j, how))
        if match is not None and match.one_exposure:
            yield files[i], files[j], how, match


def _describe(
    thumbnails: npt.NDArray[np.uint8], copies: list[list[int]], numbers: list[int], progress: bool
) -> tuple[list[int], Floats]:
    """Describe files: the numbers of those that can be told from others, and their descriptors (M, D)."""
    files, descriptors = [], []
    for number in _tracked(numbers, len(numbers), "looking for duplicates of", "photographs", progress):
        spectrum = distinctive_descriptor(thumbnails[copies[number][0]])
        if spectrum is not None:
            files.append(number)
            descriptors.append(spectrum)
    return files, np.stack(descriptors) if descriptors else np.zeros((0, 0), np.float32)


def _tracked(items: Iterable[_T], total: int, doing: str, of: str, progress: bool) -> Iterable[_T]:
    return track(items, total, doing, of) if progress and total else items


def _near_row(row: int, other: int, turn: int, match: CopyMatch) -> _Pair:
    """Put a pair of rows in order.

    That the second turned by k quarters is the first means that the first turned by -k is the second; but a
    mirror image that is then turned is its own inverse.
    """
    mirrored, degrees, scale = turn >= 4, 90 * (turn % 4), match.scale
    similarity = min(max(match.similarity, 0.0), 1.0)
    if row > other:
        row, other, scale = other, row, 1 / scale
        degrees = degrees if mirrored else -degrees % 360
    return row, other, NEAR, similarity, mirrored, degrees, scale, match.shift
