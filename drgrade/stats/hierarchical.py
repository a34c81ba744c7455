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
Two or three seeds estimate a variance badly, so Student's t with Satterthwaite's degrees of freedom replaces
the normal distribution (Satterthwaite, Biometrics Bulletin 2(6), 1946).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from drgrade.stats.bootstrap import interval
from drgrade.stats.estimates import Floats, Interval

Replicate = tuple[int, int]
"""Training seed and label seed of a run."""

LEVEL = 0.95
"""Coverage of intervals."""


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
    def satterthwaite(self) -> float:
        """Degrees of freedom of the total; infinite if it is 0.

        The square of an estimated variance of ``df`` degrees of freedom, times df / (df + 2), is an unbiased
        estimate of the square of the variance (Welch, Biometrika 34(1/2), 1947).
        """
        parts = (max(0.0, self.groups - self.shared), self.seeds, self.draws, self.both)
        spread = sum(part**2 / (df + 2) for part, df in zip(parts, self.degrees, strict=True) if df > 0)
        return self.total**2 / spread if spread > 0 else math.inf


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
        return self.components.satterthwaite

    @property
    def percentile_interval(self) -> Interval:
        """95 % interval of percentiles, at the tail probability of Student's t.

        Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015
        (expanded percentile interval). It stays in the range of the metric.
        """
        tail = float(stats.norm.sf(stats.t.isf((1 - LEVEL) / 2, self.degrees)))
        return interval(self.samples, tail)

    @property
    def standard_error(self) -> float:
        """Standard deviation of the resamples."""
        return float(self.samples.std(ddof=1)) if len(self.samples) > 1 else math.nan

    @property
    def p_value(self) -> float:
        """Two-sided p-value that the expectation is 0.

        It is below 0.05 if :attr:`percentile_interval` excludes 0. If no resample is on the other side of
        0, it is that of Student's t from the standard error, if that is smaller.
        """
        if self.value == 0 or not len(self.samples):
            return 1.0 if self.value == 0 else math.nan
        sign = math.copysign(1.0, self.value)
        beyond = int((sign * self.samples <= 0).sum())
        share = min(0.5, (beyond + 1) / (len(self.samples) + 1))
        p = float(2 * stats.t.sf(stats.norm.isf(share), self.degrees))
        if beyond or not self.standard_error > 0:
            return p
        return min(p, float(2 * stats.t.sf(abs(self.value) / self.standard_error, self.degrees)))

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

    If seeds and label draws are not crossed, for example if each seed has its own, a pair of them counts as a
    seed. Without common replicates the mean of a fold counts as a single run.
    """
    shared = common_replicates(folds)
    if not shared:
        values = np.array([[[fold.values.mean()]] for fold in folds])
        return values, np.stack([fold.samples.mean(axis=0)[None, None] for fold in folds])
    seeds, draws = (sorted({each[part] for each in shared}) for part in (0, 1))
    grid = [[(seed, draw) for draw in draws] for seed in seeds]
    if len(shared) < len(seeds) * len(draws):
        grid = [[each] for each in shared]
    places = [[[list(fold.replicates).index(each) for each in row] for row in grid] for fold in folds]
    pairs = list(zip(folds, places, strict=True))
    return (
        np.stack([fold.values[place] for fold, place in pairs]),
        np.stack([fold.samples[place] for fold, place in pairs]),
    )


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
