"""Whole runs with weighted grades, focal loss and fitted thresholds."""

import filecmp

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from drgrade.config import CONF
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.evaluation.evaluation import evaluate
from drgrade.training import run as run_module
from drgrade.training.build import make_photographs
from drgrade.training.run import train

FITTED = ("init=random", "head=regression_fitted", "protocol.val_fraction=0.3")


def evaluated(run, folder, tmp_path, *more):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        paths = [f"checkpoint={run}", "own_run=true", f"paths.run={folder}", f"paths.outputs={tmp_path}"]
        return evaluate(hydra.compose("evaluate", [*paths, "trainer=cpu", *more])).metrics


def state(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_class_weights_use_training_photographs_only(compose, tmp_path):
    train(
        compose("init=random", "head.weighting=balanced", "label_fraction=0.5", "protocol.val_fraction=0.3")
    )
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    grades = split["grade"][split["subset"] == "train"].to_numpy().astype(int)
    present = np.unique(grades)
    want = np.zeros(5)
    want[present] = compute_class_weight("balanced", classes=present, y=grades)
    np.testing.assert_allclose(state(tmp_path / "run")["head.grade_weights"], want, rtol=1e-6)


@pytest.mark.parametrize("head", ["cumulative", "corn", "softmax"])
def test_only_the_training_loss_is_reweighted(head, compose):
    # A rate of 0: both runs validate the same network.
    settings = ("init=random", f"head={head}", "optimizer.lr=0", "head.dropout=0", "test=false")
    plain = train(compose(*settings, run="plain"))
    focal = train(compose(*settings, "head.weighting=effective", "head.focal_gamma=2", run="focal"))
    assert focal["train/loss"] < 0.7 * plain["train/loss"]
    assert focal["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)


def test_class_weights_with_balanced_sampling_are_refused(compose):
    with pytest.raises(ConfigError, match="would compensate for rare grades twice"):
        train(compose("init=random", "head.weighting=balanced", "data.balanced=true"))


def test_focal_regression_is_refused(compose):
    with pytest.raises(ConfigError, match=r"head\.focal_gamma=2: focal loss needs probabilities"):
        train(compose("init=random", "head=regression", "head.focal_gamma=2"))


def test_fitted_thresholds_are_used_in_test_and_evaluation(compose, tmp_path):
    record = train(compose(*FITTED, "optimizer.lr=1e-2", "trainer.max_epochs=6"))
    run = tmp_path / "run"
    thresholds = [record[f"threshold_{grade}"] for grade in range(1, 5)]
    assert state(run)["head.thresholds"].tolist() == pytest.approx(thresholds)
    assert record["val/qwk_fitted"] >= record["val/qwk"]
    assert sorted(thresholds) == thresholds
    table = pd.read_csv(run / "predictions.csv")
    value = table[[f"p{k}" for k in range(5)]].to_numpy() @ np.arange(5)
    inside = (np.abs(value[:, None] - thresholds).min(axis=1) > 1e-4) & (value > 0) & (value < 4)
    predicted = (value[:, None] >= thresholds).sum(axis=1)
    assert (predicted == table["predicted"])[inside].all()
    again = evaluated(run, tmp_path / "again", tmp_path)
    assert {**again, "evaluated": 0} == {**record, "evaluated": 0}
    assert filecmp.cmp(run / "predictions.csv", tmp_path / "again" / "predictions.csv", shallow=False)


def test_validation_uses_unfitted_thresholds(compose, tmp_path):
    settings = ("init=random", "protocol.val_fraction=0.3")
    plain = train(compose(*settings, "head=regression", run="plain"))
    fitted = train(compose(*settings, "head=regression_fitted", run="fitted"))
    assert fitted["val/qwk"] == plain["val/qwk"]
    assert fitted["test/loss"] == plain["test/loss"]
    one, other = state(tmp_path / "plain"), state(tmp_path / "fitted")
    assert all(torch.equal(one[name], other[name]) for name in one)


class OtherTestGrades(Photographs):
    """The same photographs and split, with other grades of the test photographs."""

    @property
    def split(self):
        return self._regraded(super().split.copy())

    @property
    def sides(self):
        sides = super().sides
        table = sides.table.copy()
        tested = (super().split["subset"] == "test").to_numpy()
        table.loc[tested, "grade"] = 4 - table.loc[tested, "grade"]
        return type(sides)(**{**vars(sides), "table": table})

    def _regraded(self, split):
        tested = split["subset"] == "test"
        split.loc[tested, "grade"] = 4 - split.loc[tested, "grade"]
        return split


def test_test_grades_do_not_change_thresholds(compose, tmp_path, monkeypatch):
    first = train(compose(*FITTED, run="first"))

    def regraded(cfg):
        photographs = make_photographs(cfg)
        photographs.__class__ = OtherTestGrades
        return photographs

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_photographs", regraded)
        second = train(compose(*FITTED, run="second"))
    grades, other = (pd.read_csv(tmp_path / run / "predictions.csv")["grade"] for run in ("first", "second"))
    assert (other == 4 - grades).all()
    for name in ("threshold_1", "threshold_2", "threshold_3", "threshold_4", "val/qwk_fitted"):
        assert second[name] == first[name]


def test_fitting_thresholds_needs_validation_photographs(compose):
    with pytest.raises(
        ConfigError, match=r"none: set protocol\.val_fraction above 0, or head\.thresholds=half"
    ):
        train(compose("init=random", "head=regression_fitted", "protocol.val_fraction=0"))


def test_resumed_run_with_fitted_thresholds_ends_the_same(compose, tmp_path):
    straight = train(compose(*FITTED, "protocol.epochs=3", "protocol.ema_decay=0.5", run="straight"))
    settings = (*FITTED, "protocol.epochs=3", "protocol.ema_decay=0.5")
    train(compose(*settings, "trainer.max_epochs=2", run="parts"))
    parts = train(compose(*settings, f"resume={tmp_path / 'parts'}", run="elsewhere"))
    assert parts == straight
    one, other = state(tmp_path / "straight"), state(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)
