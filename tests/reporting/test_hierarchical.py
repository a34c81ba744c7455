"""The hierarchical bootstrap covers simulated truths and agrees with naive computations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from drgrade.stats.bootstrap import interval
from drgrade.stats.hierarchical import FoldRuns, resample_mean

FOLDS, SEEDS, DRAWS, PHOTOGRAPHS, RESAMPLES = 5, 3, 3, 80, 500


def arrange(values, samples, places=None) -> list[FoldRuns]:
    """Return folds of (F, S, D) values and (F, S, D, B) samples; ``places``: the runs that there are."""
    places = places or list(np.ndindex(values.shape[1:]))
    return [
        FoldRuns(
            places, np.array([own[at] for at in places]), np.stack([all[at] for at in places]), PHOTOGRAPHS
        )
        for own, all in zip(values, samples, strict=True)
    ]


def draw_table(rng, counts, seed=0.03, labels=0.04, run=0.05, photograph=0.3, noise=0.4):
    """Draw values and samples whose expectation is 0: effects of training plus means over photographs."""
    effects = seed * rng.standard_normal((1, SEEDS, 1)) + labels * rng.standard_normal((FOLDS, 1, DRAWS))
    effects = effects + run * rng.standard_normal((FOLDS, SEEDS, DRAWS))
    results = photograph * rng.standard_normal((FOLDS, 1, 1, PHOTOGRAPHS))
    results = results + noise * rng.standard_normal((FOLDS, SEEDS, DRAWS, PHOTOGRAPHS))
    samples = np.einsum("fsdn,bn->fsdb", results, counts) / PHOTOGRAPHS
    return effects + results.mean(axis=-1), effects[..., None] + samples


@pytest.fixture(scope="module")
def counts():
    """Number of times that each photograph is drawn, (B, N)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(PHOTOGRAPHS, np.full(PHOTOGRAPHS, 1 / PHOTOGRAPHS), size=RESAMPLES)


@pytest.fixture(scope="module")
def tables(counts):
    rng = np.random.default_rng(1)
    return [draw_table(rng, counts) for _ in range(600)]


def test_intervals_cover_and_p_values_are_not_too_small_without_a_difference(tables):
    found = [resample_mean(arrange(*table), 0) for table in tables]
    ends = [each.percentile_interval for each in found]
    covered = np.mean([each.low <= 0 <= each.high for each in ends])
    assert 0.925 < covered < 0.975  # 0.95, three standard errors of 600 tables
    p_values = np.array([each.p_value for each in found])
    assert (p_values < 0.05).mean() < 0.075
    assert (p_values < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_bootstrap_of_groups_alone_covers_too_seldom(tables):
    covered = [
        ends.low <= 0 <= ends.high
        for _, samples in tables
        for ends in (interval(samples.mean(axis=(0, 1, 2))),)
    ]
    assert np.mean(covered) < 0.85


def test_variance_components_are_unbiased(tables):
    parts = [resample_mean(arrange(*table), 0).components for table in tables]
    training = np.mean([each.seeds + each.draws - each.both - each.shared for each in parts])
    expected = 0.03**2 / SEEDS + 0.04**2 / (FOLDS * DRAWS) + 0.05**2 / (FOLDS * SEEDS * DRAWS)
    assert training == pytest.approx(expected, rel=0.1)
    shared = 0.4**2 / (FOLDS * SEEDS * DRAWS * PHOTOGRAPHS)
    assert np.mean([each.shared for each in parts]) == pytest.approx(shared, rel=0.1)
    spread = np.var([values.mean() for values, _ in tables])
    assert np.mean([each.total for each in parts]) == pytest.approx(spread, rel=0.15)


def test_resamples_have_the_estimated_variance(tables):
    found = resample_mean(arrange(*tables[0]), 0)
    assert found.components.training > 0
    assert found.samples.var(ddof=1) == pytest.approx(found.components.total, rel=0.2)


def test_mean_squares_equal_a_naive_loop(tables):
    values, samples = tables[0]
    found = resample_mean(arrange(values, samples), 0).components
    by_seed = [np.mean([values[f, s, d] for f in range(FOLDS) for d in range(DRAWS)]) for s in range(SEEDS)]
    assert found.seeds == pytest.approx(np.var(by_seed, ddof=1) / SEEDS)
    by_draw = [[np.mean(values[f, :, d]) for d in range(DRAWS)] for f in range(FOLDS)]
    expected = np.mean([np.var(row, ddof=1) for row in by_draw]) / DRAWS / FOLDS
    assert found.draws == pytest.approx(expected)
    squares = [
        (values[f, s, d] - values[f, s].mean() - values[f, :, d].mean() + values[f].mean()) ** 2
        for f, s, d in np.ndindex(values.shape)
    ]
    mean_square = np.sum(squares) / FOLDS / ((SEEDS - 1) * (DRAWS - 1))
    assert found.both == pytest.approx(mean_square / (FOLDS * SEEDS * DRAWS))


def test_one_training_adds_nothing_to_the_groups(tables):
    values, samples = tables[0]
    found = resample_mean(arrange(values, samples, [(1, 2)]), 0)
    assert found.seeds == 1
    assert found.components.training == 0
    assert np.array_equal(found.samples, samples[:, 1, 2].mean(axis=0))
    assert found.degrees == pytest.approx(FOLDS * (PHOTOGRAPHS - 1) + 2)


def test_seeds_with_labels_of_their_own_count_as_one_factor(tables):
    values, samples = tables[0]
    found = resample_mean(arrange(values, samples, [(0, 0), (1, 1), (2, 2)]), 0)
    by_pair = [values[:, each, each].mean() for each in range(3)]
    assert found.components.seeds == pytest.approx(np.var(by_pair, ddof=1) / 3)
    assert (found.components.draws, found.components.both) == (0, 0)


def test_runs_that_other_folds_lack_count_for_the_value_only(tables):
    values, samples = tables[0]
    folds = arrange(values, samples, [(0, 0), (1, 0)])
    folds[0] = arrange(values, samples, [(0, 0)])[0]
    found = resample_mean(folds, 0)
    assert found.value == pytest.approx((values[0, 0, 0] + values[1:, :2, 0].mean(axis=1).sum()) / FOLDS)
    assert found.seeds == 1
    folds[0] = arrange(values, samples, [(2, 0)])[0]
    assert resample_mean(folds, 0).seeds == 0


CROSSED = [(seed, draw) for seed in range(SEEDS) for draw in range(DRAWS)]
DESIGNS = {
    "one cell missing": CROSSED[:-1],
    "two cells missing": [*CROSSED[:4], *CROSSED[5:8]],
    "three seeds": [(0, 0), (1, 0), (2, 0)],
    "three seeds with labels of their own": [(0, 0), (1, 1), (2, 2)],
    "two seeds": [(0, 0), (1, 0)],
    "two seeds, crossed": CROSSED[:6],
    "two seeds with unequal numbers of labels of their own": [(0, 0), (1, 1), (1, 2)],
}


@pytest.mark.parametrize("design", DESIGNS)
def test_p_values_of_few_and_unbalanced_trainings_are_not_too_small(tables, design):
    found = [resample_mean(arrange(*table, DESIGNS[design]), 0) for table in tables]
    ends = [each.percentile_interval for each in found]
    # Coverage of 0.95 or more, less three standard errors of 600 tables.
    assert np.mean([each.low <= 0 <= each.high for each in ends]) > 0.925
    assert np.mean([each.p_value < 0.05 for each in found]) < 0.075


def test_missing_cell_leaves_the_largest_complete_part_for_the_variance(tables):
    values, samples = tables[0]
    folds = arrange(values, samples)
    folds[0] = arrange(values, samples, CROSSED[:-1])[0]
    found = resample_mean(folds, 0)
    assert found.components.degrees[1:] == (2, FOLDS, FOLDS * 2)  # three seeds, two label draws
    by_seed = values[:, :, :2].mean(axis=(0, 2))
    assert found.components.seeds == pytest.approx(by_seed.var(ddof=1) / 3)
    assert (found.seeds, found.value) == (3, pytest.approx(np.mean([each.values.mean() for each in folds])))


def test_label_draws_of_a_seed_of_its_own_are_not_independent_runs(tables):
    values, samples = tables[0]
    places = [(0, 0), (0, 1), (1, 2)]
    found = resample_mean(arrange(values, samples, places), 0).components
    by_seed = [values[:, 0, :2].mean(), values[:, 1, 2].mean()]
    assert found.seeds == pytest.approx(np.var(by_seed, ddof=1) / 2)
    assert (found.degrees[1], found.draws) == (1, 0)


def test_copies_of_a_run_add_no_degrees_of_freedom(tables):
    """With all labels, every label draw is the same."""
    values, samples = (np.repeat(each[:, :, :1], DRAWS, axis=2) for each in tables[0])
    copies, once = (resample_mean(arrange(values, samples, at), 0) for at in (None, DESIGNS["three seeds"]))
    assert copies.degrees == pytest.approx(once.degrees)
    assert copies.components.total == pytest.approx(once.components.total)


def test_undefined_resamples_are_left_out(tables):
    values, samples = tables[0]
    some = samples.copy()
    some[..., :7] = np.nan
    found = resample_mean(arrange(values, some), 0)
    assert len(found.samples) == RESAMPLES - 7
    assert math.isfinite(found.percentile_interval.low)
    nothing = resample_mean(arrange(values * np.nan, samples * np.nan), 0)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.percentile_interval.low)


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.4, 0.4), st.integers(0, 50), st.sampled_from([None, *DESIGNS.values()]))
def test_interval_excludes_zero_exactly_if_p_is_below_5_per_cent(counts, shift, seed, places):
    values, samples = draw_table(np.random.default_rng(seed), counts)
    found = resample_mean(arrange(values + shift, samples + shift, places), 0)
    ends = found.percentile_interval
    if abs(found.p_value - 0.05) > 0.02:  # the interval interpolates between resamples
        assert (found.p_value < 0.05) == (ends.low > 0 or ends.high < 0)


def test_power_at_the_detectable_difference_is_about_80_per_cent(tables):
    found = [resample_mean(arrange(*table), 0) for table in tables]
    difference = float(np.mean([each.detectable(0.05) for each in found]))
    shown = [
        resample_mean(arrange(values + difference, samples + difference), 0).p_value < 0.05
        for values, samples in tables
    ]
    assert 0.7 < np.mean(shown) < 0.9


def test_power_of_a_known_variance_is_that_of_the_normal_distribution():
    samples = np.random.default_rng(0).normal(0, 0.02, (1, 100_000))
    fold = FoldRuns([(0, 0)], np.zeros(1), samples, 100_000)
    expected = 0.02 * (stats.norm.isf(0.025) + stats.norm.isf(0.2))
    assert resample_mean([fold], 0).detectable(0.05) == pytest.approx(expected, rel=0.01)


def test_equal_runs_do_not_differ(counts):
    nothing = np.zeros((FOLDS, SEEDS, DRAWS))
    found = resample_mean(arrange(nothing, np.zeros((*nothing.shape, RESAMPLES))), 0)
    assert (found.value, found.p_value) == (0, 1)
    assert (found.percentile_interval.low, found.percentile_interval.high) == (0, 0)
