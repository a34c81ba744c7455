"""Paired comparisons of methods over the same folds, seeds and label draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from drgrade.errors import ConfigError
from drgrade.reporting.schema import Method, MethodComparison
from drgrade.reporting.selective import SELECTIVE
from drgrade.reporting.statistics import Result, over_folds, resampled_mean
from drgrade.stats.bootstrap import holm_correction
from drgrade.stats.estimates import UNKNOWN, Estimate, Floats
from drgrade.stats.formatting import listed
from drgrade.stats.hierarchical import ResampledMean

REFERENCE, ALL = "reference", "all"

ALPHA = 0.05
"""Significance level of p-values after Holm's correction."""

Pair = tuple[str, str]
"""Keys of two methods."""


@dataclass(frozen=True)
class Statistic:
    """A metric of a result by which methods are compared.

    Attributes:
        name: Name in ``metrics.json`` without prefix.
        value: The metric on all test photographs.
        samples: (B,) the metric in each resample.
        sign: 1 if higher is better, -1 if lower is better.
    """

    name: str
    value: Callable[[Result], float]
    samples: Callable[[Result], Floats]
    sign: int = 1


QWK = Statistic("qwk", lambda result: result.metrics["qwk"], lambda result: result.qwk)


def selective_statistic(name: str) -> Statistic:
    """Return a metric of :data:`drgrade.reporting.selective.SELECTIVE`."""
    return Statistic(
        name,
        lambda result: result.selective.measured[name],
        lambda result: result.selective.samples[name],
        -1 if name in ("aurc", "excess_aurc") else 1,
    )


SELECTIVE_STATISTICS = tuple(selective_statistic(name) for name in SELECTIVE if name != QWK.name)


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
    rows: Mapping[tuple[str, float], Sequence[Result]],
    pairs: Sequence[Pair],
    seed: int = 0,
    statistics: Sequence[Statistic] = (QWK,),
) -> list[MethodComparison]:
    """Compare pairs of methods at each label fraction that both have; p-values are corrected over all.

    Args:
        rows: Results by method and label fraction.
        pairs: Methods to compare.
        seed: Random seed of the bootstrap.
        statistics: Metrics to compare them by.
    """
    fractions = sorted({fraction for _, fraction in rows})
    found = [
        comparison
        for first, second in pairs
        for fraction in fractions
        if (first, fraction) in rows and (second, fraction) in rows
        for statistic in statistics
        if (comparison := compare(rows[first, fraction], rows[second, fraction], seed, statistic)) is not None
    ]
    family = [each for each, _ in found if not math.isnan(each.p_value)]
    corrected = iter(holm_correction([each.p_value for each in family]))
    return [
        replace(
            each,
            p_holm=math.nan if math.isnan(each.p_value) else next(corrected),
            detectable=difference.detectable(ALPHA / max(1, len(family))) if difference else math.nan,
        )
        for each, difference in found
    ]


def compare(
    first: Sequence[Result], second: Sequence[Result], seed: int = 0, statistic: Statistic = QWK
) -> tuple[MethodComparison, ResampledMean | None] | None:
    """Compare the results of two methods at a label fraction, from the same resamples.

    Returns:
        The comparison, without the correction of its p-value, and the resampled difference, which is None
        for a single training seed: the variance of trainings is then unknown, so there is neither an
        interval nor a p-value. None if the methods have no fold, seed and label draw in common.
    """
    others = {(each.run.fold, each.run.replicate): each for each in second}
    common = [each for each in first if (each.run.fold, each.run.replicate) in others]
    if not common:
        return None

    def other(result: Result) -> Result:
        return others[result.run.fold, result.run.replicate]

    # Subtract before averaging, so that equal runs differ by exactly 0.
    def gap(one: Result) -> float:
        return statistic.value(one) - statistic.value(other(one))

    mean = resampled_mean(
        common, gap, lambda one: statistic.samples(one) - statistic.samples(other(one)), seed
    )
    gaps = np.array(list(over_folds(common, gap).values()))
    known = mean.seeds > 1
    comparison = MethodComparison(
        first=first[0].run.method,
        second=second[0].run.method,
        label_fraction=first[0].run.label_fraction,
        folds=len(gaps),
        seeds=mean.seeds,
        difference=Estimate(mean.value, mean.percentile_interval if known else UNKNOWN),
        won=float(np.mean((statistic.sign * np.sign(gaps) + 1) / 2)),
        p_value=mean.p_value if known else math.nan,
        statistic=statistic.name,
    )
    return comparison, mean if known else None
