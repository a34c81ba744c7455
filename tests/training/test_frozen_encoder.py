"""Batch statistics estimated on the training side: which photographs, and in which runs."""

import numpy as np
import pytest
import torch

from drgrade.data.photographs import Photographs
from drgrade.data.sources.demo import Demo
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.transforms import normalise
from drgrade.models.batch_norm import estimate_statistics
from drgrade.models.encoder import TimmEncoder, save_encoder
from drgrade.training.build import make_encoder, make_photographs, seed_everything
from drgrade.training.frozen_encoder import estimate_encoder_statistics, statistics_rows
from drgrade.training.run import train


def test_statistics_use_the_training_side_only(make_photographs):
    several = [make_photographs(val_fraction=0.15, label_fraction=share) for share in (0.1, 1.0)]
    rows = [statistics_rows(each) for each in several]
    assert np.array_equal(*rows)
    assert set(several[0].split["subset"].iloc[rows[0]]) == {"train", "unlabelled", "val"}
    assert len(rows[0]) == several[0].sides.training_side.sum()
    assert not np.array_equal(rows[0], np.sort(rows[0]))  # in random order
    assert not np.array_equal(rows[0], statistics_rows(make_photographs(fold=1)))


def test_statistics_leave_out_data_sets_that_are_only_pretrained_on(demo_source, stores, tmp_path):
    more = Demo(tmp_path, count=20, size=64, seed=5, name="more", workers=1)
    photographs = Photographs(demo_source, SplitSpec(), stores, 32, unlabelled=[more], workers=1)
    assert photographs.sides.training_side[60:].all()
    assert statistics_rows(photographs).max() < 60


def test_estimated_statistics_are_those_of_plain_photographs(photographs):
    torch.manual_seed(0)
    encoder, other = (TimmEncoder("test_resnet", image_size=32) for _ in range(2))
    other.load_state_dict(encoder.state_dict())
    estimate_encoder_statistics(encoder, photographs, 16, torch.device("cpu"))
    rows = statistics_rows(photographs)
    pixels = torch.from_numpy(photographs.stores[0].images[rows].copy()).permute(0, 3, 1, 2)
    full = [each for each in normalise(pixels).split(16) if len(each) == 16]
    estimate_statistics(other, full)
    for name, each in encoder.state_dict().items():
        torch.testing.assert_close(each, other.state_dict()[name])


ENCODER = ("encoder=timm", "encoder.name=test_resnet")


@pytest.fixture
def estimated(compose):
    """The encoder that these runs start from, with estimated statistics."""
    cfg = compose(*ENCODER, "protocol=matched")
    seed_everything(cfg.seed)
    encoder = make_encoder(cfg)
    estimate_encoder_statistics(encoder, make_photographs(cfg), cfg.data.batch_size, torch.device("cpu"))
    return encoder.state_dict()


def encoder_of(folder):
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {
        name.removeprefix("encoder."): each for name, each in state.items() if name.startswith("encoder.")
    }


def test_probe_uses_estimated_statistics_and_the_same_weights(compose, tmp_path, estimated):
    train(compose(*ENCODER, "protocol=linear"))
    found = encoder_of(tmp_path / "run")
    assert found.keys() == estimated.keys()
    for name, each in found.items():
        assert torch.equal(each, estimated[name]), name
    train(compose(*ENCODER, "protocol=linear", "protocol.precise_bn=false", run="as_is"))
    as_is = encoder_of(tmp_path / "as_is")
    differing = {name for name in as_is if not torch.equal(as_is[name], found[name])}
    assert differing
    assert all("running" in name or name.endswith("num_batches_tracked") for name in differing)


@pytest.mark.parametrize(("protocol", "precise"), [("matched", True), ("published", False)])
def test_frozen_epochs_start_from_estimated_statistics(protocol, precise, compose, tmp_path, estimated):
    cfg = compose(*ENCODER)
    seed_everything(cfg.seed)
    first = make_encoder(cfg)
    save_encoder(first, tmp_path, {})
    settings = (f"protocol={protocol}", "protocol.frozen_epochs=1", "protocol.pretrain_on=all")
    train(compose(*ENCODER, f"init={tmp_path}", *settings, "trainer.max_epochs=1"))
    expected = estimated if precise else first.state_dict()
    for name, each in encoder_of(tmp_path / "run").items():
        assert torch.equal(each, expected[name]), name
