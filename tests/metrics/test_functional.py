"""Metrics against scikit-learn, SciPy and naive loops."""

import itertools
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn import metrics as reference

from drgrade.errors import DrgradeError
from drgrade.metrics.functional import (
    auroc,
    brier_score,
    confusion_matrix,
    effective_rank,
    expected_calibration_error,
    feature_std,
    grading_metrics,
    negative_log_likelihood,
    quadratic_weighted_kappa,
    sensitivity_specificity,
)

NAMES = {
    *("qwk", "accuracy", "macro_f1", "mae", "nll", "brier", "ece", "auroc"),
    *(f"auroc_{k}" for k in range(5)),
    *(f"recall_{k}" for k in range(5)),
    *("referable_auroc", "referable_sensitivity", "referable_specificity"),
}
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def kappa(predicted, grades, num_grades=5):
    confusion = confusion_matrix(torch.as_tensor(predicted), torch.as_tensor(grades), num_grades)
    return quadratic_weighted_kappa(confusion).item()


@pytest.mark.parametrize(("size", "num_grades"), list(itertools.product([2, 7, 50, 1000], [2, 3, 5])))
@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9])
def test_kappa_and_confusion_equal_scikit_learns(size, num_grades, agreement):
    rng = np.random.default_rng([size, num_grades, int(10 * agreement)])
    for _ in range(5):
        grades = rng.integers(0, num_grades, size)
        predicted = np.where(rng.random(size) < agreement, grades, rng.integers(0, num_grades, size))
        labels = list(range(num_grades))
        ours = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(grades), num_grades)
        assert ours.tolist() == reference.confusion_matrix(grades, predicted, labels=labels).tolist()
        if len({*grades, *predicted}) > 1:
            want = reference.cohen_kappa_score(grades, predicted, labels=labels, weights="quadratic")
            assert kappa(predicted, grades, num_grades) == pytest.approx(want, abs=1e-9)


def test_kappa_is_a_float64_scalar_and_confusion_int64():
    confusion = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert (confusion.dtype, tuple(confusion.shape)) == (torch.int64, (5, 5))
    assert confusion[2, 1] == 1  # rows are the truth
    result = quadratic_weighted_kappa(confusion)
    assert (result.dtype, result.ndim) == (torch.float64, 0)


@settings(deadline=None, max_examples=100)
@given(pairs, st.integers(2, 9))
def test_symmetries_of_kappa(cells, times):
    predicted, grades = zip(*cells, strict=True)
    value = kappa(predicted, grades)
    assert -1 <= value <= 1
    assert kappa(grades, predicted) == value
    assert kappa(predicted[::-1], grades[::-1]) == value
    assert kappa(predicted * times, grades * times) == pytest.approx(value, abs=1e-12)
    assert kappa([4 - p for p in predicted], [4 - g for g in grades]) == pytest.approx(value, abs=1e-12)
    if len(set(grades)) > 1:
        assert kappa(grades, grades) == 1


def test_kappa_of_opposite_gradings_is_minus_one():
    assert kappa([4, 0], [0, 4]) == -1


@pytest.mark.parametrize(
    ("predicted", "grades", "warns"),
    [
        ([2, 2, 2], [2, 2, 2], True),
        ([], [], True),
        ([1, 1, 1], [0, 1, 2], False),
        ([0, 1, 2], [1, 1, 1], False),
    ],
)
def test_kappa_without_variation_is_zero(predicted, grades, warns, caplog):
    empty = {"dtype": torch.int64}
    assert kappa(torch.tensor(predicted, **empty), torch.tensor(grades, **empty)) == 0
    assert len(caplog.records) == int(warns)


@pytest.mark.parametrize(("predicted", "grades"), [([5], [0]), ([0], [-1]), ([0, 1], [0])])
def test_invalid_grades_are_refused(predicted, grades):
    with pytest.raises(ValueError, match="grades"):
        confusion_matrix(torch.tensor(predicted), torch.tensor(grades))


def random_case(seed, size, ties=False):
    """Probabilities (N, 5), predictions that are not always the most probable grade, and grades."""
    rng = np.random.default_rng(seed)
    grades = rng.choice(5, size, p=[0.4, 0.1, 0.25, 0.1, 0.15])
    logits = rng.normal(size=(size, 5)) + 1.5 * np.eye(5)[grades]
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = np.where(rng.random(size) < 0.8, probabilities.argmax(axis=1), rng.integers(0, 5, size))
    return torch.from_numpy(probabilities).float(), torch.from_numpy(predicted), torch.from_numpy(grades)


def naive_ece(probabilities, grades, bins=15):
    """Kumar et al. 2019 in a loop: bins of equal size that keep ties together, each of two or more."""
    rows = sorted(
        (max(row), row.index(max(row)) == grade) for row, grade in zip(probabilities, grades, strict=True)
    )
    confidences = [confidence for confidence, _ in rows]
    parts: dict[int, list[tuple[float, bool]]] = {}
    for confidence, correct in rows:
        parts.setdefault(confidences.index(confidence) * bins // len(rows), []).append((confidence, correct))
    merged: list[list[tuple[float, bool]]] = []
    for part in parts.values():
        if merged and len(merged[-1]) < 2:
            merged[-1] += part
        else:
            merged.append(list(part))
    if len(merged[-1]) < 2:
        merged[-2:] = [merged[-2] + merged[-1]]
    squared = 0.0
    for part in merged:
        confidence, accuracy = (sum(column) / len(part) for column in zip(*part, strict=True))
        noise = accuracy * (1 - accuracy) / (len(part) - 1)
        squared += len(part) / len(rows) * ((confidence - accuracy) ** 2 - noise)
    return math.copysign(math.sqrt(abs(squared)), squared)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [60, 500])
@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_its_reference(seed, size, ties):
    probabilities, predicted, grades = random_case(seed, size, ties)
    ours = grading_metrics(probabilities, predicted, grades)
    p, called, true = probabilities.double().numpy(), predicted.numpy(), grades.numpy()
    referable = p[:, 2:].sum(axis=1)
    singles = {f"auroc_{k}": reference.roc_auc_score(true == k, p[:, k]) for k in range(5)}
    want = {
        "qwk": reference.cohen_kappa_score(true, called, weights="quadratic", labels=list(range(5))),
        "accuracy": reference.accuracy_score(true, called),
        "macro_f1": reference.f1_score(true, called, average="macro"),
        "mae": reference.mean_absolute_error(true, called),
        "nll": reference.log_loss(true, p / p.sum(axis=1, keepdims=True), labels=range(5)),
        "brier": np.square(p - np.eye(5)[true]).sum(axis=1).mean(),
        "ece": naive_ece(p.tolist(), true.tolist()),
        "auroc": sum(singles.values()) / 5,
        **singles,
        **{f"recall_{k}": reference.recall_score(true == k, called == k) for k in range(5)},
        "referable_auroc": reference.roc_auc_score(true >= 2, referable),
        "referable_sensitivity": reference.recall_score(true >= 2, called >= 2),
        "referable_specificity": reference.recall_score(true < 2, called < 2),
    }
    assert set(ours) == NAMES
    assert ours == pytest.approx(want, abs=1e-7)
    assert grading_metrics(probabilities.flip(0), predicted.flip(0), grades.flip(0)) == pytest.approx(
        ours, abs=1e-12
    )


def test_auroc_equals_scikit_learns_multiclass_mean_and_counted_pairs():
    probabilities, predicted, grades = random_case(11, 300)
    rows = probabilities.double().numpy()
    rows = rows / rows.sum(axis=1, keepdims=True)
    want = reference.roc_auc_score(grades.numpy(), rows, multi_class="ovr", average="macro")
    assert grading_metrics(torch.from_numpy(rows), predicted, grades)["auroc"] == pytest.approx(want)
    rng = np.random.default_rng(0)
    for size in (2, 5, 30):
        scores, positive = rng.integers(0, 4, size) / 4, np.arange(size) % 2 == 0
        counted = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        assert auroc(torch.tensor(scores), torch.tensor(positive)) == pytest.approx(np.mean(counted))


def test_absent_grades_are_left_out_of_the_mean_auroc_and_f1():
    probabilities, predicted, grades = random_case(5, 200)
    kept = (grades < 2) & (predicted < 2)
    probabilities, predicted, grades = probabilities[kept], predicted[kept], grades[kept]
    ours = grading_metrics(probabilities, predicted, grades)
    assert ours["auroc"] == (ours["auroc_0"] + ours["auroc_1"]) / 2
    assert ours["auroc_3"] == 0.5
    assert ours["macro_f1"] == pytest.approx(
        reference.f1_score(grades.numpy(), predicted.numpy(), average="macro")
    )


def test_perfect_predictions_have_perfect_values():
    grades = torch.arange(5).repeat(3)
    ours = grading_metrics(torch.eye(5)[grades], grades, grades)
    assert {name for name, value in ours.items() if value != 1} == {"mae", "nll", "brier", "ece"}
    assert ours["mae"] == ours["nll"] == ours["brier"] == ours["ece"] == 0


def test_calibration_error_of_a_hand_made_case():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=torch.float64)
    # Two at 0.9 of which one is correct, two at 0.6 which are not.
    want = ((0.4**2 - 0.25) + 0.6**2) / 2
    found = expected_calibration_error(probabilities, torch.tensor([0, 1, 1, 1]))
    assert found == pytest.approx(math.sqrt(want))


def _calibrated_draws(count, draws, seed=0):
    """Yield probabilities and grades of a perfectly calibrated model."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        p = rng.dirichlet([0.4] * 5, count)
        grades = [rng.choice(5, p=row) for row in p]
        yield torch.from_numpy(p), torch.tensor(grades)


@pytest.mark.parametrize("count", [40, 103, 500])
def test_calibration_error_of_a_perfectly_calibrated_model_is_zero_on_average(count):
    """With 103 photographs the mean absolute gap in 15 bins of equal width is 0.1."""
    found = np.array([expected_calibration_error(*case) for case in _calibrated_draws(count, 300)])
    assert abs(np.mean(found)) < 0.025
    squared = np.sign(found) * found**2
    assert abs(squared.mean()) < 3 * squared.std() / math.sqrt(len(squared))


def test_calibration_error_of_an_overconfident_model_is_that_of_many_photographs():
    def error(count, seed):
        rng = np.random.default_rng(seed)
        top = np.where(rng.random(count) < 0.5, 0.9, 0.7)
        rest = (1 - top) / 4
        p = np.stack([top, *[rest] * 4], axis=1)
        grades = np.where(rng.random(count) < top - 0.2, 0, rng.integers(1, 5, count))
        return expected_calibration_error(torch.from_numpy(p), torch.from_numpy(grades))

    assert error(100_000, 0) == pytest.approx(0.2, abs=0.01)
    squared = [math.copysign(error(100, seed) ** 2, error(100, seed)) for seed in range(400)]
    assert np.mean(squared) == pytest.approx(0.04, abs=0.004)


@pytest.mark.parametrize("confidences", [[0.9] * 7, [0.9, 0.8], [0.9, 0.9, 0.9, 0.8], [0.9, 0.8, 0.7]])
def test_bins_of_the_calibration_error_have_two_photographs_or_more(confidences):
    p = torch.tensor([[each, 1 - each] for each in confidences])
    grades = torch.tensor([0, 1, 0, 1, 0, 0, 1][: len(confidences)])
    assert expected_calibration_error(p, grades) == pytest.approx(
        naive_ece(p.double().tolist(), grades.tolist())
    )


def test_likelihood_and_brier_score_equal_scikit_learn_and_a_loop():
    probabilities, _, grades = random_case(0, 200)
    likelihood = reference.log_loss(grades.numpy(), probabilities.double().numpy(), labels=range(5))
    assert negative_log_likelihood(probabilities, grades) == pytest.approx(likelihood, abs=1e-6)
    rows = zip(probabilities.tolist(), grades.tolist(), strict=True)
    loop = [sum((p - (k == grade)) ** 2 for k, p in enumerate(row)) for row, grade in rows]
    assert brier_score(probabilities, grades) == pytest.approx(np.mean(loop))


def test_a_true_grade_of_probability_0_has_a_finite_likelihood():
    certain = torch.tensor([[1.0, 0, 0, 0, 0]])
    assert negative_log_likelihood(certain, torch.tensor([3])) == pytest.approx(-np.log(1e-6))
    assert negative_log_likelihood(certain, torch.tensor([0])) == 0
    assert brier_score(certain, torch.tensor([3])) == 2


def test_scores_and_rates_of_no_photographs_are_0():
    assert sensitivity_specificity(torch.tensor([True, False]), torch.tensor([True, True])) == (0.5, 0)
    nothing = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    assert negative_log_likelihood(*nothing) == brier_score(*nothing) == 0


def undefined_cases():
    empty = torch.zeros(0, dtype=torch.int64)
    yield "nothing", torch.zeros(0, 5), empty, empty
    for grade in (0, 4):
        same = torch.full((6,), grade)
        yield f"only grade {grade}, all right", torch.full((6, 5), 0.2), same, same
        yield f"only grade {grade}, all wrong", torch.full((6, 5), 0.2), 4 - same, same
    yield "one photograph", torch.eye(5)[:1], torch.tensor([3]), torch.tensor([0])


@pytest.mark.parametrize(("label", "probabilities", "predicted", "grades"), list(undefined_cases()))
def test_undefined_metrics_have_a_value_and_warn_once_each(label, probabilities, predicted, grades, caplog):
    with caplog.at_level(logging.WARNING, logger="drgrade.metrics"):
        values = [grading_metrics(probabilities, predicted, grades) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert set(values[0]) == NAMES
    assert all(np.isfinite(value) for value in values[0].values())
    assert values[0]["auroc"] == values[0]["referable_auroc"] == 0.5
    assert values[0]["qwk"] == 0
    warned = [record.getMessage().split()[0] for record in caplog.records]
    assert len(warned) == len(set(warned))
    assert {"auroc", "auroc_0", "referable_auroc"} <= set(warned) <= NAMES


def test_defined_metrics_do_not_warn(caplog):
    grading_metrics(*random_case(0, 500))
    assert caplog.records == []


def test_sensitivity_without_referable_photographs_is_zero():
    grades = torch.tensor([0, 1, 0, 1])
    ours = grading_metrics(torch.full((4, 5), 0.2), torch.tensor([0, 2, 0, 1]), grades)
    assert (ours["referable_sensitivity"], ours["referable_specificity"]) == (0, 0.75)


def test_invalid_probabilities_and_shapes_are_refused():
    probabilities, predicted, grades = random_case(0, 10)
    with pytest.raises(ValueError, match="do not fit"):
        grading_metrics(probabilities[:9], predicted, grades)
    with pytest.raises(ValueError, match="vectors"):
        grading_metrics(probabilities, predicted[:9], grades)
    probabilities[3, 1] = float("nan")
    with pytest.raises(DrgradeError, match="diverged"):
        grading_metrics(probabilities, predicted, grades)


def test_the_functions_import_no_heavy_package():
    heavy = ("torchmetrics", "pytorch_lightning", "pandas", "matplotlib", "sklearn")
    code = f"import sys, drgrade.metrics.functional; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def noise(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_isotropic_features_have_a_spread_of_one_whatever_their_length():
    assert feature_std(noise(4000, 64)) == pytest.approx(1, abs=0.02)
    features = noise(30, 8)
    lengths = torch.linspace(0.1, 9, 30)[:, None]
    assert feature_std(features * lengths) == pytest.approx(feature_std(features))


@pytest.mark.parametrize("count", [2, 7, 50])
def test_collapsed_features_have_neither_spread_nor_rank(count):
    collapsed = noise(1, 16).expand(count, 16)
    assert feature_std(collapsed) == pytest.approx(0, abs=1e-9)
    assert effective_rank(collapsed) == 0


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_features_of_few_directions_have_at_most_that_rank(rank):
    features = noise(200, rank).double() @ noise(rank, 32, seed=1).double()
    assert 1 - 1e-9 <= effective_rank(features) <= rank + 1e-6


def test_equal_singular_values_give_the_number_of_directions():
    directions, _ = torch.linalg.qr(noise(64, 5).double() - noise(64, 5).double().mean(dim=0))
    assert effective_rank(directions + 3.0) == pytest.approx(5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(1, 12), st.integers(0, 1000))
def test_the_effective_rank_is_scipys_entropy_of_numpys_singular_values(count, width, seed):
    features = np.random.default_rng(seed).normal(size=(count, width))
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    expected = np.exp(entropy(values))
    assert effective_rank(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-9 <= expected <= min(count, width) + 1e-9


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_photographs_have_neither_spread_nor_rank(count):
    assert feature_std(noise(count, 4)) == 0
    assert effective_rank(noise(count, 4)) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_nan(broken):
    features = noise(5, 4)
    features[2, 1] = broken
    assert np.isnan(effective_rank(features))
    assert np.isnan(feature_std(features))
