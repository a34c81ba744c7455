"""Paired comparisons of methods over the same folds and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from drgrade.errors import ConfigError
from drgrade.reporting.schema import Method, MethodComparison
from drgrade.reporting.statistics import Result, mean_over_folds, over_folds
from drgrade.stats.bootstrap import holm_correction, interval, two_sided_p_value
from drgrade.stats.estimates import Estimate
from drgrade.stats.formatting import listed

REFERENCE, ALL = "reference", "all"

Pair = tuple[str, str]
"""Keys of two methods."""


def pairs_to_compare(methods: Sequence[Method], compare: str) -> tuple[list[Pair], str]:
    """Choose the pairs of methods to compare.

    Each pair weakens the others through Holm's correction (16 methods at 5 fractions give 600 pairs), so the
    default compares each method only with random weights.

    Args:
        methods: In display order.
        compare: ``reference``: each method with random weights of the same encoder and protocol; all pairs
            if no method has such a reference. ``all``: all pairs. Or the name of a method: all others with
            it, within the same protocol if the name contains none.

    Returns:
        Pairs of keys, and a sentence that describes them.

    Raises:
        ConfigError: If ``compare`` is not the name of a method.
    """
    with_reference = [(method.key, method.reference) for method in methods if method.reference]
    if compare == REFERENCE and with_reference:
        return with_reference, (
            "Each method is compared with random initialisation of the same encoder under the same protocol; "
            "compare=all compares all pairs."
        )
    if compare in (REFERENCE, ALL):
        return [(one.key, other.key) for one, other in combinations(methods, 2)], "All pairs are compared."
    return _with_one(methods, compare), f"Each method is compared with {compare}."


def _with_one(methods: Sequence[Method], name: str) -> list[Pair]:
    chosen = [method for method in methods if name in (method.key, method.label)]
    lines = {method.protocol: method for method in methods if method.name == name}
    if chosen:
        return [(method.key, chosen[0].key) for method in methods if method != chosen[0]]
    if not lines:
        known = listed([f"{each!r}" for each in dict.fromkeys(method.label for method in methods)])
        raise ConfigError(f"compare={name} is neither {REFERENCE}, {ALL} nor a method of the report: {known}")
    return [
        (method.key, lines[method.protocol].key)
        for method in methods
        if method.protocol in lines and method != lines[method.protocol]
    ]


def compare_all(
    rows: Mapping[tuple[str, float], Sequence[Result]], pairs: Sequence[Pair]
) -> list[MethodComparison]:
    """Compare pairs of methods at each label fraction that both have; p-values are corrected over all.

    ``rows`` are the results by method and label fraction.
    """
    fractions = sorted({fraction for _, fraction in rows})
    comparisons = [
        comparison
        for first, second in pairs
        for fraction in fractions
        if (first, fraction) in rows and (second, fraction) in rows
        if (comparison := compare(rows[first, fraction], rows[second, fraction])) is not None
    ]
    corrected = holm_correction([comparison.p_value for comparison in comparisons])
    return [replace(each, p_holm=p_holm) for each, p_holm in zip(comparisons, corrected, strict=True)]


def compare(first: Sequence[Result], second: Sequence[Result]) -> MethodComparison | None:
    """Compare the results of two methods at a label fraction, from the same resamples.

    Returns:
        The comparison; None if the methods have no fold and seed in common.
    """
    others = {(each.run.fold, each.run.seed): each for each in second}
    common = [each for each in first if (each.run.fold, each.run.seed) in others]
    if not common:
        return None

    def other(result: Result) -> Result:
        return others[result.run.fold, result.run.seed]

    # Subtract before averaging, so that equal runs differ by exactly 0.
    by_fold = over_folds(common, lambda one: one.metrics["qwk"] - other(one).metrics["qwk"])
    gaps = np.array(list(by_fold.values()))
    samples = mean_over_folds(common, lambda one: one.qwk - other(one).qwk)
    return MethodComparison(
        first=first[0].run.method,
        second=second[0].run.method,
        label_fraction=first[0].run.label_fraction,
        folds=len(gaps),
        difference=Estimate(float(gaps.mean()), interval(samples)),
        won=float(np.mean((np.sign(gaps) + 1) / 2)),
        p_value=two_sided_p_value(samples),
    )
