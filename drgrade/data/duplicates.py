"""Search for duplicates: identical files, and copies of one exposure.

Candidate pairs are retrieved by their descriptors, aligned and compared. ``docs/audit-duplicates.md``
describes the method and its evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drgrade.data.duplicate_features import (
    COARSE_SIZE,
    FINE_SIZE,
    LEAST_DIAMETER,
    LIGHT_SIZE,
    Detail,
    Floats,
    Ints,
    Mask,
    brightness,
    coarse_detail,
    distinctive_descriptor,
    fine_detail,
    light,
    orient,
    orient_descriptors,
    parities,
)
from drgrade.data.geometry import THUMBNAIL_SIZE, Thumbnail
from drgrade.progress import track

DUPLICATES_VERSION = 1
"""Raised whenever the same photographs would give other pairs, so that older results are not used."""

IDENTICAL, NEAR = "identical", "near"

MOST_LISTED = 50
"""Files that occur more often are listed as pairs with their first row only, instead of N²/2 pairs."""

LEAST_SCORE = 0.65
"""Smallest correlation of descriptors of candidates: copies have 0.8 or more, 1 in 10^5 other pairs 0.65."""

MOST_PER_PHOTOGRAPH = 100
"""Largest number of candidates of a photograph among the following ones, the best first.

Clusters stay connected, because each copy is still paired with a later one, and memory and time are bounded
if a photograph occurs a thousand times.
"""

LEAST_SIMILARITY = 0.8
"""Smallest correlation of the fine detail of copies."""

MOST_LIGHT = 0.012
"""Largest difference of the illumination of copies in log units (1.2 %); two flashes rarely agree so well."""

MOST_ROTATION = 0.4
"""Largest measured rotation of copies in degrees."""

MOST_SCALE = 0.03
"""Largest logarithm of the ratio of the disc sizes of copies."""

MOST_SHIFT = 0.02
"""Largest shift between the discs of copies as a share of the diameter."""

_LEAST_COARSE_SIMILARITY = 0.75
_LEAST_COMMON = 0.3  # share of the square that both photographs must show
_ITERATIONS, _STEP = 20, 1e-4  # of the alignment
_PORTRAITS = 512  # in memory, 0.1 MB each
_BLOCK = 2048  # photographs; the scores of a block take 16 MB

_FAMILIES = ((0, (0, 4, 6, 2)), (5, (5, 3, 1, 7)))
"""Base orientation (none, or transposition: turn 5), and the turns that result if it is not mirrored,
mirrored left to right, upside down, and both."""

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

Affine = npt.NDArray[np.float32]
_T = TypeVar("_T")
_Turns = tuple[int, int, int, int]
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
        thumbnails: uint8 (N, T, T), see :func:`~drgrade.data.geometry.make_thumbnail`; may be memory-mapped.
        hashes: SHA-256 of each file, N of them.
        diameters: (N,), diameters of the discs in pixels of the original photographs.
        progress: Show progress on stderr.

    Returns:
        One row for each pair, ordered by the first two columns:

        - ``first``, ``second``: row numbers, first < second;
        - ``kind``: ``identical`` (the same bytes) or ``near``;
        - ``similarity``: correlation of the detail, in [0, 1];
        - ``mirrored``: true if one is the mirror image of the other;
        - ``turned``: 0, 90, 180 or 270: the second photograph looks like the first after it is mirrored left
          to right (if ``mirrored``) and then turned counter-clockwise by this angle in degrees;
        - ``scale``: size of the retina on the second thumbnail relative to the first, about 1;
        - ``shift``: shift of its centre as a share of the diameter, about 0.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_shapes(thumbnails, hashes, diameters)
    files = _rows_by_file(hashes)
    pairs: list[_Pair] = []
    for rows in files:
        pairs += [(*pair, IDENTICAL, 1.0, False, 0, 1.0, 0.0) for pair in _identical_pairs(rows)]
    for first, second, turn, match in _near_duplicates(thumbnails, files, np.asarray(diameters), progress):
        for row, other in product(_listed_rows(files[first]), _listed_rows(files[second])):
            pairs.append(_near_pair(row, other, turn, match))
    table = pd.DataFrame(pairs, columns=list(_COLUMNS)).astype(_COLUMNS)
    return table.sort_values(["first", "second"], ignore_index=True)


def clusters(pairs: pd.DataFrame, count: int) -> Ints:
    """Return the connected components of pairs.

    Args:
        pairs: Result of :func:`find_duplicates`.
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


def _check_shapes(
    thumbnails: npt.NDArray[np.uint8], hashes: Sequence[str], diameters: npt.NDArray[np.floating]
) -> None:
    expected = (len(hashes), THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    if len(hashes) == 0 == len(thumbnails):
        return
    if thumbnails.shape != expected or thumbnails.dtype != np.uint8:
        raise ValueError(f"thumbnails are {thumbnails.dtype} {thumbnails.shape}, not uint8 {expected}")
    if np.shape(diameters) != expected[:1]:
        raise ValueError(f"{len(hashes)} hashes, but diameters of shape {np.shape(diameters)}")


def _rows_by_file(hashes: Sequence[str]) -> list[list[int]]:
    """Return the rows of each file sorted by hash, so that results do not depend on the order of rows."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        rows.setdefault(digest, []).append(row)
    return [rows[digest] for digest in sorted(rows)]


def _listed_rows(rows: list[int]) -> list[int]:
    return rows if len(rows) <= MOST_LISTED else rows[:1]


def _identical_pairs(rows: list[int]) -> Iterable[tuple[int, int]]:
    return combinations(rows, 2) if len(rows) <= MOST_LISTED else product(rows[:1], rows[1:])


def _near_duplicates(
    thumbnails: npt.NDArray[np.uint8],
    files: list[list[int]],
    diameters: npt.NDArray[np.floating],
    progress: bool,
) -> Iterator[tuple[int, int, int, "CopyMatch"]]:
    """Yield pairs of files that are copies: first, second, turn of the second, and match."""
    large = [number for number, rows in enumerate(files) if diameters[rows[0]] >= LEAST_DIAMETER]
    described, descriptors = [], []
    for number in _tracked(large, "looking for duplicates of", "photographs", progress):
        descriptor = distinctive_descriptor(thumbnails[files[number][0]])
        if descriptor is not None:
            described.append(number)
            descriptors.append(descriptor)
    if not described:
        return
    first, second, turn = candidates(np.stack(descriptors))
    # By connected photographs, so that those in memory are used again.
    order = np.lexsort((second, first, _smallest_connected(first, second, len(described))[first]))

    @lru_cache(maxsize=_PORTRAITS)
    def portrait(number: int, turn: int) -> Portrait:
        return Portrait.of(orient(thumbnails[files[described[number]][0]], turn))

    for number in _tracked(order.tolist(), "comparing", "pairs of photographs", progress):
        i, j, orientation = int(first[number]), int(second[number]), int(turn[number])
        match = compare(portrait(i, 0), portrait(j, orientation))
        if match is not None and match.one_exposure:
            yield described[i], described[j], orientation, match


def _tracked(items: Sequence[_T], doing: str, of: str, progress: bool) -> Iterable[_T]:
    return track(items, len(items), doing, of) if progress and items else items


def _near_pair(row: int, other: int, turn: int, match: "CopyMatch") -> _Pair:
    """Return the row of a pair of copies, the smaller row number first.

    Exchanging the two inverts the turn: k quarters become -k, but a mirrored turn is its own inverse.
    """
    mirrored, degrees, scale = turn >= 4, 90 * (turn % 4), match.scale
    similarity = min(max(match.similarity, 0.0), 1.0)
    if row > other:
        row, other, scale = other, row, 1 / scale
        degrees = degrees if mirrored else -degrees % 360
    return row, other, NEAR, similarity, mirrored, degrees, scale, match.shift


def candidates(descriptors: Floats) -> tuple[Ints, Ints, Ints]:
    """Retrieve pairs that may be copies by scoring all pairs in all 8 orientations of the second.

    Args:
        descriptors: float32 (N, D), N > 0, see :func:`~drgrade.data.duplicate_features.descriptor`.

    Returns:
        First and second photograph of each pair (first < second) and the ``turn`` that gives the second the
        orientation of the first; each int64 (P,), ordered by first and second.
    """
    families = [(orient_descriptors(descriptors, base), turns) for base, turns in _FAMILIES]
    blocks = [
        _best(*_block_pairs(descriptors, families, start)) for start in range(0, len(descriptors), _BLOCK)
    ]
    first, second, turn = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return first, second, turn


def _block_pairs(
    descriptors: Floats, families: list[tuple[Floats, _Turns]], start: int
) -> tuple[Ints, Ints, Ints, Floats]:
    """Return pairs above the smallest score whose first is in the block: first, second, turn, score."""
    rows = descriptors[start : start + _BLOCK]
    parts = []
    for other in range(start, len(descriptors), _BLOCK):
        for oriented, turns in families:
            for i, j, turn, score in _scored(rows, oriented[other : other + _BLOCK], turns):
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


class Portrait(NamedTuple):
    """Features of one photograph for comparison."""

    coarse: Detail
    fine: Detail
    brightness: Floats
    lit: Mask

    @classmethod
    def of(cls, thumbnail: Thumbnail) -> "Portrait":
        """Compute the features of a thumbnail."""
        return cls(coarse_detail(thumbnail), fine_detail(thumbnail), *brightness(thumbnail))


class CopyMatch(NamedTuple):
    """Alignment and similarity of two photographs.

    Attributes:
        similarity: Correlation of the fine detail where both show something, in [-1, 1].
        light: Standard deviation of the difference of their light, in log units, after the best tone curve.
        scale: Size of the retina on the second relative to the first, in units of the disc's radius.
        rotation: Rotation in degrees.
        shift: Shift of the centre as a share of the disc's diameter.
    """

    similarity: float
    light: float
    scale: float
    rotation: float
    shift: float

    @property
    def one_exposure(self) -> bool:
        """True if the two are copies of one exposure."""
        return (
            self.similarity >= LEAST_SIMILARITY
            and self.light <= MOST_LIGHT
            and abs(self.rotation) <= MOST_ROTATION
            and abs(np.log(self.scale)) <= MOST_SCALE
            and self.shift <= MOST_SHIFT
        )


def compare(first: Portrait, second: Portrait) -> CopyMatch | None:
    """Align the second photograph with the first and compare them.

    Args:
        first: Reference.
        second: Photograph in the orientation of the first.

    Returns:
        None if they cannot be aligned.
    """
    warp = _align(first.coarse, second.coarse)
    if warp is None:
        return None
    moved, known = _moved(second.fine.signal, second.fine.known, _at_size(warp, FINE_SIZE))
    common = known & first.fine.known
    if common.mean() < _LEAST_COMMON:
        return None
    similarity = _correlation(first.fine.signal[common], moved[common])
    moved, known = _moved(second.brightness, second.lit, _at_size(warp, LIGHT_SIZE))
    common = known & first.lit
    x, y = light(first.brightness, common), light(moved, common)
    residual = max(_tone_residual(x, y), _tone_residual(y, x))
    linear = warp[:, :2].astype(np.float64)
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    rotation = float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])))
    centre = np.full(2, (COARSE_SIZE - 1) / 2)
    shift = float(np.hypot(*(linear @ centre + warp[:, 2] - centre))) / COARSE_SIZE
    return CopyMatch(similarity, residual, scale, rotation, shift)


def _align(first: Detail, second: Detail) -> Affine | None:
    """Return the affine map (2, 3) from first to second with the highest correlation; None if it is low.

    Enhanced correlation coefficient (Evangelidis and Psarakis 2008), starting from the identity.
    """
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, _STEP)
    mask = second.known.astype(np.uint8) * np.uint8(255)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        correlation, warp = cv2.findTransformECC(
            first.signal, second.signal, start, cv2.MOTION_AFFINE, criteria, mask, 1
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return None
    return np.asarray(warp, np.float32) if correlation >= _LEAST_COARSE_SIMILARITY else None


def _at_size(warp: Affine, size: int) -> Affine:
    """Convert a map between images of the coarse size to images of another size."""
    linear, centre, new_centre = warp[:, :2], (COARSE_SIZE - 1) / 2, (size - 1) / 2
    offset = linear.sum(axis=1) * centre + warp[:, 2] - centre
    return np.column_stack(
        (linear, new_centre + offset * size / COARSE_SIZE - linear.sum(axis=1) * new_centre)
    )


def _moved(image: Floats, known: Mask, warp: Affine) -> tuple[Floats, Mask]:
    size = image.shape[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, warp, size, flags=flags)
    share = cv2.warpAffine(known.astype(np.float32), warp, size, flags=flags)
    return np.asarray(moved, np.float32), share > 0.99


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), 1e-6))


def _tone_residual(x: Floats, y: Floats) -> float:
    """Return the standard deviation of y around its least-squares parabola in x."""
    x = x - x.mean()
    design = np.stack((np.ones_like(x), x, x * x), axis=1)
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.std(y - design @ solution))
