"""Class weights and focal loss against naive loops, torchvision and scikit-learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from drgrade.errors import ConfigError
from drgrade.models.heads import (
    CornHead,
    CumulativeHead,
    RegressionHead,
    SoftmaxHead,
    binary_focal,
    class_weights,
    multiclass_focal,
)

HEADS = [CumulativeHead, CornHead, SoftmaxHead, RegressionHead]
OUTPUTS = {CumulativeHead: 5, CornHead: 4, SoftmaxHead: 5, RegressionHead: 1}
COUNTS = torch.tensor([40, 3, 20, 7, 0])


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any))
def test_balanced_weights_are_those_of_scikit_learn(counts):
    labels = np.repeat(np.arange(5), counts)
    present = np.unique(labels)
    want = np.zeros(5)
    want[present] = compute_class_weight("balanced", classes=present, y=labels)
    found = class_weights(torch.tensor(counts), "balanced", 0.0)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert float(found @ torch.tensor(counts).float()) == pytest.approx(sum(counts), rel=1e-5)


def test_effective_weights_are_those_of_the_paper():
    beta = 0.9
    raw = [(1 - beta) / (1 - beta**n) if n else 0.0 for n in COUNTS.tolist()]
    want = [each * 4 / sum(raw) for each in raw]  # four grades occur
    assert class_weights(COUNTS, "effective", beta).tolist() == pytest.approx(want, rel=1e-6)


def test_effective_weights_range_from_one_to_inverse_frequency():
    assert class_weights(COUNTS, "effective", 0.0).tolist() == [1, 1, 1, 1, 0]
    inverse = class_weights(COUNTS, "effective", 1 - 1e-9)[:4] * COUNTS[:4]
    torch.testing.assert_close(inverse, inverse[:1].expand(4), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", ["balanced", "effective"])
def test_a_grade_that_does_not_occur_has_weight_zero(weighting):
    for counts in (COUNTS, torch.tensor([0, 0, 9, 0, 0])):
        weights = class_weights(counts, weighting, 0.999)
        assert torch.equal(weights > 0, counts > 0)
        assert bool(torch.isfinite(weights).all())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_binary_focal_loss_is_torchvisions(gamma):
    logits, targets = torch.randn(50, 5) * 3, torch.randint(0, 2, (50, 5)).float()
    want = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    torch.testing.assert_close(binary_focal(logits, targets, gamma), want)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_multiclass_focal_loss_equals_a_naive_loop(gamma):
    logits, grades = torch.randn(20, 5) * 2, torch.randint(0, 5, (20,))
    want = []
    for row, grade in zip(logits.double(), grades, strict=True):
        p = float(row.softmax(0)[grade])
        want.append(-((1 - p) ** gamma) * math.log(p))
    assert multiclass_focal(logits, grades, gamma).tolist() == pytest.approx(want, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("size", [30.0, 200.0, -200.0])
def test_focal_gradients_are_finite_for_extreme_logits(gamma, size):
    logits = torch.tensor([[size, 0.0]], requires_grad=True)
    binary_focal(logits, torch.tensor([[1.0, 0.0]]), gamma).sum().backward()
    multiclass_focal(logits, torch.tensor([0]), gamma).sum().backward()
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("kind", HEADS)
def test_the_default_training_loss_is_the_plain_loss(kind):
    head, logits, grades = kind(4), torch.randn(30, OUTPUTS[kind]), torch.arange(30) % 5
    assert torch.equal(head.training_loss(logits, grades), head.loss(logits, grades))
    assert not [name for name in head.state_dict() if not name.startswith("layers.")]


def terms(kind, logits, grades, gamma):
    """Compute the loss of each photograph and its number of terms with loops."""
    losses, numbers = [], []
    for row, grade in zip(logits.double().tolist(), grades.tolist(), strict=True):
        if kind is SoftmaxHead:
            p = math.exp(row[grade]) / sum(map(math.exp, row))
            found = [-((1 - p) ** gamma) * math.log(p)]
        elif kind is RegressionHead:
            error = abs(row[0] - grade)
            found = [error**2 / 2 if error < 1 else error - 0.5]
        else:
            found = []
            for k, value in enumerate(row):
                if kind is CornHead and grade < k:
                    continue
                true = grade >= k if kind is CumulativeHead else grade > k
                p = 1 / (1 + math.exp(-value if true else value))
                found.append(-((1 - p) ** gamma) * math.log(p))
        losses.append(sum(found))
        numbers.append(len(found))
    return losses, numbers


@pytest.mark.parametrize("weighting", ["none", "balanced", "effective"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("kind", HEADS)
def test_the_training_loss_is_the_mean_of_weighted_terms(kind, gamma, weighting):
    if kind is RegressionHead and gamma > 0:
        return
    head = kind(4, weighting=weighting, focal_gamma=gamma, beta=0.9)
    if weighting != "none":
        head.set_counts(COUNTS)
    weights = class_weights(COUNTS, weighting, 0.9) if weighting != "none" else torch.ones(5)
    logits, grades = torch.randn(24, OUTPUTS[kind]), torch.arange(24) % 4
    losses, numbers = terms(kind, logits, grades, gamma)
    want = sum(loss * float(weights[g]) for loss, g in zip(losses, grades, strict=True)) / sum(numbers)
    assert head.training_loss(logits, grades).item() == pytest.approx(want, rel=1e-4)
    plain, numbers = terms(kind, logits, grades, 0)
    assert head.loss(logits, grades).item() == pytest.approx(sum(plain) / sum(numbers), rel=1e-4)


def test_class_weights_are_part_of_the_state_dict():
    head, other = (SoftmaxHead(4, weighting="balanced") for _ in range(2))
    head.set_counts(COUNTS)
    other.load_state_dict(head.state_dict())
    logits, grades = torch.randn(8, 5), torch.arange(8) % 4
    assert torch.equal(head.training_loss(logits, grades), other.training_loss(logits, grades))
    assert math.isnan(SoftmaxHead(4, weighting="balanced").training_loss(logits, grades))


@pytest.mark.parametrize("kind", HEADS)
def test_invalid_loss_settings_are_refused(kind):
    with pytest.raises(ConfigError, match=r"head\.weighting=inverse is not one of none, balanced, effective"):
        kind(4, weighting="inverse")
    for beta in (1.0, -0.1):
        with pytest.raises(ConfigError, match=r"head\.beta"):
            kind(4, weighting="effective", beta=beta)
    for gamma in (-1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=rf"head\.focal_gamma={gamma} is not a finite number"):
            kind(4, focal_gamma=gamma)


def test_regression_refuses_focal_loss():
    with pytest.raises(ConfigError, match=r"head\.focal_gamma=2.*needs probabilities"):
        RegressionHead(4, focal_gamma=2)


@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_logits_are_weighted_in_full_precision(kind):
    head = kind(3, weighting="balanced", focal_gamma=0.0 if kind is RegressionHead else 2.0)
    head.set_counts(COUNTS)
    logits, grades = torch.randn(6, OUTPUTS[kind]).bfloat16(), torch.tensor([0, 1, 2, 3, 2, 1])
    loss = head.training_loss(logits, grades)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, head.training_loss(logits.float(), grades))


def test_focal_loss_of_gamma_zero_is_cross_entropy():
    logits, grades = torch.randn(9, 5), torch.arange(9) % 5
    torch.testing.assert_close(
        multiclass_focal(logits, grades, 0.0), F.cross_entropy(logits, grades, reduction="none")
    )
