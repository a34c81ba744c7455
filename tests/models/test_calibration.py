"""Temperature, thresholds, operating points and their metrics against scikit-learn, SciPy and naive loops."""

import json
import math

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score, log_loss, recall_score, roc_curve

from drgrade.errors import ConfigError, DataError
from drgrade.metrics.functional import (
    brier_score,
    confusion_matrix,
    expected_calibration_error,
    negative_log_likelihood,
    quadratic_weighted_kappa,
)
from drgrade.models.calibration import (
    MIN_PHOTOGRAPHS,
    NUM_PARTS,
    TARGET_SENSITIVITIES,
    Calibration,
    OperatingPoint,
    apply_temperature,
    calibrated_metrics,
    cross_fitted_metrics,
    ensemble_calibration,
    expected_grade,
    fit_calibration,
    fit_temperature,
    normalised_entropy,
    operating_points,
    referable_probability,
)


def _drawn(count=400, sharpness=3.0, seed=0):
    """Probabilities of a model that is usually correct, and overconfident if ``sharpness`` is high."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    distance = np.abs(np.arange(5)[None] - (grades + rng.normal(0, 1, count))[:, None])
    return torch.softmax(torch.from_numpy(-sharpness * distance), dim=1), torch.from_numpy(grades)


def test_the_temperature_equals_scipys_posterior_mode():
    probabilities, grades = _drawn()

    def loss(temperature):
        logits = np.log(np.clip(probabilities.numpy(), 1e-6, None)) / temperature
        scaled = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        prior = scipy.stats.norm.logpdf(math.log(temperature)) / len(grades)
        return log_loss(grades.numpy(), scaled, labels=range(5)) - prior

    reference = minimize(lambda x: loss(math.exp(x[0])), [0.0], method="Nelder-Mead", tol=1e-10)
    assert fit_temperature(probabilities, grades) == pytest.approx(math.exp(reference.x[0]), rel=1e-4)


def test_the_prior_bounds_the_temperature_of_ten_photographs():
    probabilities = torch.full((10, 5), 0.05, dtype=torch.float64)
    grades = torch.arange(10) % 5
    probabilities[torch.arange(10), grades] = 0.8
    assert 0.2 < fit_temperature(probabilities, grades) < 1
    many = fit_temperature(probabilities.repeat(1000, 1), grades.repeat(1000))
    assert many < fit_temperature(probabilities, grades)


def test_thresholds_of_operating_points_are_midpoints():
    scores = torch.tensor([0.1, 0.3, 0.6, 0.9])
    points = operating_points(scores, torch.tensor([False, True, False, True]))
    assert [each.threshold for each in points] == pytest.approx([0.75, 0.2])
    tiny = np.nextafter(0.5, 1)
    close = torch.tensor([0.5, tiny], dtype=torch.float64)
    assert operating_points(close, torch.tensor([False, True]))[0].threshold == tiny


@pytest.mark.parametrize(("sharpness", "above"), [(6.0, True), (0.3, False)])
def test_overconfidence_gives_a_temperature_above_1(sharpness, above):
    assert (fit_temperature(*_drawn(sharpness=sharpness)) > 1) == above


def test_the_temperature_of_a_softmax_divides_its_logits():
    logits = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        apply_temperature(torch.softmax(logits, 1), 1.7), torch.softmax(logits / 1.7, 1), atol=1e-5, rtol=0
    )


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0.05, 20))
def test_a_temperature_keeps_order_and_sum(values, temperature):
    given_ = torch.tensor([values], dtype=torch.float64) + 1e-5
    given_ = given_ / given_.sum()
    found = apply_temperature(given_, temperature)
    assert float(found.sum()) == pytest.approx(1)
    order = given_.argsort(dim=1)
    assert (found.gather(1, order).diff(dim=1) >= -1e-12).all()


def test_fitted_thresholds_are_at_least_as_good_as_rounding():
    probabilities, grades = _drawn(sharpness=1.0)
    calibration = fit_calibration(probabilities, grades)
    rounded = (expected_grade(calibration.probabilities(probabilities)) + 0.5).floor().long()

    def kappa(predicted):
        return float(quadratic_weighted_kappa(confusion_matrix(predicted, grades)))

    assert kappa(calibration.predict(calibration.probabilities(probabilities))) >= kappa(rounded)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
def test_operating_points_are_the_corners_of_the_roc_curve(drawn):
    scores = torch.tensor([score / 12 for score, _ in drawn])
    truth = torch.tensor([positive for _, positive in drawn])
    points = operating_points(scores, truth)
    if truth.all() or not truth.any():
        assert points == ()
        return
    false, true, cuts = roc_curve(truth.numpy(), scores.double().numpy(), drop_intermediate=False)
    reference = {(round(t, 9), round(1 - f, 9)) for f, t, cut in zip(false, true, cuts, strict=True)}
    for point in points:
        assert (round(point.sensitivity, 9), round(point.specificity, 9)) in reference
        referred = scores.double().numpy() >= point.threshold
        assert referred[truth.numpy()].mean() == pytest.approx(point.sensitivity)
        assert (~referred)[~truth.numpy()].mean() == pytest.approx(point.specificity)
    for wanted in (0.3, 0.8, 0.9, 1.0):
        best = max(specificity for sensitivity, specificity in reference if sensitivity >= wanted - 1e-9)
        assert Calibration(points=points).point(wanted).specificity == pytest.approx(best)


@pytest.mark.parametrize("wanted", [0, -0.1, 1.1, float("nan")])
def test_impossible_sensitivities_are_refused(wanted):
    with pytest.raises(ConfigError, match="sensitivity="):
        fit_calibration(*_drawn()).point(wanted)


def test_too_few_photographs_are_not_calibrated():
    probabilities, grades = _drawn(MIN_PHOTOGRAPHS - 1)
    assert fit_calibration(probabilities, grades).temperature == 1
    same = fit_calibration(_drawn(50)[0], torch.full((50,), 2))
    assert (same.photographs, same.points) == (0, ())
    assert "of one grade" in same.note


def test_without_referable_photographs_there_is_no_operating_point():
    probabilities, grades = _drawn(60)
    calibration = fit_calibration(probabilities, grades.clamp(max=1))
    assert calibration.temperature != 1
    with pytest.raises(ConfigError, match="with and without referable DR"):
        calibration.point(0.9)


def test_uncertainty_is_the_normalised_entropy():
    probabilities = torch.tensor([[1.0, 0, 0, 0, 0], [0.2] * 5, [0.5, 0.5, 0, 0, 0]])
    expected = [0, 1, math.log(2) / math.log(5)]
    assert normalised_entropy(probabilities).tolist() == pytest.approx(expected)


def test_referable_is_grade_2_and_worse():
    assert float(referable_probability(torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]]))) == pytest.approx(0.7)


def test_json_restores_the_same_bits():
    calibration = fit_calibration(*_drawn())
    assert Calibration.from_json(calibration.to_json()) == calibration


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"points": 3}', '{"points": [], "thresholds": [1]}'])
def test_damaged_json_is_refused(text):
    with pytest.raises(DataError, match=r"calibration (is damaged|cannot be read)"):
        Calibration.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", "1"),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("thresholds", [0.5, 1.5, 2.5]),
        ("thresholds", [0.5, 1.5, 2.5, math.nan]),
        ("thresholds", [0.5, 2.5, 1.5, 3.5]),
        ("thresholds", [0.5, 1.5, 2.5, None]),
        ("points", [{"threshold": 2, "sensitivity": 1, "specificity": 0}]),
        ("points", [{"threshold": 0.5, "sensitivity": 0.9, "specificity": 0}]),
        ("points", [{"threshold": 0.5}]),
        ("of_another_version", 1),
    ],
)
def test_impossible_values_are_refused(name, value):
    record = json.loads(fit_calibration(*_drawn(50)).to_json())
    with pytest.raises(DataError, match=r"calibration (is damaged|cannot be read)"):
        Calibration.from_json(json.dumps({**record, name: value}))


def test_an_ensemble_has_mean_thresholds_and_no_temperature():
    one, other = fit_calibration(*_drawn(seed=1)), fit_calibration(*_drawn(seed=2))
    both = ensemble_calibration([one, other])
    assert both.temperature == 1
    assert both.thresholds == pytest.approx(np.mean([one.thresholds, other.thresholds], axis=0))
    assert ensemble_calibration([one]) is one


def _overconfident(count, seed=0):
    return _drawn(count, 4.0, seed)


@pytest.fixture(scope="module")
def fitted():
    """Return a calibration and photographs that it was not fitted on."""
    return fit_calibration(*_overconfident(120)), *_overconfident(300, seed=1)


def test_metrics_equal_scikit_learns(fitted):
    calibration, probabilities, grades = fitted
    found = calibrated_metrics(probabilities, grades, calibration)
    tempered_ = apply_temperature(probabilities, calibration.temperature)
    read = np.digitize(tempered_.numpy() @ np.arange(5), calibration.thresholds)
    truth = grades.numpy()
    assert found["qwk_thresholds"] == pytest.approx(cohen_kappa_score(truth, read, weights="quadratic"))
    assert found["nll_calibrated"] == pytest.approx(log_loss(truth, tempered_.numpy(), labels=range(5)))
    assert found["ece_calibrated"] == expected_calibration_error(tempered_, grades)
    assert found["brier_calibrated"] == brier_score(tempered_, grades)
    for target in TARGET_SENSITIVITIES:
        referred = tempered_[:, 2:].sum(dim=1).numpy() >= calibration.point(target).threshold
        true_negative = int((~referred & (truth < 2)).sum())
        assert found[f"sensitivity_at_{target:g}"] == pytest.approx(recall_score(truth >= 2, referred))
        assert found[f"specificity_at_{target:g}"] == pytest.approx(true_negative / (truth < 2).sum())


def test_an_overconfident_model_is_better_calibrated_on_other_photographs(fitted):
    calibration, probabilities, grades = fitted
    found = calibrated_metrics(probabilities, grades, calibration)
    assert calibration.temperature > 1
    assert found["nll_calibrated"] < found["nll"]
    assert found["brier_calibrated"] < found["brier"]
    assert found["ece_calibrated"] < expected_calibration_error(probabilities, grades)


def test_without_a_fit_there_are_only_uncalibrated_metrics():
    assert calibrated_metrics(*_overconfident(50), Calibration()).keys() == {"nll", "brier"}


def test_without_operating_points_the_other_metrics_remain():
    probabilities, grades = _overconfident(60)
    calibration = fit_calibration(probabilities, grades.clamp(max=1))
    found = calibrated_metrics(probabilities, grades, calibration)
    assert "nll_calibrated" in found
    assert not any("_at_" in name for name in found)


def test_an_ensemble_passes_its_own_probabilities_and_thresholds(fitted):
    calibration, probabilities, grades = fitted
    both = ensemble_calibration([calibration, calibration])
    own = calibration.probabilities(probabilities)
    cuts = {target: calibration.point(target).threshold for target in TARGET_SENSITIVITIES}
    alone = calibrated_metrics(probabilities, grades, calibration)
    assert calibrated_metrics(probabilities, grades, both, own, cuts) == pytest.approx(alone)


def test_metrics_are_named_by_the_target_sensitivity():
    probabilities, grades = _overconfident(60)
    points = (OperatingPoint(0.99, 0.97, 1.0), OperatingPoint(0.0, 1.0, 0.0))
    found = calibrated_metrics(probabilities, grades, Calibration(points=points, photographs=60))
    assert found["sensitivity_at_0.95"] == found["sensitivity_at_0.8"] < 0.97


def _naive_cross_fit(probabilities, grades, groups):
    """Assign groups to parts by highest grade, and calibrate each part with a fit on the others."""
    rows = range(len(grades))
    order = sorted(
        sorted(set(groups)), key=lambda name: max(int(grades[i]) for i in rows if groups[i] == name)
    )
    part = {name: place % NUM_PARTS for place, name in enumerate(order)}
    calibrated, read = torch.empty_like(probabilities), torch.empty_like(grades)
    for i in rows:
        others = [j for j in rows if part[groups[j]] != part[groups[i]]]
        fitted = fit_calibration(probabilities[others], grades[others])
        calibrated[i] = fitted.probabilities(probabilities[i : i + 1])[0]
        read[i] = fitted.predict(calibrated[i : i + 1])[0]
    return calibrated, read


def test_cross_fitting_equals_a_loop_over_parts_of_groups():
    probabilities, grades = _overconfident(60)
    groups = [f"g{i // 2}" for i in range(60)]
    found = cross_fitted_metrics(probabilities, grades, groups)
    calibrated, read = _naive_cross_fit(probabilities, grades, groups)
    assert found["nll"] == negative_log_likelihood(probabilities, grades)
    assert found["nll_calibrated"] == pytest.approx(negative_log_likelihood(calibrated, grades))
    kappa = cohen_kappa_score(grades.numpy(), read.numpy(), weights="quadratic")
    assert found["qwk_thresholds"] == pytest.approx(kappa)
    assert (
        found.keys()
        == calibrated_metrics(probabilities, grades, fit_calibration(probabilities, grades)).keys()
    )


def test_cross_fitting_removes_the_optimism_of_fitted_thresholds():
    """A random model has a QWK of 0, but fitted thresholds raise it on their own photographs."""
    generator = torch.Generator().manual_seed(0)
    own, left_out = [], []
    for _ in range(20):
        nothing = torch.softmax(torch.randn(60, 5, generator=generator, dtype=torch.float64), dim=1)
        grades = torch.randint(0, 5, (60,), generator=generator)
        own.append(calibrated_metrics(nothing, grades, fit_calibration(nothing, grades))["qwk_thresholds"])
        left_out.append(cross_fitted_metrics(nothing, grades, list(map(str, range(60))))["qwk_thresholds"])
    assert np.mean(own) > 0.1
    assert abs(np.mean(left_out)) < 0.05


def test_cross_fitting_needs_enough_photographs_outside_every_part():
    for count in (3, 12):
        probabilities, grades = _overconfident(count)
        assert cross_fitted_metrics(probabilities, grades, list(map(str, range(count)))).keys() == {
            "nll",
            "brier",
        }
    one_group = cross_fitted_metrics(*_overconfident(60), ["all"] * 60)
    assert one_group.keys() == {"nll", "brier"}
