"""Hierarchical bootstrap of a mean over folds: training seeds and label draws, then groups of photographs.

The result of a row depends on the test photographs, on the training seeds and on the labels that are drawn.
Runs of one fold are tested on the same photographs, so these sources are crossed: a run's value is a sum of
effects of its seed, its label draw, the photographs, and interactions. A training seed determines the same
first weights (and the same pre-trained encoder) in every fold, so the folds may share its effect; the labels
of each fold are drawn from its own training side.

The variance from training is estimated from mean squares (random effects; Searle, Casella and McCulloch,
"Variance Components", 1992, chapter 4). The interaction of runs and photographs is part of these mean squares
as well as of the bootstrap of groups, and is counted once. In each resample, seeds and label draws are drawn
with replacement, one fewer than there are (Rao and Wu, "Resampling Inference with Complex Survey Data", JASA
83(401), 1988); then groups are drawn inside folds. The effects are shrunk so that the variance of the
resamples is the estimated one (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section
3.8).
Two or three seeds estimate a variance badly, so Student's t replaces the normal distribution, with
Satterthwaite's degrees of freedom (Biometrics Bulletin 2(6), 1946) if seeds and label draws are crossed. Two
or three seeds of one label draw often show too small a variance by chance, and Satterthwaite's formula then
takes it for a certain one; there, and with two seeds, the half widths of the parts, each with its own
Student's t, are added in quadrature (Howe, JASA 69(347), 1974).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from drgrade.stats.bootstrap import interval
from drgrade.stats.estimates import Floats, Interval

Replicate = tuple[int, int]
"""Training seed and label seed of a run."""

LEVEL = 0.95
"""Coverage of intervals."""

_LEAST_BEYOND = 5
"""Number of resamples beyond a percentile for it to be read from them; farther ones are extrapolated."""

_MOST_DEGREES = 1e6
_NEGLIGIBLE = 1e-6
"""Share of the variance below which seeds and label draws do not interact: the label draws are copies."""


@dataclass(frozen=True, eq=False)
class FoldRuns:
    """A metric of the R runs of a fold.

    Attributes:
        replicates: Seeds of each run.
        values: (R,) metric of each run on the test photographs.
        samples: (R, B) metric in each resample of the groups; all runs share the resamples.
        groups: Number of groups of test photographs.
    """

    replicates: Sequence[Replicate]
    values: Floats
    samples: Floats
    groups: int


@dataclass(frozen=True)
class Components:
    """Parts of the variance of a mean over folds and runs, and their degrees of freedom.

    Attributes:
        groups: Choice of the test photographs, from the bootstrap of groups.
        seeds: Training seeds, from the means of the seeds over all folds.
        draws: Label draws, inside folds.
        both: Interaction of seeds and label draws inside folds, which ``seeds`` and ``draws`` both contain.
        shared: Interaction of runs and photographs, which ``groups`` and ``training`` both contain.
        degrees: Degrees of freedom of ``groups``, ``seeds``, ``draws`` and ``both``.
    """

    groups: float
    seeds: float
    draws: float
    both: float
    shared: float
    degrees: tuple[float, float, float, float]

    @property
    def total(self) -> float:
        """Variance of the mean, without bias; at least half of that of ``groups``, so that it is never 0."""
        return max(self.groups / 2, self.groups - self.shared + self.seeds + self.draws - self.both)

    @property
    def training(self) -> float:
        """Variance from seeds and label draws beyond that of ``groups``, at least 0."""
        return max(0.0, self.total - self.groups)

    @property
    def degrees_of_total(self) -> float:
        """Degrees of freedom of the total; infinite if it is 0.

        Satterthwaite's if seeds and label draws are crossed and neither is estimated from a single degree of
        freedom, or if there is one training; else those with which Student's t gives Howe's interval.
        """
        if not self.total > 0:
            return math.inf
        of_training = [df for df in self.degrees[1:3] if df > 0]
        is_crossed = self.both > _NEGLIGIBLE * self.total
        if not of_training or (is_crossed and min(of_training) > 1):
            return self._satterthwaite()
        return self._howe()

    def _parts(self) -> list[tuple[float, float]]:
        """Return variances and degrees of freedom of groups, seeds and label draws that were estimated."""
        parts = (max(0.0, self.groups - self.shared), self.seeds, self.draws)
        return [(part, df) for part, df in zip(parts, self.degrees[:3], strict=True) if df > 0]

    def _satterthwaite(self) -> float:
        """Return the degrees of freedom of a sum of variances.

        The square of an estimated variance of ``df`` degrees of freedom, times df / (df + 2), is an unbiased
        estimate of the square of the variance (Welch, Biometrika 34(1/2), 1947).
        """
        parts = [*self._parts(), (self.both, self.degrees[3])]
        spread = sum(part**2 / (df + 2) for part, df in parts)
        return self.total**2 / spread if spread > 0 else math.inf

    def _howe(self) -> float:
        """Return the degrees of freedom with which Student's t has the half width of Howe."""
        tail = (1 - LEVEL) / 2
        squares = sum(part * stats.t.isf(tail, df) ** 2 for part, df in self._parts())
        squares -= self.both * stats.norm.isf(tail) ** 2
        wanted, least = math.sqrt(max(0.0, squares) / self.total), min(df for _, df in self._parts())
        if wanted <= stats.t.isf(tail, _MOST_DEGREES):
            return math.inf
        if wanted >= stats.t.isf(tail, least):
            return least
        return float(optimize.brentq(lambda df: stats.t.isf(tail, df) - wanted, least, _MOST_DEGREES))


@dataclass(frozen=True, eq=False)
class ResampledMean:
    """Mean of a metric over the folds, each the mean of its runs.

    Attributes:
        value: The mean.
        samples: (B,) mean in each resample of the hierarchical bootstrap.
        components: Parts of its variance.
        seeds: Number of training seeds that all folds have.
    """

    value: float
    samples: Floats
    components: Components
    seeds: int

    @property
    def degrees(self) -> float:
        """Degrees of freedom of its variance."""
        return self.components.degrees_of_total

    @property
    def percentile_interval(self) -> Interval:
        """95 % interval of percentiles, at the tail probability of Student's t.

        Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015
        (expanded percentile interval). Percentiles beyond those that the resamples show are extrapolated.
        """
        wanted = float(stats.t.isf((1 - LEVEL) / 2, self.degrees))
        reach = max(float(stats.norm.sf(wanted)), self._least_tail)
        ends, stretch = interval(self.samples, reach), wanted / float(stats.norm.isf(reach))
        if stretch <= 1:
            return ends
        low, high = (self.value + stretch * (end - self.value) for end in (ends.low, ends.high))
        return Interval(min(low, ends.low), max(high, ends.high))

    @property
    def bounded_interval(self) -> Interval:
        """:attr:`percentile_interval` of a metric in [-1, 1], or in [0, 1] if no resample is negative."""
        ends, least = self.percentile_interval, 0.0 if (self.samples >= 0).all() else -1.0
        return Interval(*np.clip((ends.low, ends.high), least, 1.0).tolist())

    @property
    def _least_tail(self) -> float:
        """Least tail probability that the resamples show."""
        return min(0.25, _LEAST_BEYOND / max(1, len(self.samples)))

    @property
    def standard_error(self) -> float:
        """Standard deviation of the resamples."""
        return float(self.samples.std(ddof=1)) if len(self.samples) > 1 else math.nan

    @property
    def p_value(self) -> float:
        """Two-sided p-value that the expectation is 0: below 0.05 if the interval excludes 0."""
        if self.value == 0 or not len(self.samples):
            return 1.0 if self.value == 0 else math.nan
        sign = math.copysign(1.0, self.value)
        ends = interval(self.samples, self._least_tail)
        nearest = sign * (ends.low if sign > 0 else ends.high)
        size = sign * self.value
        if size > nearest > 0:
            score = float(stats.norm.isf(self._least_tail)) * size / (size - nearest)
        else:
            beyond = int((sign * self.samples <= 0).sum())
            score = float(stats.norm.isf(min(0.5, (beyond + 1) / (len(self.samples) + 1))))
        return float(2 * stats.t.sf(score, self.degrees))

    def detectable(self, alpha: float, power: float = 0.8) -> float:
        """Return the smallest true value that a two-sided test shows with a given power.

        Args:
            alpha: Significance level of the test.
            power: Probability of a p-value below ``alpha``.
        """
        tails = (alpha / 2, 1 - power)
        return sum(float(stats.t.isf(tail, self.degrees)) for tail in tails) * self.standard_error


def resample_mean(folds: Sequence[FoldRuns], seed: int) -> ResampledMean:
    """Resample the mean over folds of the means of their runs.

    Args:
        folds: One or more folds with the same number of resamples. Resamples in which a value is NaN are left
            out.
        seed: Random seed of the draws of seeds and labels.
    """
    value = float(np.mean([fold.values.mean() for fold in folds]))
    means = np.mean([fold.samples.mean(axis=0) for fold in folds], axis=0)
    defined = np.isfinite(means)
    values, samples = _arrange(folds)
    # Unlike an index, compress keeps the order in memory, which the sums over runs need to be fast.
    kept = np.compress(defined, samples, axis=-1)
    found = _components(values, kept, means[defined], sum(fold.groups - 1 for fold in folds))
    effects = _training_effects(values, len(means), seed)
    if found.training > 0:
        means = means + effects * math.sqrt(found.training / effects.var())
    elif found.total < found.groups:
        means = value + (means - value) * math.sqrt(found.total / found.groups)
    return ResampledMean(value, means[defined], found, len({seed for seed, _ in common_replicates(folds)}))


def common_replicates(folds: Sequence[FoldRuns]) -> list[Replicate]:
    """Return the replicates that all folds have."""
    return sorted(set.intersection(*({*fold.replicates} for fold in folds)))


def _arrange(folds: Sequence[FoldRuns]) -> tuple[Floats, Floats]:
    """Arrange values (F, S, D) and samples (F, S, D, B) by fold, seed and label draw.

    Runs are independent only if they share neither the seed nor the label draw. If each seed has label draws
    of its own, the mean of a seed counts as one run. If some runs of a crossed design are missing, the
    largest complete part of it is arranged. Without common replicates the mean of a fold counts as one run.
    """
    shared = common_replicates(folds)
    if not shared:
        values = np.array([[[fold.values.mean()]] for fold in folds])
        return values, np.stack([fold.samples.mean(axis=0)[None, None] for fold in folds])
    units = _independent(shared)
    if len(units) > 1:
        grid = [[unit] for unit in units]
    else:
        seeds, draws = _largest_grid(shared)
        grid = [[[(seed, draw)] for draw in draws] for seed in seeds]
    places = [
        [[[list(fold.replicates).index(each) for each in unit] for unit in row] for row in grid]
        for fold in folds
    ]
    pairs = list(zip(folds, places, strict=True))
    return (
        np.array([[[fold.values[at].mean() for at in row] for row in rows] for fold, rows in pairs]),
        np.array([[[fold.samples[at].mean(axis=0) for at in row] for row in rows] for fold, rows in pairs]),
    )


def _independent(replicates: Sequence[Replicate]) -> list[list[Replicate]]:
    """Group replicates so that two groups have neither a seed nor a label draw in common."""
    groups: list[list[Replicate]] = []
    for seed, draw in replicates:
        linked = [group for group in groups if any(one == seed or other == draw for one, other in group)]
        merged = [*(each for group in linked for each in group), (seed, draw)]
        groups = [*(group for group in groups if group not in linked), merged]
    return groups


def _largest_grid(replicates: Sequence[Replicate]) -> tuple[list[int], list[int]]:
    """Return seeds and label draws of which every pair is there.

    Two of each if possible; then those of most pairs, and of these the one with more seeds.
    """
    draws_of = {one: {draw for seed, draw in replicates if seed == one} for one, _ in replicates}
    grids = [
        (sorted(seed for seed in draws_of if draws <= draws_of[seed]), sorted(draws))
        for draws in (one & other for one in draws_of.values() for other in draws_of.values())
        if draws
    ]

    def order(grid: tuple[list[int], list[int]]) -> tuple[int, ...]:
        seeds, draws = map(len, grid)
        return min(seeds, 2), min(draws, 2), seeds * draws, seeds

    return max(grids, key=order)


def _components(values: Floats, samples: Floats, means: Floats, degrees: float) -> Components:
    folds, seeds, draws = values.shape
    found = _mean_squares(values[..., None])
    shared = math.nan
    if means.size:
        noise = _mean_squares(samples - samples.mean(axis=-1, keepdims=True))
        shared = (noise[0] + noise[1] - noise[2]).mean()
    return Components(
        groups=float(means.var(ddof=1)) if len(means) > 1 else math.nan,
        seeds=float(found[0].item()),
        draws=float(found[1].item()),
        both=float(found[2].item()),
        shared=float(shared),
        degrees=(degrees, seeds - 1, folds * (draws - 1), folds * (seeds - 1) * (draws - 1)),
    )


def _mean_squares(x: Floats) -> tuple[Floats, Floats, Floats]:
    """Estimate variances of the mean of (F, S, D, B) values over the first three axes.

    Returns:
        (B,) variance from seeds, from label draws, and from their interaction, which the others contain.
    """
    folds, seeds, draws, number = x.shape
    of_seeds, of_draws, of_both = np.zeros((3, number))
    if seeds > 1:
        of_seeds = x.mean(axis=(0, 2)).var(axis=0, ddof=1) / seeds
    if draws > 1:
        of_draws = x.mean(axis=1).var(axis=1, ddof=1).mean(axis=0) / (draws * folds)
    if seeds > 1 and draws > 1:
        rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=2, keepdims=True)
        rest = rest + x.mean(axis=(1, 2), keepdims=True)
        squares = (rest**2).sum(axis=(1, 2)).mean(axis=0) / ((seeds - 1) * (draws - 1))
        of_both = squares / (seeds * draws * folds)
    return of_seeds, of_draws, of_both


def _training_effects(values: Floats, resamples: int, seed: int) -> Floats:
    """Resample seeds (the same in all folds) and label draws of (F, S, D) values: (B,) change of the mean."""
    of_seeds, of_draws = _drawn_weights(*values.shape, resamples, seed)
    drawn = np.einsum("bs,bfd,fsd->b", of_seeds, of_draws, values) / len(values)
    return np.asarray(drawn - values.mean())


@lru_cache(maxsize=4)
def _drawn_weights(folds: int, seeds: int, draws: int, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Draw weights of seeds (B, S) and label draws (B, F, D), which all metrics of a report share."""
    rng = np.random.default_rng([seed, 1])
    return _weights(rng, (resamples, 1), seeds)[:, 0], _weights(rng, (resamples, folds), draws)


def _weights(rng: np.random.Generator, shape: tuple[int, int], number: int) -> Floats:
    """Draw one of ``number`` fewer than there are, with replacement: weights of mean 1 / number."""
    if number == 1:
        return np.ones((*shape, 1))
    return rng.multinomial(number - 1, np.full(number, 1 / number), size=shape) / (number - 1)
