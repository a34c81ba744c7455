"""Array types, intervals and estimates."""

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
