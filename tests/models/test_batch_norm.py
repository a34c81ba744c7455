"""Statistics of batch normalisation, against naive computations."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from drgrade.models.batch_norm import (
    SecondStatistics,
    batch_norms,
    estimate_statistics,
    use_running_statistics_for_one,
)
from drgrade.models.encoder import TimmEncoder


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    )


def batches(count, size=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 9, 9, generator=generator) * 3 + 2 for _ in range(count)]


@pytest.mark.parametrize("training", [True, False])
def test_estimated_statistics_are_the_mean_of_those_of_the_batches(training):
    model = small_model().train(training)
    weights = {name: each.clone() for name, each in model.named_parameters()}
    given_batches = batches(4)
    assert estimate_statistics(model, given_batches) == 4
    first = [model[0](batch) for batch in given_batches]
    means = torch.stack([each.mean(dim=(0, 2, 3)) for each in first])
    variances = torch.stack([each.transpose(0, 1).flatten(1).var(dim=1) for each in first])
    torch.testing.assert_close(model[1].running_mean, means.mean(dim=0))
    torch.testing.assert_close(model[1].running_var, variances.mean(dim=0))
    # The input of the second one is normalised by the statistics of its own batch, without dropout.
    second = []
    for each in first:
        normalised = (each - each.mean(dim=(0, 2, 3), keepdim=True)) / torch.sqrt(
            each.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5
        )
        second.append(model[4](torch.relu(normalised)).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model[5].running_mean, torch.stack(second).mean(dim=0))
    assert model.training is training
    assert all(each.momentum == 0.1 and each.training is training for each in batch_norms(model).values())
    assert all(torch.equal(weights[name], each) for name, each in model.named_parameters())


def test_estimate_does_not_depend_on_earlier_statistics():
    one, other = small_model(), small_model()
    other[1].running_mean.fill_(100)
    other.train()(batches(1)[0])
    for each in (one, other):
        estimate_statistics(each, batches(3))
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_without_batches_or_without_normalisations_nothing_changes():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    assert estimate_statistics(model, []) == 0
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert estimate_statistics(nn.Linear(2, 2), [torch.ones(1, 2)]) == 0


def test_every_normalisation_of_a_timm_model_is_estimated():
    encoder = TimmEncoder("densenet121", image_size=32, growth_rate=4, block_config=(1, 1, 1, 1)).eval()
    before = copy.deepcopy(encoder.state_dict())
    estimate_statistics(encoder, [torch.randn(4, 3, 32, 32) for _ in range(2)])
    after = encoder.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {
        f"{name}.{kind}"
        for name in batch_norms(encoder)
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    }


@given(momentum=st.floats(0.001, 1.0), steps=st.integers(1, 5))
def test_second_statistics_equal_those_of_a_training_with_their_momentum(momentum, steps):
    trained, other = small_model(), small_model()
    for norm in batch_norms(other).values():
        norm.momentum = momentum
    second = SecondStatistics(trained, momentum)
    for model in (trained, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(2)
        for batch in batches(steps):
            optimizer.zero_grad()
            model.train()(batch).square().mean().backward()
            optimizer.step()
    own, image = copy.deepcopy(trained.state_dict()), batches(1)[0]
    trained.eval(), other.eval()
    with second.used():
        torch.testing.assert_close(trained(image), other(image), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(own[name], each) for name, each in trained.state_dict().items())
    # Validation in between leaves both alone.
    kept = dict(second.statistics)
    trained(image)
    assert all(torch.equal(kept[name], each) for name, each in second.statistics.items())


def test_batch_of_one_mixes_no_statistics_of_two_normalisations():
    def with_head(momentum):
        torch.manual_seed(0)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.BatchNorm1d(6))
        model = nn.Sequential(*small_model(), *pooled)
        model[3].p = 0.0
        for norm in batch_norms(model).values():
            norm.momentum = momentum
        use_running_statistics_for_one(model)
        return model.train()

    trained, other = with_head(0.1), with_head(0.5)
    second = SecondStatistics(trained, 0.5)
    for batch in (*batches(2), *batches(1, size=1)):
        trained(batch), other(batch)
    own = other.state_dict()
    assert second.statistics.keys() == {name for name in own if "running" in name}
    for name, each in second.statistics.items():
        torch.testing.assert_close(each, own[name], rtol=1e-3, atol=1e-3)
