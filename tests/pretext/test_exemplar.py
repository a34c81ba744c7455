from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import cnn, views, vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from drgrade.errors import ConfigError
from drgrade.pretext.combination import Combination
from drgrade.pretext.contrastive import embed
from drgrade.pretext.exemplar import Exemplar, semi_hard
from drgrade.pretext.rotation import Rotation
from drgrade.tasks import PretextTask
from drgrade.training.run import train

MARGIN = 0.2


def squared_distance(a, b):
    """Return the squared distance of two vectors after normalisation to length 1."""
    a, b = ([x / sum(y * y for y in one) ** 0.5 for x in one] for one in (a.tolist(), b.tolist()))
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def naive(anchors, positives):
    """Compute loss, accuracy and share of active triplets in a loop, with semi-hard negatives."""
    total, active, right = 0.0, 0, []
    for i, anchor in enumerate(anchors):
        near = squared_distance(anchor, positives[i])
        far = [squared_distance(anchor, other) for j, other in enumerate(anchors) if j != i]
        right += [near < distance for distance in far]
        further = [distance for distance in far if distance > near]
        negative = min(further) if further else max(far)
        loss = max(0.0, near - negative + MARGIN)
        total, active = total + loss, active + (loss > 0)
    return total / len(anchors), sum(right) / len(right), active / len(anchors)


def far_and_near(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    far, near = torch.rand(batch, batch + 1, generator=generator), torch.rand(batch, generator=generator)
    itself = torch.zeros(batch, batch + 1, dtype=torch.bool)
    itself[:, 1:].fill_diagonal_(True)
    return near, far, itself


@pytest.mark.parametrize("batch", [2, 3, 7])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_scores_equal_a_naive_loop_over_triplets(batch, training):
    torch.manual_seed(batch)
    encoder = vit().eval()
    pretext = Exemplar(encoder, margin=MARGIN).train(training)
    first, second = views(2, batch)
    seen = [first, first + second]
    loss, scores = pretext(encoder, seen)
    expected, accuracy, active = naive(*(each.detach() for each in embed(encoder, pretext.head, seen)))
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert scores["accuracy"].item() == pytest.approx(accuracy)
    assert scores["active"].item() == pytest.approx(active)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_the_semi_hard_negative_is_the_nearest_beyond_the_positive(batch, seed):
    near, far, itself = far_and_near(batch, seed)
    chosen = semi_hard(near, far, itself)[:, 0]
    for i, column in enumerate(chosen.tolist()):
        others = {j: far[i, j].item() for j in range(batch + 1) if not itself[i, j]}
        beyond = {j: distance for j, distance in others.items() if distance > near[i]}
        expected = min(beyond, key=beyond.get) if beyond else max(others, key=others.get)
        assert column == expected


def test_a_negative_at_the_distance_of_the_positive_is_not_semi_hard():
    near, itself = torch.tensor([0.5]), torch.tensor([[True, False, False]])
    assert semi_hard(near, torch.tensor([[0.6, 0.5, 0.9]]), itself) == 2


class Fixed(nn.Module):
    """Head that returns given embeddings for any input."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)

    def forward(self, features):
        return self.embeddings


def test_identical_embeddings_cost_the_margin_with_accuracy_0():
    pretext = Exemplar(vit(32), margin=MARGIN)
    pretext.head = Fixed(torch.eye(4)[:1].repeat(8, 1))  # exactly of length 1, so that rounding has no effect
    loss, scores = pretext(vit(32), views(2, batch=4, side=32))
    assert loss.item() == pytest.approx(MARGIN)
    assert scores["accuracy"] == 0
    assert scores["active"] == 1


def test_triplets_separated_by_the_margin_have_no_loss():
    pretext = Exemplar(vit(32), margin=MARGIN)
    pretext.head = Fixed(torch.eye(4).repeat(2, 1))
    loss, scores = pretext(vit(32), views(2, batch=4, side=32))
    assert (loss, scores["accuracy"], scores["active"]) == (0, 1, 0)


@pytest.mark.parametrize("training", [True, False])
def test_random_negatives_are_never_the_photograph_itself(training):
    pretext = Exemplar(vit(32), negatives="random").train(training)
    itself = torch.zeros(300, 8, dtype=torch.bool)
    itself[:, 5] = True
    chosen = pretext.choose_negatives(torch.zeros(300), torch.zeros(300, 8), itself)
    assert sorted(set(chosen[:, 0].tolist())) == [0, 1, 2, 3, 4, 6, 7]


def test_random_negatives_are_fixed_in_evaluation_only():
    torch.manual_seed(0)
    encoder, seen = vit(32).eval(), views(2, batch=6, side=32)
    pretext = Exemplar(encoder, negatives="random", margin=4)
    assert len({pretext(encoder, seen)[0].item() for _ in range(5)}) > 1
    pretext.eval()
    assert len({pretext(encoder, seen)[0].item() for _ in range(5)}) == 1


def test_the_head_is_one_linear_layer_by_default():
    encoder = cnn()
    assert [type(layer) for layer in Exemplar(encoder).head.layers] == [nn.Linear]
    assert [type(layer) for layer in Exemplar(encoder, hidden=[16]).head.layers] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"margin": 0}, r"margin=0 is not in \(0, 4\]"),
        ({"margin": 5.0}, r"margin=5.0 is not in \(0, 4\]"),
        ({"margin": float("nan")}, r"margin=nan is not in \(0, 4\]"),
        ({"negatives": "hardest"}, "negatives=hardest is not one of semi_hard, random"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=rf"pretext\.head\.{message}"):
        Exemplar(cnn(), **setting)


def test_a_run_writes_the_encoder_and_skips_a_validation_batch_of_one(compose):
    cfg = compose("pretext=exemplar", "task=pretext", "pretext.val_fraction=0.1", "pretext.batch_size=6")
    metrics = train(cfg)
    held_out = (pd.read_csv(f"{cfg.paths.run}/split.csv")["subset"] == "val").sum()
    assert held_out == 7  # one batch of 6 and one of 1
    assert metrics["status"] == "finished"
    assert 0 <= metrics["val/accuracy"] <= 1
    assert 0 <= metrics["val/loss"] <= 4 + MARGIN
    tensors = load_file(f"{cfg.paths.run}/encoder.safetensors")
    assert tensors
    assert not [name for name in tensors if "head" in name]


@pytest.mark.parametrize(
    ("held_out", "batch", "processes", "refused"),
    [(1, 32, 1, True), (2, 32, 1, False), (2, 32, 2, True), (3, 32, 2, False), (9, 1, 1, True)],
)
def test_a_validation_of_too_small_batches_is_refused(held_out, batch, processes, refused):
    loader = DataLoader(TensorDataset(torch.zeros(held_out)), batch_size=batch)
    trainer = SimpleNamespace(val_dataloaders=loader, world_size=processes)
    task = SimpleNamespace(trainer=trainer, pretext=Exemplar(vit(32)))
    if not refused:
        PretextTask.on_validation_start(task)
        return
    with pytest.raises(ConfigError, match=rf"Exemplar .* 2 .* the {held_out} .* pretext\.val_fraction=0"):
        PretextTask.on_validation_start(task)


def test_a_validation_of_too_small_batches_is_refused_before_training(compose, monkeypatch):
    def training_step(task, batch, number):
        raise AssertionError("trained for nothing")

    monkeypatch.setattr(PretextTask, "training_step", training_step)
    with pytest.raises(ConfigError, match=r"Exemplar .* 2 .* the 1 held-out"):
        train(compose("pretext=exemplar", "task=pretext", "pretext.val_fraction=0.01"))


def test_a_combination_needs_the_largest_batch_of_its_parts():
    part = {"head": Exemplar, "weight": 1.0}
    other = {**part, "head": Rotation}
    assert Combination(vit(32), {"turn": other, "near": part}).min_photographs == 2
    assert Combination(vit(32), {"turn": other, "again": other}).min_photographs == 1
