"""Measure how often intervals cover, and how often p-values are below 0.05, without any difference.

Simulates tables of two equal methods: 3 training seeds x 3 label draws x 5 folds of 103 photographs, as on
IDRiD. A run grades a photograph by its true grade plus noise, rounded. The noise has parts of the photograph,
of the photograph and the method, of the photograph and the drawn labels, and of the run; its size varies with
the training seed (the same in all folds), with the drawn labels and between single runs. The sizes of these
effects are close to the variance components of runs on IDRiD. Prints the tables of docs/report.md:

    python benchmarks/null_tables.py --tables 5000 --resamples 300
    python benchmarks/null_tables.py --runs SWEEP [SWEEP ...]     # the variance components of runs
"""

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from common import make_parser, print_header, print_row
from scipy import stats

from drgrade.reporting.checks import collect_folds
from drgrade.reporting.comparison import QWK, compare
from drgrade.reporting.methods import group
from drgrade.reporting.statistics import compute_results, group_by_row, resampled_mean
from drgrade.reporting.study import find_runs
from drgrade.stats.bootstrap import TestFold, cells_by_group, draws, interval, kappas
from drgrade.stats.estimates import Floats, Interval
from drgrade.stats.hierarchical import FoldRuns, Replicate, ResampledMean, resample_mean

FOLDS, SEEDS, DRAWS, PHOTOGRAPHS = 5, 3, 3, 103
SHARES = np.array([168, 25, 168, 93, 62]) / 516  # of the grades of IDRiD
CROSSED = "3 seeds x 3 label draws"
_ALL = [(seed, draw) for seed in range(SEEDS) for draw in range(DRAWS)]
DESIGNS = {
    CROSSED: _ALL,
    "the same, one run missing": _ALL[:-1],
    "3 seeds, each with labels of its own": _ALL[::4],
    "3 seeds, one label draw": _ALL[::3],
    "2 seeds x 3 label draws": _ALL[:6],
    "2 seeds, one label draw": _ALL[:6:3],
}
COMPONENTS = ("groups", "seeds", "draws", "both", "shared", "total")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Effects of a simulation.

    Attributes:
        noise: Standard deviation of the noise in grades.
        photograph: Share of its variance that all runs on a photograph have in common.
        method: Share that all runs of a method on a photograph have in common.
        draw: Share that all runs with the same drawn labels have in common, of both methods.
        seed: Standard deviation of the logarithm of the noise over the training seeds of a method.
        labels: The same over the label draws of a fold, common to both methods.
        method_labels: The same over the label draws of a fold, for each method.
        run: The same over single runs.
    """

    noise: float = 2.75
    photograph: float = 0.42
    method: float = 0.03
    draw: float = 0.25
    seed: float = 0.015
    labels: float = 0.08
    method_labels: float = 0.04
    run: float = 0.05

    def scaled(self, factor: float) -> "Setting":
        """Multiply the effects of training."""
        names = ("seed", "labels", "method_labels", "run")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in names})


def simulate(setting: Setting, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw a table: true grades (F, N) and predicted grades (F, 2, S, D, N) of two equal methods."""
    shape = (FOLDS, 2, SEEDS, DRAWS, 1)

    def normal(*axes: int) -> Floats:
        return rng.standard_normal([size if axis in axes else 1 for axis, size in enumerate(shape)])

    grades = rng.choice(5, size=(FOLDS, PHOTOGRAPHS), p=SHARES)
    size = setting.seed * normal(1, 2) + setting.labels * normal(0, 3)
    size = size + setting.method_labels * normal(0, 1, 3) + setting.run * normal(0, 1, 2, 3)
    parts = (
        (setting.photograph, (FOLDS, 1, 1, 1, PHOTOGRAPHS)),
        (setting.method, (FOLDS, 2, 1, 1, PHOTOGRAPHS)),
        (setting.draw, (FOLDS, 1, 1, DRAWS, PHOTOGRAPHS)),
        (1 - setting.photograph - setting.method - setting.draw, (*shape[:4], PHOTOGRAPHS)),
    )
    noise = sum(np.sqrt(share) * rng.standard_normal(axes) for share, axes in parts)
    scores = grades[:, None, None, None] + setting.noise * np.exp(size) * noise
    return grades, np.clip(np.rint(scores), 0, 4).astype(np.int64)


class Resampler:
    """QWK of simulated runs, and in each resample of the photographs, which all tables share."""

    def __init__(self, resamples: int) -> None:
        ids, places = np.full(PHOTOGRAPHS, ""), np.arange(PHOTOGRAPHS)
        self.folds = [TestFold(str(fold), ids, places, places) for fold in range(FOLDS)]
        self.counts = [np.concatenate(list(draws(fold, resamples, 0))) for fold in self.folds]

    def __call__(self, grades: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        """Return (F, 2, S, D) values and (F, 2, S, D, B) samples."""
        values, samples = [], []
        for fold, counts, true, found in zip(self.folds, self.counts, grades, predicted, strict=True):
            own = dataclasses.replace(fold, grades=true)
            cells = cells_by_group(own, found.reshape(-1, PHOTOGRAPHS), 5)
            runs = found.shape[:3]
            values.append(kappas(cells.sum(axis=0).reshape(*runs, 5, 5)))
            samples.append(np.moveaxis(kappas((counts @ cells).reshape(-1, *runs, 5, 5)), 0, -1))
        return np.stack(values), np.stack(samples)


def fold_runs(values: Floats, samples: Floats, places: Sequence[Replicate]) -> list[FoldRuns]:
    """Return the folds of (F, S, D) values and (F, S, D, B) samples, of the runs at ``places``."""
    at = tuple(np.transpose(places))
    return [
        FoldRuns(places, own[at], drawn[at], PHOTOGRAPHS) for own, drawn in zip(values, samples, strict=True)
    ]


def naive_hierarchical(values: Floats, samples: Floats, rng: np.random.Generator) -> Interval:
    """Percentile interval of the plain bootstrap: as many seeds and label draws as there are, then groups."""
    number = samples.shape[-1]
    seeds = rng.multinomial(SEEDS, np.full(SEEDS, 1 / SEEDS), size=number) / SEEDS
    labels = rng.multinomial(DRAWS, np.full(DRAWS, 1 / DRAWS), size=(number, FOLDS)) / DRAWS
    return interval(np.einsum("bs,bfd,fsdb->b", seeds, labels, samples) / FOLDS)


def resampled_t(values: Floats, test_to_train: float) -> Interval:
    """Interval of the corrected resampled t-test (Nadeau and Bengio, Machine Learning 52(3), 2003)."""
    values = values.ravel()
    error = np.sqrt((1 / len(values) + test_to_train) * values.var(ddof=1))
    half = stats.t.isf(0.025, len(values) - 1) * error
    return Interval(float(values.mean() - half), float(values.mean() + half))


def intervals(
    values: Floats, samples: Floats, rng: np.random.Generator
) -> tuple[dict[str, Interval], ResampledMean]:
    """Return the intervals of the mean of (F, S, D) values by method, and the resampled mean."""
    found = {name: resample_mean(fold_runs(values, samples, places), 0) for name, places in DESIGNS.items()}
    return {
        "groups only (earlier versions)": interval(samples.mean(axis=(0, 1, 2))),
        "plain hierarchical bootstrap": naive_hierarchical(values, samples, rng),
        "corrected t-test, 45 runs": resampled_t(values, 0.25),
        "corrected t-test, 5 fold means": resampled_t(values.mean(axis=(1, 2)), 0.25),
        **{f"chosen, {name}": mean.percentile_interval for name, mean in found.items()},
    }, found[CROSSED]


def report_coverage(setting: Setting, arguments: argparse.Namespace) -> None:
    """Print the coverage of each method, and the share of p-values below 0.05."""
    rng, resampler = np.random.default_rng(arguments.seed), Resampler(arguments.resamples)
    rows, gaps = [], []
    for _ in range(arguments.tables):
        values, samples = resampler(*simulate(setting, rng))
        rows.append(intervals(values[:, 0], samples[:, 0], rng))
        gaps.append(intervals(values[:, 0] - values[:, 1], samples[:, 0] - samples[:, 1], rng))
    truth = float(np.mean([own.value for _, own in rows]))
    print_header("intervals", "cover the mean, %", "cover the difference, %", "exclude 0, %")
    for name in rows[0][0]:
        mean = np.mean([_inside(ends[name], truth) for ends, _ in rows])
        difference = np.mean([_inside(ends[name], 0.0) for ends, _ in gaps])
        print_row(name, *(f"{100 * share:.1f}" for share in (mean, difference, 1 - difference)))
    for level in (0.05, 0.01):
        print(f"p < {level} in {100 * np.mean([own.p_value < level for _, own in gaps]):.1f} % of the tables")
    spread = np.std([own.value for _, own in gaps], ddof=1)
    print(f"mean QWK {truth:.3f}; standard deviation of the difference {spread:.4f}")
    print_components([("mean", [own for _, own in rows]), ("difference", [own for _, own in gaps])])


def _inside(ends: Interval, value: float) -> bool:
    return ends.low <= value <= ends.high


def print_components(rows: list[tuple[str, list[ResampledMean]]]) -> None:
    """Print variance components in units of 0.0001, averaged over tables."""
    print_header("variance x 10,000", *COMPONENTS)
    for name, means in rows:
        parts = [np.mean([getattr(mean.components, part) for mean in means]) for part in COMPONENTS]
        print_row(name, *(f"{1e4 * part:.2f}" for part in parts))


def read_components(folders: list[Path], resamples: int) -> None:
    """Print the variance components of each row of runs, and of each difference between two methods."""
    runs = find_runs(folders)
    rows = group_by_row(compute_results(runs, collect_folds(runs), resamples, 0))
    labels = {method.key: method.label for method in group(runs).methods}
    found = [
        (f"{labels[key]}, {share:.0%}", [resampled_mean(results, QWK.value, QWK.samples, 0)])
        for (key, share), results in rows.items()
    ]
    keys = list(dict.fromkeys(key for key, _ in rows))
    for share in sorted({share for _, share in rows}):
        for first, second in combinations(keys, 2):
            _, difference = compare(rows[first, share], rows[second, share]) or (None, None)
            if difference:  # several training seeds in common
                found.append((f"{labels[first]} - {labels[second]}, {share:.0%}", [difference]))
    print_components(found)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the effects of training")
    parser.add_argument("--runs", type=Path, nargs="+", help="print the variance components of these runs")
    arguments = parser.parse_args()
    if arguments.runs:
        read_components(arguments.runs, arguments.resamples)
    else:
        report_coverage(Setting().scaled(arguments.scale), arguments)


if __name__ == "__main__":
    main()
