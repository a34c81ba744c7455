"""Thresholds between grades on a line of numbers, chosen for the quadratic weighted kappa (QWK)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def halves(num_grades: int) -> Tensor:
    """The thresholds that round to the nearest grade.

    Args:
        num_grades: how many grades G there are.

    Returns:
        (G - 1,) float32: 0.5, 1.5, ...
    """
    return torch.arange(num_grades - 1, dtype=torch.float32) + 0.5


def best_thresholds(values: Tensor, grades: Tensor, num_grades: int) -> Tensor:
    """The thresholds with the highest QWK that any thresholds give.

    With N photographs, o the sum of squared errors and e_j = sum over i of (i - j)^2 times the number of
    photographs of grade i, kappa is 1 - N o / (sum of e_predicted): a ratio of two sums over photographs. By
    Dinkelbach ("On nonlinear fractional programming", Management Science 13(7), 1967) it is greatest where
    the best value of a difference of the two sums is 0, and the best assignment for a difference is found by
    dynamic programming over the sorted values. All arithmetic is in whole numbers, so the result is exact and
    the same everywhere. Of several best assignments it is the one that moves the fewest photographs away from
    the grade that the halves give them, so that photographs that decide nothing move no threshold.

    Args:
        values: (N,) float32, finite.
        grades: (N,) int64, the truth.
        num_grades: how many grades G there are.

    Returns:
        (G - 1,) float32, not falling; the grade of a value is the number of thresholds that it reaches. Each
        is the half where that does as well as any other place between its neighbouring values, else it stands
        midway between them. The halves where fewer than two grades occur: kappa is 0 whatever they are.
    """
    start = halves(num_grades)
    truth = np.bincount(grades.numpy(), minlength=num_grades)
    if np.count_nonzero(truth) < 2:
        return start
    distinct, place = np.unique(values.numpy(), return_inverse=True)  # (M,) rising, (N,)
    table = np.zeros((len(distinct), num_grades), dtype=np.int64)  # photographs by value and grade
    np.add.at(table, (place, grades.numpy()), 1)
    rounded = (distinct[:, None] >= start.numpy()).sum(axis=1)  # (M,) the grade that the halves give
    return torch.from_numpy(_between(distinct, _best_cuts(table, rounded), start.numpy()))


def _best_cuts(table: npt.NDArray[np.int64], rounded: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of the sorted values lie below each threshold of the best assignment.

    Args:
        table: (M, G) photographs by value and grade.
        rounded: (M,) grade of each value to begin with.

    Returns:
        (G - 1,) not falling, 0 to M.
    """
    numbers = np.arange(table.shape[1])
    distance = (numbers[:, None] - numbers[None, :]) ** 2  # (G, G)
    # Whole numbers of any size: the products below outgrow 64 bits from some 10,000 photographs on.
    errors = (table @ distance).astype(object)  # (M, G) squared errors if a value is called grade j
    expected = (np.outer(table.sum(axis=1), table.sum(axis=0) @ distance)).astype(object)  # (M, G)
    moved = (table.sum(axis=1)[:, None] * (rounded[:, None] != numbers)).astype(object)
    rows, called = np.arange(len(table)), rounded
    while True:
        ratio = errors[rows, called].sum(), expected[rows, called].sum()
        gain = ratio[1] * errors - ratio[0] * expected
        # Who is moved only decides between assignments that are equal otherwise: it adds up to less than 1.
        cuts = _cheapest_cuts(gain * (int(table.sum()) + 1) + moved)
        called = np.searchsorted(cuts, rows, side="right")
        if gain[rows, called].sum() >= 0:
            return cuts


def _cheapest_cuts(cost: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """The cuts that divide M sorted values among G grades at the least cost.

    Args:
        cost: (M, G) of calling a value a grade, whole numbers.

    Returns:
        (G - 1,) how many values have a grade of at most 0, 1, ...
    """
    zero = np.zeros((1, cost.shape[1]), dtype=object)
    paid = np.concatenate((zero, cost.cumsum(axis=0)))  # (M + 1, G): for the first m values, all one grade
    best, origins = paid[:, 0], []
    for grade in range(1, cost.shape[1]):
        # The first m values with grades up to this one: the first s of them have lower grades.
        open_cost = best - paid[:, grade]
        least = np.minimum.accumulate(open_cost)
        rises = np.concatenate(([True], open_cost[1:] < least[:-1]))  # where a new s becomes the best
        origins.append(np.maximum.accumulate(np.where(rises, np.arange(len(best)), 0)))
        best = least + paid[:, grade]
    cuts, end = [], len(cost)
    for origin in reversed(origins):
        end = int(origin[end])
        cuts.append(end)
    return np.array(cuts[::-1], dtype=np.int64)


def _between(
    values: npt.NDArray[np.float32], cuts: npt.NDArray[np.int64], start: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Numbers that divide sorted values as the cuts do.

    Args:
        values: (M,) rising.
        cuts: (G - 1,) how many values lie below each threshold; not falling.
        start: (G - 1,) where the thresholds stand if they can.

    Returns:
        (G - 1,) float32, not falling.
    """
    found = start.copy()
    for cut in np.unique(cuts):
        here = np.flatnonzero(cuts == cut)
        below = values[cut - 1] if cut > 0 else -np.inf
        above = values[cut] if cut < len(values) else np.inf
        if all(below < start[k] <= above for k in here):
            continue
        share = np.arange(1, len(here) + 1) / (len(here) + 1)
        low = float(below) if cut > 0 else float(above) - 1
        high = float(above) if cut < len(values) else float(below) + 1
        placed = (low + share * (high - low)).astype(np.float32)
        # Between neighbouring floats there is nothing: the upper one then is the threshold.
        found[here] = np.where(placed > below, placed, np.float32(above))
    return found
