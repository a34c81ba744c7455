"""Two methods over the same folds and seeds, and which pairs are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from drgrade.errors import ConfigError
from drgrade.reporting.schema import Method, MethodComparison
from drgrade.reporting.statistics import Result, mean_over_folds, over_folds
from drgrade.stats import formatting as words
from drgrade.stats.bootstrap import interval
from drgrade.stats.estimates import Estimate, Floats

REFERENCE, ALL = "reference", "all"

Pair = tuple[str, str]
"""Keys of two methods."""


def pairs_to_compare(methods: Sequence[Method], compare: str) -> tuple[list[Pair], str]:
    """Choose which methods are compared.

    The more pairs, the less any of them can show: with 16 methods at 5 fractions the p-values of all pairs
    would be multiplied by up to 600. What a table of methods asks is mostly whether each is better than none.

    Args:
        methods: In the order in which they are shown.
        compare: ``reference``: each with random weights of the same encoder and protocol; all pairs if no
            method has that. ``all``: every pair. Or a method's name: all others with that one, in the same
            protocol if the name says none.

    Returns:
        Pairs, and a sentence that says which they are.

    Raises:
        ConfigError: If it names no method.
    """
    with_reference = [(method.key, method.reference) for method in methods if method.reference]
    if compare == REFERENCE and with_reference:
        return with_reference, (
            "Each method is compared with random weights of the same encoder, by the same protocol; "
            "compare=all compares every pair."
        )
    if compare in (REFERENCE, ALL):
        return [(one.key, other.key) for one, other in combinations(methods, 2)], "Every pair is compared."
    return _with_one(methods, compare), f"Each method is compared with {compare}."


def _with_one(methods: Sequence[Method], name: str) -> list[Pair]:
    chosen = [method for method in methods if name in (method.key, method.label)]
    lines = {method.protocol: method for method in methods if method.name == name}
    if chosen:
        return [(method.key, chosen[0].key) for method in methods if method != chosen[0]]
    if not lines:
        known = words.listed([f"{each!r}" for each in dict.fromkeys(method.label for method in methods)])
        raise ConfigError(f"compare={name} is none of {REFERENCE}, {ALL}, and no method; there is {known}")
    return [
        (method.key, lines[method.protocol].key)
        for method in methods
        if method.protocol in lines and method != lines[method.protocol]
    ]


def compare_all(
    rows: Mapping[tuple[str, float], Sequence[Result]], pairs: Sequence[Pair]
) -> list[MethodComparison]:
    """Compare pairs of methods at every label fraction that both have.

    Args:
        rows: Results by method and label fraction.
        pairs: Of keys.

    Returns:
        By pair, then label fraction, with p-values corrected over all of them.
    """
    fractions = sorted({fraction for _, fraction in rows})
    found = [
        comparison
        for first, second in pairs
        for fraction in fractions
        if (first, fraction) in rows and (second, fraction) in rows
        if (comparison := compare(rows[first, fraction], rows[second, fraction])) is not None
    ]
    corrected = holm([comparison.p_value for comparison in found])
    return [replace(each, p_holm=p_holm) for each, p_holm in zip(found, corrected, strict=True)]


def compare(first: Sequence[Result], second: Sequence[Result]) -> MethodComparison | None:
    """Compare two methods at a label fraction; see :class:`~drgrade.reporting.schema.MethodComparison`.

    Args:
        first: Results of a row.
        second: Of another row of the same label fraction, from the same resamples.

    Returns:
        The comparison; None if they have no fold and seed in common.
    """
    others = {_cell(result): result for result in second}
    common = [result for result in first if _cell(result) in others]
    if not common:
        return None
    # Paired before anything is averaged, so that equal runs differ by exactly nothing.
    by_fold = over_folds(common, lambda one: one.metrics["qwk"] - others[_cell(one)].metrics["qwk"])
    gaps = np.array(list(by_fold.values()))
    samples = mean_over_folds(common, lambda one: one.qwk - others[_cell(one)].qwk)
    return MethodComparison(
        first=first[0].run.method,
        second=second[0].run.method,
        label_fraction=first[0].run.label_fraction,
        folds=len(gaps),
        difference=Estimate(float(gaps.mean()), interval(samples)),
        won=float(np.mean((np.sign(gaps) + 1) / 2)),
        p_value=two_sided(samples),
    )


def _cell(result: Result) -> tuple[str, int]:
    return result.run.fold, result.run.seed


def two_sided(samples: Floats) -> float:
    """Two-sided p-value of a difference: twice the smaller share of resamples on one side of zero.

    The figure itself counts as one more resample on that side (Davison and Hinkley, 1997, section 4.4), so
    that the value is never 0: B resamples cannot show less than 2 / (B + 1).

    Args:
        samples: (B,) differences.

    Returns:
        At most 1.
    """
    smaller = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(samples) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Args:
        p_values: Of m comparisons.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return [float(value) for value in corrected]
