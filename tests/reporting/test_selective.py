"""Selective prediction agrees with naive loops, and does not depend on the order of tied photographs."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from drgrade.reporting.selective import SELECTIVE
from drgrade.reporting.study import build_study
from drgrade.reporting.writer import write_report
from drgrade.stats.bootstrap import TestFold, draws
from drgrade.stats.selective import (
    COVERAGES,
    MIN_GRADED,
    REFER_ALL,
    Selection,
    fit_limits,
    macro_f1s,
    measure_selective,
    read_limits,
    resample_selective,
    selective_metrics,
    uncertainty_limit,
    without_limits,
)
from tests.reporting.synthetic import ROTATION, change_json, write_runs

SEEDS = st.integers(0, 2**32 - 1)


def make_predictions(count: int, seed: int, levels: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make uncertainties on some levels, predicted and true grades of ``count`` photographs."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    uncertainty = rng.integers(0, levels, count) / levels
    right = rng.random(count) > uncertainty
    return uncertainty, np.where(right, grades, rng.integers(0, 5, count)), grades


def naive_aurc(wrong: np.ndarray) -> float:
    """Average the risk of the first k photographs over all k."""
    return float(np.mean([wrong[:k].mean() for k in range(1, len(wrong) + 1)]))


@given(SEEDS, st.integers(1, 60))
def test_aurc_without_ties_equals_a_loop(seed, count):
    _, predicted, grades = make_predictions(count, seed)
    uncertainty = np.random.default_rng(seed).permutation(count) / count
    wrong = (predicted != grades)[np.argsort(uncertainty)]
    assert Selection(uncertainty, predicted, grades).aurc() == pytest.approx(naive_aurc(wrong), abs=1e-12)


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_aurc_with_ties_is_the_mean_over_all_orders_of_the_ties(seed, count, levels):
    uncertainty, predicted, grades = make_predictions(count, seed, levels)
    orders = [order for order in permutations(range(count)) if (np.diff(uncertainty[list(order)]) >= 0).all()]
    expected = np.mean([naive_aurc((predicted != grades)[list(order)]) for order in orders])
    assert Selection(uncertainty, predicted, grades).aurc() == pytest.approx(expected, abs=1e-12)


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_confusion_with_ties_is_the_mean_over_all_orders_of_the_ties(seed, count, levels):
    uncertainty, predicted, grades = make_predictions(count, seed, levels)
    orders = [
        list(order) for order in permutations(range(count)) if (np.diff(uncertainty[list(order)]) >= 0).all()
    ]
    for graded in range(1, count + 1):
        counts = np.zeros((5, 5))
        for order in orders:
            np.add.at(counts, (grades[order[:graded]], predicted[order[:graded]]), 1 / len(orders))
        found = Selection(uncertainty, predicted, grades).confusion(graded / count)[0]
        assert found == pytest.approx(counts, abs=1e-9)


@given(SEEDS, st.integers(1, 80), st.integers(1, 9))
def test_order_of_the_photographs_has_no_effect(seed, count, levels):
    uncertainty, predicted, grades = make_predictions(count, seed, levels)
    order = np.random.default_rng(seed).permutation(count)
    one = selective_metrics(uncertainty, predicted, grades, {0.8: 0.5})
    other = selective_metrics(uncertainty[order], predicted[order], grades[order], {0.8: 0.5})
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=1e-9, nan_ok=True)


@given(SEEDS, st.integers(1, 80), st.integers(1, 9))
def test_rounding_errors_do_not_break_ties(seed, count, levels):
    uncertainty, predicted, grades = make_predictions(count, seed, levels)
    noise = np.random.default_rng(seed).normal(0, 1e-14, count)
    found = Selection(uncertainty + noise, predicted, grades).aurc()
    assert found == pytest.approx(Selection(uncertainty, predicted, grades).aurc(), abs=1e-9)


@given(SEEDS, st.integers(2, 80))
def test_equal_uncertainties_give_the_share_of_wrong_grades(seed, count):
    _, predicted, grades = make_predictions(count, seed)
    chosen = Selection(np.full(count, 0.3), predicted, grades)
    assert chosen.aurc() == pytest.approx(np.mean(predicted != grades))
    for coverage in COVERAGES:
        assert chosen.risk(coverage) == pytest.approx(np.mean(predicted != grades))


@given(SEEDS, st.integers(1, 80))
def test_excess_aurc_is_0_for_the_best_order_and_not_negative(seed, count):
    uncertainty, predicted, grades = make_predictions(count, seed)
    wrong = (predicted != grades).astype(float)
    best = Selection(wrong + uncertainty / 2, predicted, grades)
    assert best.excess_aurc() == pytest.approx(0, abs=1e-12)
    chosen = Selection(uncertainty, predicted, grades)
    assert chosen.excess_aurc() == pytest.approx(chosen.aurc() - best.aurc(), abs=1e-12)
    assert (chosen.excess_aurc() >= 0).all()


@given(SEEDS, st.integers(10, 80))
@settings(max_examples=50)
def test_metrics_at_a_coverage_equal_scikit_learn_on_the_most_certain(seed, count):
    count = count // 10 * 10  # so that every coverage is a whole number of photographs
    _, predicted, grades = make_predictions(count, seed)
    uncertainty = np.random.default_rng(seed).permutation(count) / count
    found = selective_metrics(uncertainty, predicted, grades, {})
    for coverage in COVERAGES:
        chosen = np.argsort(uncertainty)[: round(coverage * count)]
        name = "" if coverage == 1 else f"_at_coverage_{coverage:g}"
        qwk = cohen_kappa_score(grades[chosen], predicted[chosen], labels=range(5), weights="quadratic")
        assert found[f"qwk{name}"][0] == pytest.approx(np.nan_to_num(qwk), abs=1e-9)
        macro = f1_score(grades[chosen], predicted[chosen], average="macro")
        assert found[f"macro_f1{name}"][0] == pytest.approx(macro, abs=1e-9)


def test_macro_f1_without_photographs_is_0():
    assert macro_f1s(np.zeros((5, 5))) == 0


@pytest.mark.parametrize("levels", [4, 1000])
def test_every_resample_equals_metrics_of_repeated_photographs(levels):
    uncertainty, predicted, grades = make_predictions(40, 0, levels)
    groups = np.repeat(np.arange(20), 2)
    fold = TestFold("0", np.arange(40).astype(str), groups, grades)
    limits = {0.7: 0.4, 0.9: REFER_ALL}
    found = resample_selective(fold, uncertainty, predicted, limits, 50, seed=3)
    assert set(SELECTIVE) <= set(found)
    (counts,) = draws(fold, 50, seed=3)
    for b, drawn in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(40), drawn[groups])
        expected = selective_metrics(uncertainty[rows], predicted[rows], grades[rows], limits)
        for name, value in expected.items():
            assert found[name][b] == pytest.approx(value[0], abs=1e-9, nan_ok=True), name


def test_limit_grades_as_many_validation_photographs_as_reach_the_qwk():
    uncertainty, predicted, grades = make_predictions(200, 1)
    limit = uncertainty_limit(uncertainty, predicted, grades, wanted=0.8)
    assert 0 < limit < 1

    def qwk(graded: np.ndarray) -> float:
        return cohen_kappa_score(grades[graded], predicted[graded], labels=range(5), weights="quadratic")

    assert qwk(uncertainty <= limit) >= 0.8
    for higher in np.unique(uncertainty[uncertainty > limit]):
        assert qwk(uncertainty <= higher) < 0.8


def test_limit_refers_no_photograph_or_all_at_its_ends():
    uncertainty, _, grades = make_predictions(100, 2)
    assert uncertainty_limit(uncertainty, grades, grades, wanted=0.9) == 1
    assert uncertainty_limit(uncertainty, np.zeros_like(grades), grades, wanted=0.9) == REFER_ALL
    few = slice(MIN_GRADED - 1)
    assert uncertainty_limit(uncertainty[few], grades[few], grades[few], wanted=0.5) == REFER_ALL


def test_limit_never_divides_photographs_of_equal_uncertainty():
    uncertainty = np.repeat([0.1, 0.5, 0.9], 30)
    grades = np.tile(np.arange(5), 18)
    predicted = np.where(np.arange(90) < 45, grades, 0)  # wrong from the middle of the second level
    assert uncertainty_limit(uncertainty, predicted, grades, wanted=0.99) == pytest.approx(0.3)


def test_limits_are_read_back_from_the_metrics_of_a_run():
    uncertainty, predicted, grades = make_predictions(100, 3)
    limits = fit_limits(uncertainty, predicted, grades)
    record = {**limits, "test/qwk": 0.5}
    assert list(read_limits(record).values()) == list(limits.values())
    assert without_limits(record) == {"test/qwk": 0.5}
    assert read_limits({"test/qwk": 0.5}) == {}


def test_metrics_of_a_run_have_no_qwk_if_all_photographs_are_referred():
    uncertainty, predicted, grades = make_predictions(50, 4)
    found = measure_selective(uncertainty, predicted, grades, {"uncertainty_limit_for_qwk_0.9": REFER_ALL})
    assert found["referred_for_qwk_0.9"] == 1
    assert "qwk_after_referral_0.9" not in found
    assert "qwk" not in found


def test_curves_end_with_all_photographs():
    uncertainty, predicted, grades = make_predictions(50, 5)
    curve = Selection(uncertainty, predicted, grades).curve()
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(np.mean(predicted != grades))
    assert curve.qwk[-1] == pytest.approx(selective_metrics(uncertainty, predicted, grades, {})["qwk"][0])


def test_report_compares_methods_by_aurc_with_a_correction_of_their_own(tmp_path):
    write_runs(tmp_path, fractions=(1.0,))
    study = build_study([tmp_path], resamples=200)
    row, reference = study.rows
    found = {each.statistic: each for each in study.selective_comparisons}
    assert set(found) == {*SELECTIVE} - {"qwk"}
    for name in ("aurc", "qwk_at_coverage_0.8"):
        expected = row.selective.metrics[name].value - reference.selective.metrics[name].value
        assert found[name].difference.value == pytest.approx(expected)
    assert found["aurc"].difference.value < 0  # the method with more skill has the lower risk
    assert found["aurc"].won > 0.5  # lower is better
    assert {each.statistic for each in study.comparisons} == {"qwk"}


def test_report_writes_tables_and_figures_of_selective_prediction(tmp_path):
    runs = write_runs(tmp_path / "runs", methods=(ROTATION,), fractions=(1.0,))
    page = write_report(build_study([tmp_path / "runs"], resamples=100), tmp_path / "old")
    assert "recorded no uncertainty limits" in page.read_text()
    for run in runs:
        change_json(run / "metrics.json", **{"uncertainty_limit_for_qwk_0.8": 0.9})
    study = build_study([tmp_path / "runs"], resamples=100)
    (referral,) = study.rows[0].selective.referrals
    assert (referral.reached, referral.runs) == (3, 3)
    write_report(study, tmp_path / "new")
    table = pd.read_csv(tmp_path / "new" / "selective.csv")
    assert table["metric"].tolist() == [*SELECTIVE]
    row = study.rows[0]
    qwk = table.set_index("metric")["value"]["qwk"]
    assert qwk == pytest.approx(row.mean.value)
    assert (tmp_path / "new" / "referral.csv").is_file()
    assert (tmp_path / "new" / "figures" / "risk-coverage-100pct.png").is_file()
