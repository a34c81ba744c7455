import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from drgrade.errors import DrgradeError
from drgrade.metrics.functional import auroc, expected_calibration_error, grading_metrics

NAMES = {
    "qwk",
    "accuracy",
    "macro_f1",
    "mae",
    "ece",
    "auroc",
    *(f"auroc_{k}" for k in range(5)),
    *(f"recall_{k}" for k in range(5)),
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
}


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
    total, error = len(grades), 0.0
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = [
            (max(row), row.index(max(row)) == grade)
            for row, grade in zip(probabilities, grades, strict=True)
            if low < max(row) <= high
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            error += len(inside) / total * abs(accuracy - confidence)
    return error


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
        "ece": naive_ece(p.tolist(), true.tolist()),
        "auroc": sum(singles.values()) / 5,
        **singles,
        **{f"recall_{k}": reference.recall_score(true == k, called == k) for k in range(5)},
        "referable_auroc": reference.roc_auc_score(true >= 2, referable),
        "referable_sensitivity": reference.recall_score(true >= 2, called >= 2),
        "referable_specificity": reference.recall_score(true < 2, called < 2),
    }
    assert set(ours) == NAMES
    assert ours == pytest.approx(want, abs=1e-9)


def test_auroc_equals_scikit_learns_multiclass_mean():
    probabilities, predicted, grades = random_case(11, 300)
    rows = probabilities.double().numpy()
    rows = rows / rows.sum(axis=1, keepdims=True)
    want = reference.roc_auc_score(grades.numpy(), rows, multi_class="ovr", average="macro")
    assert grading_metrics(torch.from_numpy(rows), predicted, grades)["auroc"] == pytest.approx(want)


def test_auroc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    for size in (2, 5, 30):
        scores, positive = rng.integers(0, 4, size) / 4, np.arange(size) % 2 == 0
        pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        assert auroc(torch.tensor(scores), torch.tensor(positive)) == pytest.approx(sum(pairs) / len(pairs))


def test_absent_grades_leave_the_mean_auroc_and_f1_to_those_that_occur():
    probabilities, predicted, grades = random_case(5, 200)
    kept = (grades < 2) & (predicted < 2)
    probabilities, predicted, grades = probabilities[kept], predicted[kept], grades[kept]
    ours = grading_metrics(probabilities, predicted, grades)
    assert ours["auroc"] == (ours["auroc_0"] + ours["auroc_1"]) / 2
    assert ours["auroc_3"] == 0.5
    assert ours["macro_f1"] == pytest.approx(
        reference.f1_score(grades.numpy(), predicted.numpy(), average="macro")
    )


def test_perfect_predictions_get_perfect_values():
    grades = torch.arange(5).repeat(3)
    ours = grading_metrics(torch.eye(5)[grades], grades, grades)
    assert {name for name, value in ours.items() if value != 1} == {"mae", "ece"}
    assert ours["mae"] == ours["ece"] == 0


def test_calibration_of_a_hand_made_case():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)
    # Two at 0.9 of which one is right, one at 0.6 which is wrong.
    want = 2 / 3 * 0.4 + 1 / 3 * 0.6
    assert expected_calibration_error(probabilities, torch.tensor([0, 1, 1])) == pytest.approx(want)


def test_the_order_of_the_photographs_does_not_matter():
    probabilities, predicted, grades = random_case(3, 200)
    turned = grading_metrics(probabilities.flip(0), predicted.flip(0), grades.flip(0))
    assert turned == pytest.approx(grading_metrics(probabilities, predicted, grades), abs=1e-12)


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
    assert {"auroc", "auroc_0", "referable_auroc"} <= set(warned)
    assert set(warned) <= NAMES


def test_defined_metrics_do_not_warn(caplog):
    grading_metrics(*random_case(0, 500))
    assert caplog.records == []


def test_sensitivity_without_referable_photographs_is_zero():
    grades = torch.tensor([0, 1, 0, 1])
    ours = grading_metrics(torch.full((4, 5), 0.2), torch.tensor([0, 2, 0, 1]), grades)
    assert (ours["referable_sensitivity"], ours["referable_specificity"]) == (0, 0.75)


def test_probabilities_that_are_not_numbers_are_an_error_and_not_a_nan():
    probabilities, predicted, grades = random_case(0, 10)
    probabilities[3, 1] = float("nan")
    with pytest.raises(DrgradeError, match="diverged"):
        grading_metrics(probabilities, predicted, grades)


def test_shapes_that_do_not_fit_are_refused():
    probabilities, predicted, grades = random_case(0, 10)
    with pytest.raises(ValueError, match="do not fit"):
        grading_metrics(probabilities[:9], predicted, grades)
    with pytest.raises(ValueError, match="vectors"):
        grading_metrics(probabilities, predicted[:9], grades)


def test_the_functions_need_no_heavy_package():
    heavy = ("torchmetrics", "pytorch_lightning", "pandas", "matplotlib", "sklearn")
    code = f"import sys, drgrade.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
