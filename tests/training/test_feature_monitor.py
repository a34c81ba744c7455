import json
import logging

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError
from drgrade.metrics.functional import effective_rank, feature_std
from drgrade.training import callbacks
from drgrade.training.build import instantiate, make_encoder, make_photographs
from drgrade.training.callbacks import FeatureMonitor
from drgrade.training.run import train

PRETRAINING = ("+experiment=rotation_pretrain", "pretext.val_fraction=0.3")


@pytest.fixture
def watched(compose, tmp_path):
    """Metrics of a pre-training, and features and grades of its photographs, encoded directly."""

    def run(*more):
        cfg = compose(*PRETRAINING, *more)
        metrics = train(cfg)
        cfg.init = "random"
        encoder = make_encoder(cfg, tmp_path / "run").eval()
        data = instantiate(cfg.pretraining.datamodule, photographs=make_photographs(cfg))
        table = data.subsets()
        table["training_side"] = data.photographs.sides.training_side
        images = torch.from_numpy(np.array(data.photographs.stores[0].images)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = torch.cat([encoder(normalise(part)) for part in images.split(7)])
        return metrics, features, table

    return run


def test_spread_and_rank_are_those_of_whole_held_out_photographs(watched):
    metrics, features, table = watched()
    held_out = features[(table["subset"] == "val").to_numpy()]
    assert len(held_out) > 5
    assert metrics["val/feature_std"] == pytest.approx(feature_std(held_out), rel=1e-4)
    assert metrics["val/effective_rank"] == pytest.approx(effective_rank(held_out), rel=1e-3)
    assert "val/knn_qwk" not in metrics


@pytest.mark.parametrize("pretrain_on", ["train", "all"])
def test_neighbours_are_training_photographs_only(watched, pretrain_on):
    metrics, features, table = watched("callbacks.features.knn=3", f"pretrain_on={pretrain_on}")
    side = table["training_side"] & table["grade"].notna()
    bank, held_out = ((side & (table["subset"] == subset)).to_numpy() for subset in ("train", "val"))
    grades = table["grade"].to_numpy(dtype=float)
    reference = KNeighborsClassifier(
        3, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    reference.fit(features[bank].numpy(), grades[bank].astype(int))
    predicted = reference.predict(features[held_out].numpy())
    expected = cohen_kappa_score(
        predicted, grades[held_out].astype(int), weights="quadratic", labels=range(5)
    )
    assert metrics["val/knn_qwk"] == pytest.approx(expected, abs=1e-4)
    assert metrics["val/knn_accuracy"] == pytest.approx((predicted == grades[held_out]).mean(), abs=1e-4)


def test_monitor_does_not_change_the_weights(compose, tmp_path):
    for name, settings in (("with", ["callbacks.features.knn=5"]), ("without", ["~callbacks.features"])):
        train(compose(*PRETRAINING, *settings, f"paths.encoders={tmp_path / name}_encoders", run=name))
    first, second = (
        json.loads((tmp_path / name / "encoder.json").read_text()) for name in ("with", "without")
    )
    assert first["sha256"] == second["sha256"]
    assert first["key"] == second["key"]


@pytest.mark.parametrize(
    ("length", "looked_at"),
    [
        (["pretext.epochs=3"], [1, 3]),
        (["pretext.epochs=9", "pretext.max_steps=18"], [1, 3]),  # three epochs of six steps
        (
            ["pretext.epochs=9", "pretext.max_steps=14"],
            [1, 2],
        ),  # ends within the third, which is not validated
    ],
)
def test_last_validation_is_always_monitored(compose, monkeypatch, length, looked_at):
    epochs = []
    original = callbacks.encode_photographs

    def noted(encoder, loader, data, task):
        epochs.append(task.current_epoch + 1)
        return original(encoder, loader, data, task)

    monkeypatch.setattr(callbacks, "encode_photographs", noted)
    train(compose(*PRETRAINING, "callbacks.features.every=20", *length))
    assert epochs == looked_at


def test_single_photograph_has_no_spread_and_rank(compose):
    metrics = train(compose(*PRETRAINING, "pretext.val_fraction=0.01"))
    assert "val/loss" in metrics
    assert not {"val/feature_std", "val/effective_rank"} & metrics.keys()


def test_collapse_is_logged_once(caplog):
    watch = FeatureMonitor()
    with caplog.at_level(logging.WARNING):
        watch.warn_if_collapsed(0.5, 10)
        assert not caplog.records
        watch.warn_if_collapsed(0.0001, 10)
        watch.warn_if_collapsed(0.0001, 10)
    assert len(caplog.records) == 1
    assert "collapsed" in caplog.text


@pytest.mark.parametrize("setting", ["every", "knn"])
def test_monitor_settings_out_of_range_are_refused(setting, compose):
    with pytest.raises(ConfigError, match=f"callbacks.features.{setting}=0"):
        train(compose("task=pretext", f"callbacks.features.{setting}=0"))
