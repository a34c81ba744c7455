"""Array types, intervals and estimates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)
"""Interval that cannot be estimated."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Range:
    """The minimum and maximum of several numbers; both are NaN if no number is known."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Range":
        """Return the range of the values that are neither None nor NaN.

        Example:
            >>> Range.of([3, None, 1.0])
            Range(low=1.0, high=3.0)
        """
        known = [float(value) for value in values if value is not None and not math.isnan(value)]
        return cls(min(known, default=math.nan), max(known, default=math.nan))

    @classmethod
    def union(cls, ranges: Iterable["Range"]) -> "Range":
        """Return the range that spans all ranges; unknown ones are ignored."""
        return cls.of(end for each in ranges for end in (each.low, each.high))
