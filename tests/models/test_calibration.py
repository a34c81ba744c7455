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
    auroc,
    brier_score,
    confusion_matrix,
    expected_calibration_error,
    negative_log_likelihood,
    quadratic_weighted_kappa,
    referable_probability,
)
from drgrade.models.calibration import (
    FORMER_NOTE,
    MIN_PHOTOGRAPHS,
    TARGET_SENSITIVITIES,
    Calibration,
    calibrate_probabilities,
    calibrated_metrics,
    ensemble_calibration,
    expected_grade,
    fit_calibration,
    fit_probabilities,
    normalised_entropy,
    referral_rule,
)
from drgrade.models.cross_fitting import NUM_PARTS, fit_and_cross_fit
from drgrade.models.heads import CornHead, CumulativeHead, RegressionHead, SoftmaxHead
from drgrade.models.thresholds import OperatingPoint, operating_points


def _drawn(count=400, sharpness=3.0, seed=0):
    """Probabilities of a model that is usually correct, and overconfident if ``sharpness`` is high."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    distance = np.abs(np.arange(5)[None] - (grades + rng.normal(0, 1, count))[:, None])
    return torch.softmax(torch.from_numpy(-sharpness * distance), dim=1), torch.from_numpy(grades)


HEADS = (CumulativeHead, CornHead, SoftmaxHead, RegressionHead)


def _logits(head, count, seed, spread):
    """Draw logits of a head, with saturated ones and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    model = head(4, hidden=0)
    width = model.layers[-1].out_features
    logits = spread * torch.randn(count, width, generator=generator)
    logits[: count // 4] = logits[: count // 4].round()
    return model, logits


@pytest.mark.parametrize("head", HEADS)
@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    temperature=st.floats(0.5, 20),
    weight=st.floats(0, 0.95),
    shares=st.lists(st.floats(0.01, 1), min_size=5, max_size=5),
)
def test_calibration_keeps_the_order_of_every_cumulative_probability(
    head, seed, spread, temperature, weight, shares
):
    model, logits = _logits(head, 40, seed, spread)
    frequencies = [each / sum(shares) for each in shares]
    given_ = model.probabilities(logits).double()
    found = calibrate_probabilities(given_, temperature, weight, frequencies)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(40, dtype=torch.float64))
    assert (found >= 0).all()
    for grade in range(1, 5):
        before, after = given_[:, grade:].sum(dim=1), found[:, grade:].sum(dim=1)
        apart = before[:, None] - before[None]
        assert ((after[:, None] - after[None])[apart > 0] >= -1e-14).all()
        assert ((after[:, None] - after[None])[apart > 1e-6] > 0).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_changes_no_auroc_of_a_threshold_between_grades(head, seed):
    """The cumulative head's crossing sigmoids once gave zeros, which a temperature stretched."""
    model, logits = _logits(head, 200, seed, 6.0)
    grades = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, 200))
    logits += grades[:, None] * (1.5 if head is RegressionHead else torch.linspace(0, 3, logits.shape[1]))
    given_ = model.probabilities(logits).double()
    calibrated = fit_calibration(given_, grades).probabilities(given_)
    for grade in range(1, 5):
        before, after = (
            auroc(p[:, grade:].sum(dim=1).round(decimals=12), grades >= grade) for p in (given_, calibrated)
        )
        assert after == pytest.approx(before, abs=1e-12)


def test_zeros_of_crossing_sigmoids_get_a_probability():
    logits = torch.tensor([[5.0, 4.0, -4.0, 3.0, -5.0]])
    given_ = CumulativeHead(4, hidden=0).probabilities(logits).double()
    assert (given_ < 1e-6).any()
    assert (calibrate_probabilities(given_, 2.0, 0.05, [0.2] * 5) >= 0.009).all()


def test_logits_of_the_cumulative_head_are_divided_by_the_temperature():
    logits = torch.linspace(4, -4, 5, dtype=torch.float64)[None].repeat(3, 1)
    logits += torch.tensor([[-1.0], [0.0], [1.0]])
    given_ = CumulativeHead(4, hidden=0).probabilities(logits).double()
    found = calibrate_probabilities(given_, 2.0, 0.0, [0.2] * 5)
    at_least = found.flip(1).cumsum(1).flip(1)[:, 1:]
    torch.testing.assert_close(at_least, torch.sigmoid(logits[:, 1:] / 2), atol=1e-3, rtol=0)


def test_the_fit_equals_scipys_posterior_mode():
    probabilities, grades = _drawn()
    frequencies = (np.bincount(grades, minlength=5) + 1) / (len(grades) + 5)

    def loss(x):
        temperature, weight = math.exp(x[0]), 1 / (1 + math.exp(-x[1]))
        p = calibrate_probabilities(probabilities, temperature, 0.95 * weight, frequencies.tolist()).numpy()
        prior = scipy.stats.norm.logpdf(x[0]) + scipy.stats.beta.logpdf(weight, 2, 10)
        return log_loss(grades.numpy(), p, labels=range(5)) - prior / len(grades)

    reference = minimize(loss, [0.0, -2.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    fitted = fit_probabilities(probabilities, grades)
    assert fitted.temperature == pytest.approx(math.exp(reference.x[0]), rel=1e-2)
    assert fitted.weight == pytest.approx(0.95 / (1 + math.exp(-reference.x[1])), abs=2e-3)
    assert fitted.frequencies == pytest.approx(frequencies.tolist())


def test_the_priors_bound_the_fit_of_ten_photographs():
    probabilities = torch.full((10, 5), 0.05, dtype=torch.float64)
    grades = torch.arange(10) % 5
    probabilities[torch.arange(10), grades] = 0.8
    fitted = fit_probabilities(probabilities, grades)
    assert 0.5 <= fitted.temperature < 1
    assert 0.01 < fitted.weight < 0.2


def test_few_photographs_are_said_with_the_cross_fitted_change():
    probabilities, grades = _drawn(60, sharpness=6.0)
    fitted, cross_fitted = fit_and_cross_fit(probabilities, grades, list(map(str, range(60))))
    change, low, high = fitted.nll_change
    raw = negative_log_likelihood(probabilities, grades)
    assert change == pytest.approx(cross_fitted["nll_calibrated"] - raw)
    assert low < change < high
    assert "60 validation photographs, which are few" in fitted.worth()
    many = fit_and_cross_fit(*_drawn(200), list(map(str, range(200))))[0]
    assert "few" not in many.worth()
    assert "not measured" in fit_calibration(*_drawn(60)).worth()
    assert "no validation photographs" in Calibration().worth()


def test_thresholds_of_operating_points_are_midpoints():
    scores = torch.tensor([0.1, 0.3, 0.6, 0.9])
    points = operating_points(scores, torch.tensor([False, True, False, True]))
    assert [each.threshold for each in points] == pytest.approx([0.75, 0.2])
    tiny = np.nextafter(0.5, 1)
    close = torch.tensor([0.5, tiny], dtype=torch.float64)
    assert operating_points(close, torch.tensor([False, True]))[0].threshold == tiny


@pytest.mark.parametrize(("sharpness", "above"), [(6.0, True), (0.3, False)])
def test_overconfidence_gives_a_temperature_above_1(sharpness, above):
    assert (fit_probabilities(*_drawn(sharpness=sharpness)).temperature > 1) == above


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
    assert calibration.photographs == 60
    with pytest.raises(ConfigError, match="with and without referable DR"):
        calibration.point(0.9)


def test_uncertainty_is_the_normalised_entropy():
    probabilities = torch.tensor([[1.0, 0, 0, 0, 0], [0.2] * 5, [0.5, 0.5, 0, 0, 0]])
    expected = [0, 1, math.log(2) / math.log(5)]
    assert normalised_entropy(probabilities).tolist() == pytest.approx(expected)


def test_referable_is_grade_2_and_worse():
    assert float(referable_probability(torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]]))) == pytest.approx(0.7)


def test_json_restores_the_same_bits():
    calibration = fit_and_cross_fit(*_drawn(60), list(map(str, range(60))))[0]
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
        ("temperature", 0.1),
        ("weight", 1),
        ("weight", None),
        ("frequencies", [0.5, 0.5]),
        ("frequencies", [0.5, 0.5, 0.5, 0, 0]),
        ("nll_change", [1, 2]),
        ("nll_change", 0.5),
        ("thresholds", [0.5, 1.5, 2.5]),
        ("thresholds", [0.5, 1.5, 2.5, math.nan]),
        ("thresholds", [0.5, 2.5, 1.5, 3.5]),
        ("thresholds", [0.5, 1.5, 2.5, None]),
        ("points", [{"threshold": 2, "sensitivity": 1, "specificity": 0}]),
        ("points", [{"threshold": 0.5, "sensitivity": 0.9, "specificity": 0}]),
        ("points", [{"threshold": 0.5}]),
        ("photographs", 0),
        ("of_another_version", 1),
    ],
)
def test_impossible_values_are_refused(name, value):
    record = json.loads(fit_calibration(*_drawn(50)).to_json())
    with pytest.raises(DataError, match=r"calibration (is damaged|cannot be read)"):
        Calibration.from_json(json.dumps({**record, name: value}))


def test_the_form_of_earlier_versions_is_not_used():
    former = {
        "temperature": 3.0,
        "thresholds": [0.5, 1.5, 2.5, 3.5],
        "points": [],
        "photographs": 30,
        "note": "",
    }
    found = Calibration.from_json(json.dumps(former))
    assert (found.photographs, found.note) == (0, FORMER_NOTE)


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
    calibrated = calibration.probabilities(probabilities)
    read = np.digitize(calibrated.numpy() @ np.arange(5), calibration.thresholds)
    truth = grades.numpy()
    assert found["qwk_thresholds"] == pytest.approx(cohen_kappa_score(truth, read, weights="quadratic"))
    assert found["nll_calibrated"] == pytest.approx(log_loss(truth, calibrated.numpy(), labels=range(5)))
    assert found["ece_calibrated"] == expected_calibration_error(calibrated, grades)
    assert found["brier_calibrated"] == brier_score(calibrated, grades)
    for target in TARGET_SENSITIVITIES:
        referred = calibrated[:, 2:].sum(dim=1).numpy() >= calibration.point(target).threshold
        true_negative = int((~referred & (truth < 2)).sum())
        assert found[f"sensitivity_at_{target:g}"] == pytest.approx(recall_score(truth >= 2, referred))
        assert found[f"specificity_at_{target:g}"] == pytest.approx(true_negative / (truth < 2).sum())


def test_an_overconfident_model_is_better_calibrated_on_other_photographs(fitted):
    calibration, probabilities, grades = fitted
    found = calibrated_metrics(probabilities, grades, calibration)
    assert calibration.temperature > 1
    assert found["nll_calibrated"] < negative_log_likelihood(probabilities, grades)
    assert found["brier_calibrated"] < brier_score(probabilities, grades)
    assert found["ece_calibrated"] < expected_calibration_error(probabilities, grades)


REFERRAL = {"referral_threshold", "referral_sensitivity", "referral_specificity"}


def test_without_a_fit_there_is_only_the_referral_decision():
    found = calibrated_metrics(*_overconfident(50), Calibration())
    assert found.keys() == REFERRAL
    assert found["referral_threshold"] == 0.5


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
    rule = referral_rule([calibration, calibration])
    assert calibrated_metrics(probabilities, grades, both, own, cuts, rule) == pytest.approx(alone)


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
    _, found = fit_and_cross_fit(probabilities, grades, groups)
    calibrated, read = _naive_cross_fit(probabilities, grades, groups)
    assert found["nll_calibrated"] == pytest.approx(negative_log_likelihood(calibrated, grades))
    kappa = cohen_kappa_score(grades.numpy(), read.numpy(), weights="quadratic")
    assert found["qwk_thresholds"] == pytest.approx(kappa)
    whole = calibrated_metrics(probabilities, grades, fit_calibration(probabilities, grades))
    assert found.keys() == whole.keys() - REFERRAL


def test_cross_fitting_removes_the_optimism_of_fitted_thresholds():
    """A random model has a QWK of 0, but fitted thresholds raise it on their own photographs."""
    generator = torch.Generator().manual_seed(0)
    own, left_out = [], []
    for _ in range(20):
        nothing = torch.softmax(torch.randn(60, 5, generator=generator, dtype=torch.float64), dim=1)
        grades = torch.randint(0, 5, (60,), generator=generator)
        fitted, cross_fitted = fit_and_cross_fit(nothing, grades, list(map(str, range(60))))
        own.append(calibrated_metrics(nothing, grades, fitted)["qwk_thresholds"])
        left_out.append(cross_fitted["qwk_thresholds"])
    assert np.mean(own) > 0.1
    assert abs(np.mean(left_out)) < 0.05


def test_cross_fitting_needs_enough_photographs_outside_every_part():
    for count in (3, 12):
        probabilities, grades = _overconfident(count)
        assert fit_and_cross_fit(probabilities, grades, list(map(str, range(count))))[1] == {}
    assert fit_and_cross_fit(*_overconfident(60), ["all"] * 60)[1] == {}
