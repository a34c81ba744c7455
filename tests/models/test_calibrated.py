"""The figures of a calibration against scikit-learn and naive loops."""

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, confusion_matrix, log_loss, recall_score

from drgrade.metrics.functional import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    sensitivity_specificity,
)
from drgrade.models.calibration import (
    NUM_PARTS,
    TARGET_SENSITIVITIES,
    Calibration,
    OperatingPoint,
    apply_temperature,
    calibrated_metrics,
    cross_fitted_metrics,
    ensemble_calibration,
    fit_calibration,
)


def _drawn(count, sharpness=4.0, seed=0):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, count)
    distance = np.abs(np.arange(5)[None] - (grades + rng.normal(0, 1, count))[:, None])
    return torch.softmax(torch.from_numpy(-sharpness * distance), dim=1), torch.from_numpy(grades)


@pytest.fixture(scope="module")
def fitted():
    """A calibration, and photographs that it was not fitted on."""
    return fit_calibration(*_drawn(120)), *_drawn(300, seed=1)


def test_likelihood_and_brier_score_are_those_of_scikit_learn_and_of_a_loop():
    probabilities, grades = _drawn(200, sharpness=1)
    assert negative_log_likelihood(probabilities, grades) == pytest.approx(
        log_loss(grades.numpy(), probabilities.numpy(), labels=range(5)), abs=1e-9
    )
    rows = zip(probabilities.tolist(), grades.tolist(), strict=True)
    loop = [sum((p - (k == grade)) ** 2 for k, p in enumerate(row)) for row, grade in rows]
    assert brier_score(probabilities, grades) == pytest.approx(sum(loop) / len(loop))


def test_a_grade_that_was_called_impossible_has_a_finite_likelihood():
    certain = torch.tensor([[1.0, 0, 0, 0, 0]])
    assert negative_log_likelihood(certain, torch.tensor([3])) == pytest.approx(-np.log(1e-6))
    assert negative_log_likelihood(certain, torch.tensor([0])) == 0
    assert brier_score(certain, torch.tensor([3])) == 2


def test_figures_are_those_of_scikit_learn(fitted):
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
        true_negative, *_ = confusion_matrix(truth >= 2, referred).ravel().tolist()
        assert found[f"sensitivity_at_{target:g}"] == pytest.approx(recall_score(truth >= 2, referred))
        assert found[f"specificity_at_{target:g}"] == pytest.approx(true_negative / (truth < 2).sum())


def test_an_overconfident_model_is_better_calibrated_on_other_photographs(fitted):
    calibration, probabilities, grades = fitted
    found = calibrated_metrics(probabilities, grades, calibration)
    assert calibration.temperature > 1
    assert found["nll_calibrated"] < found["nll"]
    assert found["brier_calibrated"] < found["brier"]
    assert found["ece_calibrated"] < expected_calibration_error(probabilities, grades)


def test_without_a_fit_there_are_only_the_figures_of_the_model_itself():
    assert calibrated_metrics(*_drawn(50), Calibration()).keys() == {"nll", "brier"}


def test_without_operating_points_the_other_figures_stay():
    probabilities, grades = _drawn(60)
    calibration = fit_calibration(probabilities, grades.clamp(max=1))
    found = calibrated_metrics(probabilities, grades, calibration)
    assert "nll_calibrated" in found
    assert not any("_at_" in name for name in found)


def test_an_ensemble_brings_its_own_probabilities_and_thresholds(fitted):
    calibration, probabilities, grades = fitted
    both = ensemble_calibration([calibration, calibration])
    own = calibration.probabilities(probabilities)
    cuts = {target: calibration.point(target).threshold for target in TARGET_SENSITIVITIES}
    alone = calibrated_metrics(probabilities, grades, calibration)
    assert calibrated_metrics(probabilities, grades, both, own, cuts) == pytest.approx(alone)


def test_a_target_keeps_its_name_whatever_it_reaches():
    probabilities, grades = _drawn(60)
    points = (OperatingPoint(0.99, 0.97, 1.0), OperatingPoint(0.0, 1.0, 0.0))
    found = calibrated_metrics(probabilities, grades, Calibration(points=points, photographs=60))
    assert found["sensitivity_at_0.95"] == found["sensitivity_at_0.8"] < 0.97


def _naive(probabilities, grades, groups):
    """Parts of groups dealt out by highest grade, each calibrated with what the rest was fitted to."""
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


def test_cross_fitting_is_a_loop_over_parts_of_groups():
    probabilities, grades = _drawn(60)
    groups = [f"g{i // 2}" for i in range(60)]
    found = cross_fitted_metrics(probabilities, grades, groups)
    calibrated, read = _naive(probabilities, grades, groups)
    assert found["nll"] == negative_log_likelihood(probabilities, grades)
    assert found["nll_calibrated"] == pytest.approx(negative_log_likelihood(calibrated, grades))
    kappa = cohen_kappa_score(grades.numpy(), read.numpy(), weights="quadratic")
    assert found["qwk_thresholds"] == pytest.approx(kappa)
    assert (
        found.keys()
        == calibrated_metrics(probabilities, grades, fit_calibration(probabilities, grades)).keys()
    )


def test_thresholds_are_not_judged_by_the_photographs_that_they_were_fitted_to():
    """A model that knows nothing has a QWK of 0; thresholds find some on their own photographs."""
    generator = torch.Generator().manual_seed(0)
    own, left_out = [], []
    for _ in range(20):
        nothing = torch.softmax(torch.randn(60, 5, generator=generator, dtype=torch.float64), dim=1)
        grades = torch.randint(0, 5, (60,), generator=generator)
        own.append(calibrated_metrics(nothing, grades, fit_calibration(nothing, grades))["qwk_thresholds"])
        left_out.append(cross_fitted_metrics(nothing, grades, list(map(str, range(60))))["qwk_thresholds"])
    assert np.mean(own) > 0.1
    assert abs(np.mean(left_out)) < 0.05


def test_cross_fitting_needs_as_many_photographs_in_every_part():
    for count in (3, 12):
        probabilities, grades = _drawn(count)
        assert cross_fitted_metrics(probabilities, grades, list(map(str, range(count)))).keys() == {
            "nll",
            "brier",
        }
    one_group = cross_fitted_metrics(*_drawn(60), ["all"] * 60)
    assert one_group.keys() == {"nll", "brier"}


def test_rates_of_nobody_are_0():
    assert sensitivity_specificity(torch.tensor([True, False]), torch.tensor([True, True])) == (0.5, 0)
    nobody = torch.zeros(0, 5)
    assert negative_log_likelihood(nobody, torch.zeros(0, dtype=torch.int64)) == 0
    assert brier_score(nobody, torch.zeros(0, dtype=torch.int64)) == 0
