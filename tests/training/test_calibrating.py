"""Calibration of runs: fitted on validation photographs, reported, kept in the run folder."""

import json

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, log_loss

from drgrade.config import CONF
from drgrade.evaluation.evaluation import evaluate
from drgrade.models.calibration import Calibration, cross_fitted_metrics, fit_calibration
from drgrade.runs.run_dir import read_calibration
from drgrade.training.run import train

RUN = ("init=random", "protocol.val_fraction=0.3")
GRADES = [f"p{grade}" for grade in range(5)]
FIGURES = {"nll", "brier", "nll_calibrated", "brier_calibrated", "ece_calibrated", "qwk_thresholds"}


def table(path):
    found = pd.read_csv(path)
    return torch.tensor(found[GRADES].to_numpy()), torch.tensor(found["grade"].to_numpy())


def names(record, name):
    return {key.removeprefix(f"{name}/") for key in record if key.startswith(f"{name}/")}


def test_run_reports_calibrated_metrics(compose, tmp_path):
    record = train(compose(*RUN))
    run = tmp_path / "run"
    calibration = read_calibration(run)
    assert json.loads((run / "metrics.json").read_text()) == record
    assert names(record, "test") >= FIGURES
    assert names(record, "test") - names(record, "val") == set()

    probabilities, grades = table(run / "predictions.csv")
    calibrated = calibration.probabilities(probabilities).numpy()
    read = np.digitize(calibrated @ np.arange(5), calibration.thresholds)
    truth = grades.numpy()
    assert record["test/nll_calibrated"] == pytest.approx(
        log_loss(truth, calibrated, labels=range(5)), abs=1e-4
    )
    kappa = cohen_kappa_score(truth, read, weights="quadratic", labels=range(5))
    assert record["test/qwk_thresholds"] == pytest.approx(np.nan_to_num(kappa), abs=1e-9)


def test_calibration_is_fitted_and_cross_validated_on_validation_photographs(compose, tmp_path):
    record = train(compose(*RUN, "test=false"))
    run = tmp_path / "run"
    split = pd.read_csv(run / "split.csv", dtype=str).set_index("image_id")
    validated = pd.read_csv(run / "validation.csv", dtype={"image_id": str})["image_id"]
    assert set(validated) == set(split.index[split["subset"] == "val"])
    probabilities, grades = table(run / "validation.csv")
    fitted, kept = fit_calibration(probabilities, grades), read_calibration(run)
    assert kept.temperature == pytest.approx(fitted.temperature, rel=1e-3)
    assert not names(record, "test")
    cross_fitted = cross_fitted_metrics(probabilities, grades, split["group"].loc[validated].tolist())
    for name, value in cross_fitted.items():
        assert record[f"val/{name}"] == pytest.approx(value, abs=1e-3)


def test_calibration_is_the_identity_without_validation_photographs(compose, tmp_path):
    record = train(compose("init=random", "protocol=published", "protocol.val_fraction=0"))
    run = tmp_path / "run"
    assert read_calibration(run) == Calibration()
    assert not (run / "validation.csv").exists()
    assert names(record, "test") & FIGURES == {"nll", "brier"}
    assert not names(record, "val")


def test_evaluating_a_run_again_gives_the_same_metrics(compose, tmp_path):
    record = train(compose(*RUN))
    paths = [f"checkpoint={tmp_path / 'run'}", f"paths.run={tmp_path / 'again'}", f"paths.outputs={tmp_path}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        again = evaluate(hydra.compose("evaluate", [*paths, "trainer=cpu"])).metrics
    assert {**record, "evaluated": str(tmp_path / "run")} == again


def test_old_run_without_calibration_is_evaluated(compose, tmp_path):
    train(compose(*RUN))
    (tmp_path / "run" / "calibration.json").unlink()
    assert "run it again" in read_calibration(tmp_path / "run").note
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    before = {name: value for name, value in record.items() if name.split("/")[-1] not in FIGURES}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(before))
    paths = [f"checkpoint={tmp_path / 'run'}", f"paths.run={tmp_path / 'again'}", f"paths.outputs={tmp_path}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        again = evaluate(hydra.compose("evaluate", [*paths, "trainer=cpu"])).metrics
    assert names(again, "test") & FIGURES == {"nll", "brier"}


@pytest.mark.parametrize("probe", ["linear", "majority"])
def test_probe_is_calibrated(probe, compose, tmp_path):
    record = train(compose(f"protocol={probe}", "init=random", "protocol.val_fraction=0.3"))
    assert names(record, "test") >= FIGURES
    assert names(record, "val") >= {"nll", "brier"}
    assert read_calibration(tmp_path / "run").photographs > 10


def test_calibration_does_not_change_uncalibrated_metrics(compose, monkeypatch):
    """To the last bit, whatever the calibration says."""
    from drgrade.training import calibration as calibrating

    plain = train(compose(*RUN, run="plain"))
    monkeypatch.setattr(calibrating, "fit_calibration", lambda *_: Calibration())
    other = train(compose(*RUN, run="other"))
    assert {name: plain[name] for name in other} == other
    assert len(plain) > len(other)
