"""Paired comparisons agree with naive loops and scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import RANDOM, ROTATION, FakeMethod, remove_run, write_runs

from drgrade.reporting.study import build_study
from drgrade.reporting.tables import comparisons_table
from drgrade.stats.bootstrap import holm_correction
from drgrade.stats.formatting import DASH

TWIN = FakeMethod(("method=twin", "init=random"), skill=RANDOM.skill)
"""Another method with equal predictions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_runs(folder, [ROTATION, RANDOM, TWIN], [0.1, 1.0], seeds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return build_study([folder], resamples=400, compare="all")


def find(study, first, second, fraction):
    labels = {method.key: method.label for method in study.methods}
    (found,) = (
        each
        for each in study.comparisons
        if (labels[each.first], labels[each.second], each.label_fraction) == (first, second, fraction)
    )
    return found


def test_every_pair_is_compared_once_at_every_fraction(study):
    assert len(study.comparisons) == 3 * 2
    keys = [method.key for method in study.methods]
    for each in study.comparisons:
        assert keys.index(each.first) < keys.index(each.second)


def test_methods_with_equal_predictions_do_not_differ(study):
    for fraction in (0.1, 1.0):
        found = find(study, "rotation, random init", "twin, random init", fraction)
        assert found.difference.value == 0
        assert (found.difference.interval.low, found.difference.interval.high) == (0, 0)
        assert (found.won, found.p_value, found.p_holm) == (0.5, 1, 1)


def test_difference_is_that_of_the_rows_and_folds_are_counted(study):
    rows = {(row.method, row.label_fraction): row for row in study.rows}
    for each in study.comparisons:
        first, second = rows[each.first, each.label_fraction], rows[each.second, each.label_fraction]
        gaps = [first.folds[fold] - second.folds[fold] for fold in first.folds]
        assert each.difference.value == pytest.approx(first.mean.value - second.mean.value, abs=1e-12)
        assert each.won == np.mean([0.5 if gap == 0 else gap > 0 for gap in gaps])
        assert each.folds == 3


def test_pairing_uses_the_same_draws_for_both(study):
    """Methods with equal predictions differ from a third method equally in each resample."""
    one = find(study, "rotation, pre-trained", "rotation, random init", 1.0)
    other = find(study, "rotation, pre-trained", "twin, random init", 1.0)
    assert (one.difference, one.p_value) == (other.difference, other.p_value)


def test_only_common_folds_and_seeds_are_compared(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0], seeds=(0, 1))
    pretrained, random = runs[:6], runs[6:]  # fold 0 seed 0, fold 0 seed 1, fold 1 seed 0, ...
    for run in (pretrained[1], random[3], random[4], random[5]):
        remove_run(run)
    (found,) = build_study([tmp_path], resamples=100).comparisons
    assert found.folds == 2
    gaps = [qwk(pretrained[0]) - qwk(random[0]), qwk(pretrained[2]) - qwk(random[2])]
    assert found.difference.value == pytest.approx(np.mean(gaps), abs=1e-12)


def test_one_training_seed_gives_no_verdict(tmp_path):
    write_runs(tmp_path, [ROTATION, RANDOM], [0.1], label_seeds=(0, 1, 2))
    study = build_study([tmp_path], resamples=100)
    (found,) = study.comparisons
    assert found.seeds == 1
    assert found.difference.value == pytest.approx(study.rows[0].mean.value - study.rows[1].mean.value)
    unknown = (found.difference.interval.low, found.p_value, found.p_holm, found.detectable)
    assert np.isnan(unknown).all()
    table = comparisons_table(study)
    assert table.groups[0].lines[0].count(DASH) == 4
    assert any("the variation between trainings is unknown" in remark for remark in table.remarks)
    assert "corrected for the 0 p-values" in table.caption
    assert any("give no verdict" in note for note in study.notes)


def test_caption_has_the_size_of_the_family_and_notes_the_power(study):
    assert "corrected for the 6 p-values" in comparisons_table(study).caption
    assert "hierarchical bootstrap of training seeds and label draws" in comparisons_table(study).caption
    sizes = [each.detectable for each in study.comparisons]
    (note,) = (note for note in study.notes if note.startswith("Power: with 6 comparisons"))
    assert f"{min(sizes):.3f} to {max(sizes):.3f}" in note


def test_p_values_are_corrected_for_the_chosen_comparisons(study, folder):
    few = build_study([folder], resamples=400)
    wide = {(each.first, each.second, each.label_fraction): each for each in study.comparisons}
    assert 0 < len(few.comparisons) < len(wide)
    for each in few.comparisons:
        same = wide[each.first, each.second, each.label_fraction]
        assert (same.difference, same.p_value) == (each.difference, each.p_value)
        assert same.p_holm >= each.p_holm
        assert same.detectable > each.detectable


def qwk(run) -> float:
    return pd.read_json(run / "metrics.json", typ="series")["test/qwk"]


def test_methods_without_a_common_fold_are_not_compared_with_a_note(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0])
    for run in (runs[1], runs[2], runs[3]):
        remove_run(run)
    study = build_study([tmp_path], resamples=20)
    assert not study.comparisons
    assert any(note.startswith("Not compared at 100 % of the labels") for note in study.notes)


def test_swapping_the_methods_mirrors_the_comparison(folder, study):
    first, second = study.methods[0].label, study.methods[1].label
    (mirrored, *_) = build_study([folder], resamples=400, compare=first).comparisons
    found = find(study, first, second, mirrored.label_fraction)
    assert mirrored.difference.value == pytest.approx(-found.difference.value)
    assert mirrored.difference.interval.low == pytest.approx(-found.difference.interval.high)
    assert mirrored.p_value == pytest.approx(found.p_value)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_correction_equals_a_naive_loop(p_values):
    expected: list[float] = []
    for p in p_values:
        # Step-down: the maximum over all hypotheses with a p-value that is at most as large.
        smaller = sorted(p_values)
        steps = [other * (len(p_values) - place) for place, other in enumerate(smaller) if other <= p]
        first = [other * (len(p_values) - smaller.index(other)) for other in smaller if other <= p]
        expected.append(min(1.0, max(max(steps), max(first))))
    assert holm_correction(p_values) == pytest.approx(expected)
