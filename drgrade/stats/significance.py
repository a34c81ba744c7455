"""p-values of paired differences and their correction for multiple comparisons."""

from collections.abc import Sequence

import numpy as np

from drgrade.stats.estimates import Floats


def two_sided_p_value(samples: Floats) -> float:
    """Compute a bootstrap p-value: twice the smaller share of resamples on one side of zero.

    The observed difference counts as one more resample on that side, so the p-value is at least 2 / (B + 1)
    (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.4).

    Args:
        samples: (B,) differences.

    Returns:
        The p-value, at most 1.

    Example:
        >>> two_sided_p_value(np.array([0.1, 0.2, 0.3]))
        0.5
    """
    smaller = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(samples) + 1))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Args:
        p_values: p-values of all comparisons.

    Returns:
        Corrected p-values in the same order, at most 1.

    Example:
        >>> holm_correction([0.01, 0.5])
        [0.02, 0.5]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return [float(value) for value in corrected]
