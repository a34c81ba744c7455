"""Runs that fit a probe write the artefacts of any grading run."""

import json
import logging

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import InstantiationException
from pytorch_lightning.loggers import Logger
from sklearn.metrics import cohen_kappa_score

from drgrade.cli.command import explain
from drgrade.cli.report import make_report
from drgrade.config import CONF
from drgrade.errors import ConfigError
from drgrade.evaluation.evaluation import evaluate
from drgrade.models.heads import RegressionHead
from drgrade.models.probes import KnnProbe, LinearProbe
from drgrade.settings import ReportSettings
from drgrade.training import frozen_encoder as features_module
from drgrade.training import probe
from drgrade.training.build import make_encoder, seed_everything
from drgrade.training.run import train
from drgrade.training.tracking.tracker import Evaluation

TINY_ENCODER = ("encoder=timm", "encoder.name=test_resnet")


@pytest.fixture
def run(compose, tmp_path):
    """``run("linear", "a=b")``: metrics and folder of a tiny run of a protocol."""
    number = iter(range(100))

    def make(protocol, *more, name=None):
        name = name or f"run{next(number)}"
        return train(compose(f"protocol={protocol}", *TINY_ENCODER, *more, run=name)), tmp_path / name

    return make


LINEAR = ("protocol=linear", *TINY_ENCODER)
SAME = "protocol.val_fraction=0.3"
"""``run("linear", SAME)`` repeats ``finished_run(*LINEAR)``."""


def predictions(folder):
    return pd.read_csv(folder / "predictions.csv")


def evaluated(folder, shared, tmp_path):
    out = tmp_path / "evaluation"
    stores = next(each for each in shared if each.startswith("paths.stores"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"checkpoint={folder}", "own_run=true", f"paths.run={out}", stores, "trainer=cpu"]
        cfg = hydra.compose("evaluate", given)
    return evaluate(cfg).metrics, out


@pytest.mark.parametrize(
    ("protocol", "unused"),
    [
        ("linear", "head.hidden, head.dropout"),
        ("knn", "head"),
        ("few_shot", "head"),
        ("majority", "head, encoder"),
    ],
)
def test_probe_writes_all_artefacts_and_evaluate_agrees(protocol, unused, run, shared, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        metrics, folder = run(protocol)
    assert f"not used: optimizer, schedule, augment, {unused}\n" in caplog.text
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["status"] == "finished"
    assert metrics["protocol"] == protocol
    assert {"train/loss", "val/qwk", "test/qwk", "test/loss", "split_hash", "pretraining_saw_test"} <= set(
        metrics
    )
    for name in ("config.yaml", "split.csv", "confusion.csv", "photographs.json"):
        assert (folder / name).is_file()
    table = predictions(folder)
    qwk = cohen_kappa_score(table["grade"], table["predicted"], weights="quadratic", labels=range(5))
    assert metrics["test/qwk"] == pytest.approx(0.0 if np.isnan(qwk) else qwk, abs=1e-9)
    split = pd.read_csv(folder / "split.csv")
    assert sorted(table["image_id"]) == sorted(split["image_id"][split["subset"] == "test"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["devices"] == 1
    assert provenance["steps"] == 0
    assert provenance["images"] == (None if protocol == "majority" else 60)

    again, out = evaluated(folder, shared, tmp_path)
    other = predictions(out)
    assert other["predicted"].tolist() == table["predicted"].tolist()
    probabilities = [f"p{grade}" for grade in range(5)]
    np.testing.assert_allclose(other[probabilities], table[probabilities], atol=1e-5)
    for name in ("test/qwk", "val/qwk", "test/loss", "val/auroc"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-4)


def test_checkpoint_holds_the_initial_encoder(run, compose):
    _, folder = run("linear", "seed=4", "protocol.precise_bn=false")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    seed_everything(4)
    expected = make_encoder(compose(*TINY_ENCODER, "seed=4")).state_dict()
    assert any("running_mean" in name for name in expected)
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in expected.items())


def test_photographs_are_encoded_once_per_fold_for_all_protocols(run, monkeypatch):
    encoded, encode = [], features_module.encode

    def counted(*given):
        encoded.append(given)
        encode(*given)

    monkeypatch.setattr(features_module, "encode", counted)
    for protocol, more in (
        ("linear", ["label_fraction=0.25"]),
        ("linear", ["fold=1"]),
        ("knn", []),
        ("few_shot", []),
    ):
        run(protocol, *more)
    assert len(encoded) == 2  # the batch statistics are those of the training side


def test_majority_probe_encodes_nothing(run, monkeypatch):
    def forbidden(*given):
        raise AssertionError("encoded")

    monkeypatch.setattr(features_module, "encode", forbidden)
    metrics, folder = run("majority", "label_fraction=0.5")
    assert metrics["test/qwk"] == 0
    assert metrics["test/auroc"] == 0.5
    split = pd.read_csv(folder / "split.csv")
    shares = split["grade"][split["subset"] == "train"].value_counts(normalize=True)
    table = predictions(folder)
    assert set(table["predicted"]) == {int(shares.idxmax())}
    for grade in range(5):
        assert table[f"p{grade}"].iloc[0] == pytest.approx(shares.get(grade, 0), abs=1e-6)


def test_same_settings_give_bit_identical_metrics(run, finished_run):
    one, (_, two) = finished_run(*LINEAR), run("linear", SAME)
    for name in ("metrics.json", "predictions.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_test_grades_do_not_change_predictions(run, finished_run, monkeypatch):
    before = predictions(finished_run(*LINEAR))
    graded = probe.select

    def scrambled(photographs, features, subset, dataset=None):
        found = graded(photographs, features, subset, dataset)
        return (
            probe.GradedFeatures(found.rows, found.features, 4 - found.grades) if subset == "test" else found
        )

    monkeypatch.setattr(probe, "select", scrambled)
    _, folder = run("linear", SAME)
    after = predictions(folder)
    assert (after["grade"] == 4 - before["grade"]).all()
    columns = ["predicted", *(f"p{grade}" for grade in range(5))]
    pd.testing.assert_frame_equal(before[columns], after[columns])


@pytest.mark.parametrize(
    ("protocol", "sees", "penalty"),
    [("linear", "true", None), ("linear", "false", 0.01), ("few_shot", "false", 0.01)],
)
def test_penalty_is_chosen_on_validation_only_if_allowed(protocol, sees, penalty, run, monkeypatch):
    given, fit = [], LinearProbe.fit

    def recording(head, features, grades, validation=None):
        given.append(validation is not None)
        return fit(head, features, grades, validation)

    monkeypatch.setattr(LinearProbe, "fit", recording)
    metrics, _ = run(protocol, "probe@protocol.probe=linear", f"protocol.probe_sees_val={sees}")
    assert "val/qwk" in metrics
    assert given == [sees == "true"]
    if penalty is not None:
        assert metrics["probe/penalty"] == penalty


def test_few_shot_uses_equal_shots_per_grade(run):
    metrics, folder = run("few_shot", "protocol.shots=2")
    split = pd.read_csv(folder / "split.csv")
    counts = split["grade"][split["subset"] == "train"].value_counts()
    assert metrics["shots"] == 2
    assert ((counts >= 2) & (counts <= 3)).all()
    with pytest.raises(InstantiationException) as refused:
        run("few_shot", "label_fraction=0.5")
    assert "label_fraction=0.5 and protocol.shots=5" in explain(refused.value)


@pytest.mark.parametrize("head", ["softmax", "corn", "regression"])
def test_every_other_head_can_be_probed(head, run, shared, tmp_path):
    metrics, folder = run("linear", f"head={head}")
    again, _ = evaluated(folder, shared, tmp_path)
    assert again["test/loss"] == pytest.approx(metrics["test/loss"], abs=1e-5)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert sum(name.startswith("head.") for name in state) == 2  # a weight and a bias: no hidden layer
    assert 0 <= metrics["test/accuracy"] <= 1


def test_probe_thresholds_are_fitted_on_validation(run, shared, tmp_path):
    metrics, folder = run("linear", "head=regression", "head.thresholds=fitted")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(state["head.head.thresholds"], RegressionHead(2, thresholds="fitted").thresholds)
    again, _ = evaluated(folder, shared, tmp_path)
    assert again["val/qwk"] == pytest.approx(metrics["val/qwk"], abs=1e-6)
    assert again["test/qwk"] == pytest.approx(metrics["test/qwk"], abs=1e-6)


def test_probe_without_test_writes_no_test_metrics(run):
    metrics, folder = run("linear", "test=false")
    assert "val/qwk" in metrics
    assert not any(name.startswith("test/") for name in metrics)
    assert not (folder / "predictions.csv").exists()


def test_probe_without_validation_photographs_uses_defaults(run):
    metrics, _ = run("linear", "protocol.val_fraction=0")
    assert metrics["probe/penalty"] == 0.01
    assert not any(name.startswith("val/") for name in metrics)


def test_probe_tests_external_data_sets_separately(run, shared, tmp_path):
    far = f"{{data: demo, name: far, root: {tmp_path}/far, count: 30, size: 64, seed: 6}}"
    metrics, folder = run("knn", f"data.external=[{far}]")
    table = pd.read_csv(folder / "predictions_far.csv")
    assert table["image_id"].str.startswith("far/").all()
    qwk = cohen_kappa_score(table["grade"], table["predicted"], weights="quadratic")
    assert metrics["external/far/qwk"] == pytest.approx(qwk)


def test_probe_of_a_pretrained_encoder_records_pretraining_saw_test(run, finished_run):
    metrics, folder = run("linear", SAME, "init=ssl", "pretrain_on=all")
    assert metrics["pretraining_saw_test"] is True
    assert metrics["encoder_hash"]
    assert json.loads((folder / "provenance.json").read_text())["encoder"]
    random = json.loads((finished_run(*LINEAR) / "metrics.json").read_text())
    assert random["pretraining_saw_test"] is False
    assert random["val/loss"] != metrics["val/loss"]


def test_resume_auto_repeats_only_unfinished_probes(run, monkeypatch):
    def broken(*given):
        raise RuntimeError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(KnnProbe, "fit", broken)
        with pytest.raises(RuntimeError):
            run("knn", "resume=auto", name="same")
    metrics, _ = run("knn", "resume=auto", name="same")
    assert metrics["status"] == "finished"
    with monkeypatch.context() as patch:
        patch.setattr(KnnProbe, "fit", broken)
        assert run("knn", "resume=auto", name="same")[0] == metrics
    with pytest.raises(ConfigError, match="another run"):
        run("linear", "resume=auto", name="same")


class RecordingLogger(Logger):
    """A logger that stores what it receives."""

    events: list[object] = []  # noqa: RUF012 - the config makes the logger, the test reads it here

    name, version = "recording", 0

    def log_hyperparams(self, params, *args, **kwargs):
        self.events.append("settings")

    def log_metrics(self, metrics, step=None):
        self.events.append(sorted(name for name in metrics if name.endswith("/qwk")))

    def log_evaluation(self, evaluation):
        assert isinstance(evaluation, Evaluation)
        self.events.append(evaluation.name)

    def finish_run(self, ending, record):
        self.events.append((ending, record["status"]))


def test_probe_logs_settings_metrics_evaluations_and_outcome(run):
    RecordingLogger.events.clear()
    run("knn", "logger=none", f"logger._target_={RecordingLogger.__module__}.RecordingLogger")
    assert RecordingLogger.events == [
        "settings",
        "val",
        "test",
        ["test/qwk", "val/qwk"],
        ("finished", "finished"),
    ]


def test_csv_logger_writes_probe_metrics(run):
    metrics, folder = run("knn", "logger=csv")
    table = pd.read_csv(folder / "csv" / "version_0" / "metrics.csv")
    assert table["test/qwk"].tolist() == pytest.approx([metrics["test/qwk"]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["protocol.frozen_epochs=3"], "frozen_epochs=3"),
        (["protocol.epochs=20"], "epochs=20"),
        (["protocol.steps_per_epoch=5"], "steps_per_epoch=5"),
        (["protocol.checkpoint=best"], "checkpoint=best"),
        (["protocol.layer_decay=0.7"], "layer_decay"),
        (["protocol.ema_decay=0.99"], "ema_decay"),
        (["data.balanced=true"], "balanced"),
        (["compile=true"], "compile"),
        (["trainer=ddp_cpu"], "one process"),
        (["protocol.probe_sees_val=maybe"], "probe_sees_val"),
        (["protocol=published", "+probe@protocol.probe=knn"], "frozen_epochs|epochs"),
        (["protocol.probe.k=0"], "k=0"),
        (["protocol=majority", "init=imagenet"], "init=imagenet"),
    ],
)
def test_settings_without_effect_on_a_probe_are_refused(settings, message, run):
    with pytest.raises(ConfigError, match=message):
        run("knn", *settings)


def test_report_is_made_from_probes(run, tmp_path):
    folders = [run(protocol, f"fold={fold}")[1] for protocol in ("knn", "majority") for fold in (0, 1)]
    make_report(ReportSettings.compose(runs=folders, out=tmp_path / "report", resamples=100))
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    measured = table[table["folds"] == 2]
    assert sorted(measured["protocol"]) == ["knn", "majority"]
    majority = measured[measured["protocol"] == "majority"]
    assert majority["mean"].tolist() == [0.0]
