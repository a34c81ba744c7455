"""Features of the frozen encoder: correct, computed once, reused, never half written."""

import json
import logging
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra.utils import instantiate
from torch import nn

from drgrade.data.splits.spec import SplitSpec
from drgrade.data.transforms import normalise
from drgrade.errors import DrgradeError
from drgrade.models.encoder import Encoder
from drgrade.training import frozen_encoder as features_module
from drgrade.training.build import make_encoder, make_photographs, seed_everything
from drgrade.training.frozen_encoder import (
    InitialEncoder,
    RunCache,
    features_file,
    find_or_compute,
    weights_hash,
)


@pytest.fixture
def tiny(compose):
    """``tiny("a=b")``: config, photographs, encoder of a tiny run with a probe."""

    def make(*more):
        cfg = compose("encoder=timm", "encoder.name=test_resnet", "protocol=linear", *more)
        shared = RunCache()
        photographs = shared.photographs(cfg)
        return cfg, photographs, shared.encoder(cfg, photographs, None)

    return make


@pytest.fixture
def passes(monkeypatch):
    """Names of the data sets that were encoded."""
    found, encode = [], features_module.encode

    def counted(cfg, store, encoder, array):
        found.append(store.name)
        encode(cfg, store, encoder, array)

    monkeypatch.setattr(features_module, "encode", counted)
    return found


def test_features_match_the_encoder_for_each_photograph(tiny):
    cfg, photographs, initial = tiny()
    found = find_or_compute(cfg, photographs, initial)
    rows = np.array([3, 41, 0, 59])
    pixels = torch.from_numpy(photographs.stores[0].images[rows].copy()).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = initial.encoder(normalise(pixels))
    torch.testing.assert_close(found.of(rows), expected, atol=1e-5, rtol=1e-5)
    assert found.arrays[0].shape == (60, initial.encoder.num_features)
    assert found.images == 60


def test_encoding_does_not_change_the_encoder(tiny):
    cfg, photographs, initial = tiny("trainer.precision=bf16-true")
    before = {name: tensor.clone() for name, tensor in initial.encoder.state_dict().items()}
    assert any("running_mean" in name for name in before)
    find_or_compute(cfg, photographs, initial)
    after = initial.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)


@pytest.mark.parametrize("precise", [True, False])
def test_features_are_reused_across_fractions_protocols_and_unless_estimated_folds(tiny, passes, precise):
    own = f"protocol.precise_bn={str(precise).lower()}"
    cfg, photographs, initial = tiny(own)
    first = find_or_compute(cfg, photographs, initial)
    other_fold = tiny(own, "fold=2")
    # The training side of another fold has other batch statistics.
    assert (features_file(cfg, photographs.stores[0], other_fold[2]) in first.files) != precise
    for change in (["label_fraction=0.25"], ["protocol=knn"], ["head=softmax"]):
        cfg, photographs, initial = tiny(own, *change)
        again = find_or_compute(cfg, photographs, initial)
        assert again.files == first.files
        assert (again.images, again.seconds) == (0, 0.0)
    assert passes == ["demo"]


def test_features_file_depends_on_everything_that_changes_features(tiny):
    files = {
        features_file(cfg, photographs.stores[0], initial)
        for cfg, photographs, initial in (
            tiny(),
            tiny("seed=1"),  # other random weights
            tiny("trainer.precision=bf16-mixed"),
            tiny("encoder.name=test_vit"),
            tiny("data.image_size=48", "data.illumination=clahe"),
        )
    }
    assert len(files) == 5


def test_random_weights_equal_those_of_fine_tuning_with_the_same_seed(tiny):
    cfg, _, initial = tiny("seed=3", "protocol.precise_bn=false")
    seed_everything(3)
    assert weights_hash(make_encoder(cfg)) == initial.sha256


def test_unlabelled_stores_are_not_encoded(tiny, passes, tmp_path):
    more = f"{{data: demo, name: more, root: {tmp_path}/more, count: 20, size: 64, seed: 5}}"
    far = f"{{data: demo, name: far, root: {tmp_path}/far, count: 30, size: 64, seed: 6}}"
    cfg, photographs, initial = tiny(f"data.unlabelled=[{more}]", f"data.external=[{far}]")
    found = find_or_compute(cfg, photographs, initial)
    assert passes == ["demo", "far"]
    last = len(photographs) - 1
    pixels = torch.from_numpy(photographs.stores[2].images[29:30].copy()).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = initial.encoder(normalise(pixels))
    torch.testing.assert_close(found.of(np.array([last])), expected, atol=1e-5, rtol=1e-5)


class Broken(Encoder):
    """An encoder that returns NaN, or raises an error."""

    num_features = 4

    def __init__(self, after=None):
        super().__init__()
        self.layer, self.left = nn.Linear(1, 4), after

    def forward(self, images):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("broken off")
        return torch.full((len(images), 4), torch.nan if self.left is None else 1.0)


def test_non_finite_features_are_refused(tiny):
    cfg, photographs, _ = tiny()
    broken = InitialEncoder(Broken(), "0" * 64)
    with pytest.raises(DrgradeError, match="not finite"):
        find_or_compute(cfg, photographs, broken)
    assert not features_file(cfg, photographs.stores[0], broken).exists()


def test_missing_photographs_are_detected(tiny, monkeypatch):
    def half(cfg, store, encoder, array):
        array[:30] = 1

    monkeypatch.setattr(features_module, "encode", half)
    cfg, photographs, initial = tiny()
    with pytest.raises(DrgradeError, match="not finite"):
        find_or_compute(cfg, photographs, initial)
    assert not features_file(cfg, photographs.stores[0], initial).exists()


def test_interrupted_encoding_leaves_no_file(tiny, passes):
    cfg, photographs, _ = tiny()
    broken = InitialEncoder(Broken(after=3), "0" * 64)
    path = features_file(cfg, photographs.stores[0], broken)
    with pytest.raises(RuntimeError, match="broken off"):
        find_or_compute(cfg, photographs, broken)
    assert not path.exists()
    whole = InitialEncoder(Broken(after=1000), "0" * 64)
    assert find_or_compute(cfg, photographs, whole).of(np.arange(60)).min() == 1
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_damaged_features_are_computed_again(tiny, passes, damage):
    cfg, photographs, initial = tiny()
    first = find_or_compute(cfg, photographs, initial)
    expected = first.of(np.arange(60))
    path = first.files[0]
    if damage is None:
        np.save(path, np.zeros((2, 2), np.float32))
    else:
        path.write_bytes(damage)
    again = find_or_compute(cfg, photographs, initial)
    assert torch.equal(again.of(np.arange(60)), expected)
    assert passes == ["demo", "demo"]


def test_second_run_waits_for_the_features_of_the_first(tiny, passes, caplog):
    cfg, photographs, initial = tiny()
    path = features_file(cfg, photographs.stores[0], initial)
    path.parent.mkdir(parents=True)
    elsewhere = FileLock(path.with_suffix(".lock"), thread_local=False)
    elsewhere.acquire()
    done = []
    with caplog.at_level(logging.INFO):
        other = threading.Thread(target=lambda: done.append(find_or_compute(cfg, photographs, initial)))
        other.start()
        deadline = time.monotonic() + 30
        while "waiting for another run" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "waiting for another run" in caplog.text
        np.save(path, np.full((60, initial.encoder.num_features), 7, np.float32))
        elsewhere.release()
        other.join(timeout=30)
    assert done[0].images == 0
    assert (done[0].of(np.arange(60)) == 7).all()
    assert not passes


def test_features_have_a_description(tiny):
    cfg, photographs, initial = tiny()
    path = find_or_compute(cfg, photographs, initial).files[0]
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["weights"] == initial.sha256
    assert card["pixels"] == photographs.stores[0].pixels_sha256
    assert card["precision"] == "32-true"


# What runs of one process share


def test_cache_opens_photographs_once_and_splits_them_per_run(compose):
    shared = RunCache()
    one = shared.photographs(compose("fold=0"))
    other = shared.photographs(compose("fold=1", "label_fraction=0.5"))
    assert one.manifest is other.manifest
    assert one.stores is other.stores
    for found, cfg in ((one, compose("fold=0")), (other, compose("fold=1", "label_fraction=0.5"))):
        assert found.spec == instantiate(cfg.split)
        assert isinstance(found.spec, SplitSpec)
        assert found.split_hash == make_photographs(cfg).split_hash
    assert shared.photographs(compose("fold=0")) is one


def test_cache_makes_one_encoder_per_seed(compose):
    shared = RunCache()
    zero, one, other_fold, without = (
        shared.encoder(cfg, shared.photographs(cfg), None)
        for cfg in map(compose, ("seed=0", "seed=1", "fold=3", "head=softmax"))
    )
    assert zero.sha256 != one.sha256
    assert other_fold is without is zero  # published: the batch statistics are not estimated
    assert not zero.encoder.training
