import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drgrade.errors import ConfigError
from drgrade.models.heads import CornHead, CumulativeHead, RegressionHead, SoftmaxHead

HEADS = [CumulativeHead, CornHead, SoftmaxHead, RegressionHead]
OUTPUTS = {CumulativeHead: 5, CornHead: 4, SoftmaxHead: 5, RegressionHead: 1}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_published_head_is_dense_relu_batchnorm_dropout_dense():
    layers = CumulativeHead(16).layers
    assert [type(layer).__name__ for layer in layers] == [
        "Linear",
        "ReLU",
        "BatchNorm1d",
        "Dropout",
        "Linear",
    ]
    assert (layers[0].out_features, layers[3].p, layers[4].out_features) == (1024, 0.5, 5)


def test_cumulative_target_of_grade_2_is_11100():
    targets = CumulativeHead(4, hidden=0).targets(torch.tensor([2, 0, 4]))
    assert targets.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("logits", "grade"),
    [
        ([1, 1, 1, -1, -1], 2),
        ([-1, -1, -1, -1, -1], 0),
        ([1, 1, 1, 1, 1], 4),
        ([-1, 1, 1, -1, -1], 1),
        ([1, -1, 1, -1, 1], 2),
        ([0, 0, 0, 0, 0], 0),
    ],
)
def test_cumulative_grade_is_the_number_of_sigmoids_above_half_less_one(logits, grade):
    head = CumulativeHead(4, hidden=0)
    assert head.predict(torch.tensor([logits], dtype=torch.float32)).tolist() == [grade]


def test_cumulative_loss_equals_a_naive_loop():
    logits, grades = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 2])
    terms = []
    for row, grade in zip(logits.tolist(), grades.tolist(), strict=True):
        for k, value in enumerate(row):
            terms.append(-math.log(sigmoid(value) if grade >= k else 1 - sigmoid(value)))
    assert CumulativeHead(4).loss(logits, grades).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_cumulative_probabilities_equal_a_naive_loop():
    logits = torch.randn(20, 5) * 3
    for row, got in zip(logits.tolist(), CumulativeHead(4).probabilities(logits).tolist(), strict=True):
        at_least = [1.0]
        for value in row[1:]:
            at_least.append(min(at_least[-1], sigmoid(value)))
        at_least.append(0.0)
        assert got == pytest.approx([at_least[k] - at_least[k + 1] for k in range(5)], abs=1e-6)


def test_corn_loss_equals_a_naive_loop():
    logits, grades = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 2])
    terms = []
    for row, grade in zip(logits.tolist(), grades.tolist(), strict=True):
        for k, value in enumerate(row):
            if grade >= k:
                terms.append(-math.log(sigmoid(value) if grade > k else 1 - sigmoid(value)))
    assert CornHead(4).loss(logits, grades).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_losses_of_batches_average_by_their_terms(kind):
    head = kind(4, hidden=0)
    grades = torch.tensor([0, 0, 4, 1, 3, 3, 0])
    logits = torch.randn(7, head.layers[0].out_features, generator=torch.Generator().manual_seed(0))
    parts = [(logits[part], grades[part]) for part in (slice(0, 2), slice(2, 3), slice(3, 7))]
    terms = [head.loss_terms(truth) for _, truth in parts]
    total = sum(float(head.loss(*part)) * count for part, count in zip(parts, terms, strict=True))
    assert total / sum(terms) == pytest.approx(float(head.loss(logits, grades)), abs=1e-6)


def test_corn_probabilities_are_products_of_conditionals():
    logits = torch.randn(20, 4)
    for row, got in zip(logits.tolist(), CornHead(4).probabilities(logits).tolist(), strict=True):
        at_least = [1.0]
        for value in row:
            at_least.append(at_least[-1] * sigmoid(value))
        at_least.append(0.0)
        assert got == pytest.approx([at_least[k] - at_least[k + 1] for k in range(5)], abs=1e-6)


def test_softmax_head_is_cross_entropy():
    logits, grades = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 2])
    want = -sum(logits[i].log_softmax(0)[g] for i, g in enumerate(grades)) / 6
    torch.testing.assert_close(SoftmaxHead(4).loss(logits, grades), want)


@pytest.mark.parametrize(
    ("value", "grade", "probabilities"),
    [
        (1.25, 1, [0, 0.75, 0.25, 0, 0]),
        (2.5, 3, [0, 0, 0.5, 0.5, 0]),
        (-3.0, 0, [1, 0, 0, 0, 0]),
        (9.0, 4, [0, 0, 0, 0, 1]),
    ],
)
def test_regression_splits_between_neighbouring_grades(value, grade, probabilities):
    head = RegressionHead(4, hidden=0)
    logits = torch.tensor([[value]])
    assert head.predict(logits).tolist() == [grade]
    assert head.probabilities(logits).tolist() == [pytest.approx(probabilities)]


def test_regression_losses():
    logits, grades = torch.tensor([[0.5], [4.0]]), torch.tensor([0, 1])
    assert RegressionHead(4).loss(logits, grades).item() == pytest.approx((0.125 + 2.5) / 2)
    assert RegressionHead(4, loss="mse").loss(logits, grades).item() == pytest.approx((0.25 + 9) / 2)
    with pytest.raises(ConfigError, match="smooth_l1"):
        RegressionHead(4, loss="l0")


@pytest.mark.parametrize("kind", HEADS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_probabilities_sum_to_one_and_grades_stay_in_range(kind, data):
    shape = (data.draw(st.integers(1, 7)), OUTPUTS[kind])
    values = data.draw(hnp.arrays("float32", shape, elements=st.floats(-200, 200, width=32)))
    head, logits = kind(3, hidden=0), torch.from_numpy(values)
    probabilities, predicted = head.probabilities(logits), head.predict(logits)
    assert probabilities.shape == (shape[0], 5)
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(shape[0]))
    assert predicted.dtype == torch.int64
    assert predicted.shape == (shape[0],)
    assert predicted.min() >= 0
    assert predicted.max() <= 4


@pytest.mark.parametrize("hidden", [0, 32])
@pytest.mark.parametrize("kind", HEADS)
def test_loss_falls_and_every_parameter_gets_a_gradient(kind, hidden):
    features, grades = torch.randn(40, 8), torch.arange(40) % 5
    features[:, 0] += grades
    head = kind(8, hidden=hidden, dropout=0.0)
    assert head(features).shape == (40, OUTPUTS[kind])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = head.loss(head(features), grades)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_logits_give_full_precision_losses(kind):
    head, logits = kind(3, hidden=0), torch.randn(4, OUTPUTS[kind])
    grades = torch.tensor([0, 1, 2, 4])
    loss = head.loss(logits.bfloat16(), grades)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(logits.bfloat16().float(), grades))
    assert head.probabilities(logits.bfloat16()).dtype == torch.float32


def test_other_numbers_of_grades():
    for kind in HEADS:
        head = kind(3, hidden=0, num_grades=3)
        logits = head(torch.randn(6, 3))
        assert head.probabilities(logits).shape == (6, 3)
        assert F.one_hot(head.predict(logits), 3).shape == (6, 3)
        assert head.loss(logits, torch.tensor([0, 1, 2, 0, 1, 2])).ndim == 0
