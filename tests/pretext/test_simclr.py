import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cnn, views, vit
from torch import nn

from drgrade.errors import ConfigError
from drgrade.pretext.contrastive import embed
from drgrade.pretext.simclr import SimCLR, partner_accuracy
from drgrade.training.run import train


def naive(first, second, temperature):
    """Compute loss and accuracy view by view: equation 1 of Chen et al., both directions of every pair."""
    photographs = len(first)
    everyone = [*first.tolist(), *second.tolist()]
    norms = [math.sqrt(sum(x * x for x in one)) for one in everyone]

    def similarity(a, b):
        dot = sum(x * y for x, y in zip(everyone[a], everyone[b], strict=True))
        return dot / (norms[a] * norms[b])

    total, right = 0.0, 0
    for view in range(2 * photographs):
        partner = (view + photographs) % (2 * photographs)
        others = {k: similarity(view, k) for k in range(2 * photographs) if k != view}
        partition = sum(math.exp(value / temperature) for value in others.values())
        total -= math.log(math.exp(others[partner] / temperature) / partition)
        right += all(others[partner] > value for k, value in others.items() if k != partner)
    return total / (2 * photographs), right / (2 * photographs)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_accuracy_equal_a_naive_loop(temperature, batch, training):
    torch.manual_seed(batch)
    encoder = vit().eval()
    pretext = SimCLR(encoder, temperature=temperature, batch_norm=False).train(training)
    first, second = views(2, batch)
    near = first + 0.5 * second  # only some partners are the nearest
    loss, scores = pretext(encoder, [first, near])
    expected, accuracy = naive(*embed(encoder, pretext.head, [first, near]), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert scores["accuracy"].item() == pytest.approx(accuracy)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.floats(0.01, 3), st.integers(0, 1000))
def test_accuracy_equals_a_naive_loop_at_every_distance(batch, distance, seed):
    generator = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, batch, 4, generator=generator, dtype=torch.float64)
    second = first + distance * noise
    found = partner_accuracy(torch.stack([first, second], dim=1), torch.stack([first, second], dim=1))
    assert found.item() == pytest.approx(naive(first, second, 1.0)[1])


def test_accuracy_includes_views_of_other_processes():
    pairs = torch.eye(4)[:, None].repeat(1, 2, 1)
    assert partner_accuracy(pairs[2:], pairs, start=2) == 1
    assert partner_accuracy(pairs[2:], torch.cat([pairs[2:], pairs[2:]]), start=2) == 0  # ties do not count
    assert partner_accuracy(pairs[1:], torch.cat([pairs[3:], pairs[1:]]), start=1) == pytest.approx(2 / 3)


def test_identical_embeddings_have_accuracy_0():
    identical = torch.ones(5, 2, 3)
    assert partner_accuracy(identical, identical) == 0


def test_the_published_head_is_the_default():
    encoder = cnn()
    linear = [layer for layer in SimCLR(encoder).head.layers if isinstance(layer, nn.Linear)]
    width = encoder.num_features
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(width, width), (width, 128)]


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"pretext\.head\.temperature=.* is not in \(0, inf\)"):
        SimCLR(cnn(), temperature=temperature)


@pytest.mark.parametrize(
    ("settings", "gives", "takes"),
    [
        (["pretext=simclr", "pretext.views.counts=[3]"], 3, "SimCLR takes 2"),
        (["pretext=simclr", "pretext.views.counts=[1]"], 1, "SimCLR takes 2"),
        (["pretext=rotation_simclr", "pretext.parts.simclr.views.counts=[3]"], 4, "Combination takes 3"),
    ],
)
def test_another_number_of_views_is_refused(compose, settings, gives, takes):
    with pytest.raises(
        ConfigError, match=rf"pretext\.views gives {gives} views of a photograph, and {takes}"
    ):
        train(compose("task=pretext", *settings))
