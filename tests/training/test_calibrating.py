"""Calibration of runs: fitted on validation photographs, reported, kept in the run folder."""

import json
import re
import shutil

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, log_loss

from drgrade.config import CONF
from drgrade.errors import DataError
from drgrade.evaluation.evaluation import evaluate
from drgrade.models.calibration import (
    FORMER_NOTE,
    Calibration,
    fit_calibration,
    normalised_entropy,
    referral_rule,
)
from drgrade.models.cross_fitting import fit_and_cross_fit
from drgrade.prediction.checkpoint import load_model
from drgrade.publishing.hub import save_pretrained
from drgrade.runs.run_dir import read_calibration, read_metrics, write_metrics
from drgrade.stats.selective import read_limits
from drgrade.training import validation as run_calibration
from drgrade.training.run import train

SELECTIVE = re.compile("aurc|coverage|for_qwk|after_referral")
GRADES = [f"p{grade}" for grade in range(5)]
FIGURES = {"nll", "brier", "nll_calibrated", "brier_calibrated", "ece_calibrated", "qwk_thresholds"}


def table(path):
    found = pd.read_csv(path)
    return torch.tensor(found[GRADES].to_numpy()), torch.tensor(found["grade"].to_numpy())


def names(record, name):
    return {key.removeprefix(f"{name}/") for key in record if key.startswith(f"{name}/")}


def test_run_reports_calibrated_metrics(finished_run):
    run = finished_run()
    record, calibration = read_metrics(run), read_calibration(run)
    assert record["test/referral_threshold"] == referral_rule([calibration]).threshold
    assert names(record, "test") >= FIGURES
    only_tested = set(filter(SELECTIVE.search, names(record, "test")))
    assert only_tested >= {"aurc", "excess_aurc", "qwk_at_coverage_0.8", "macro_f1_at_coverage_0.7"}
    referral = {"referral_threshold", "referral_sensitivity", "referral_specificity"}
    assert names(record, "test") - names(record, "val") == only_tested | referral

    probabilities, grades = table(run / "predictions.csv")
    calibrated = calibration.probabilities(probabilities).numpy()
    read = np.digitize(calibrated @ np.arange(5), calibration.thresholds)
    truth = grades.numpy()
    assert record["test/nll_calibrated"] == pytest.approx(
        log_loss(truth, calibrated, labels=range(5)), abs=1e-4
    )
    kappa = cohen_kappa_score(truth, read, weights="quadratic", labels=range(5))
    assert record["test/qwk_thresholds"] == pytest.approx(np.nan_to_num(kappa), abs=1e-9)


def test_run_reports_selective_prediction_by_the_uncertainty_of_predict(finished_run):
    run = finished_run()
    record, calibration = read_metrics(run), read_calibration(run)
    found = pd.read_csv(run / "predictions.csv")
    uncertainty = normalised_entropy(calibration.probabilities(table(run / "predictions.csv")[0])).numpy()
    wrong = (found["grade"] != found["predicted"]).to_numpy()[np.argsort(uncertainty, kind="stable")]
    assert len(np.unique(uncertainty.round(9))) == len(found)  # no ties
    aurc = np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))
    assert record["test/aurc"] == pytest.approx(aurc, abs=1e-9)
    for wanted, limit in read_limits(record).items():
        assert record[f"test/referred_for_qwk_{wanted:g}"] == pytest.approx(np.mean(uncertainty > limit))


def test_missing_value_of_a_loaded_run_is_named(finished_run):
    with pytest.raises(DataError, match=r"metrics\.json is damaged \(no_such_metric is missing\)"):
        load_model(finished_run()).record["no_such_metric"]


def test_calibration_is_fitted_and_cross_validated_on_validation_photographs(finished_run):
    run = finished_run()
    record = read_metrics(run)
    split = pd.read_csv(run / "split.csv", dtype=str).set_index("image_id")
    validated = pd.read_csv(run / "validation.csv", dtype={"image_id": str})["image_id"]
    assert set(validated) == set(split.index[split["subset"] == "val"])
    probabilities, grades = table(run / "validation.csv")
    fitted, kept = fit_calibration(probabilities, grades), read_calibration(run)
    assert kept.temperature == pytest.approx(fitted.temperature, rel=1e-3)
    _, cross_fitted = fit_and_cross_fit(probabilities, grades, split["group"].loc[validated].tolist())
    for name, value in cross_fitted.items():
        assert record[f"val/{name}"] == pytest.approx(value, abs=1e-3)


def test_calibration_is_the_identity_without_validation_photographs(compose, tmp_path):
    record = train(compose("init=random", "protocol=published", "protocol.val_fraction=0"))
    run = tmp_path / "run"
    assert read_calibration(run) == Calibration()
    assert not (run / "validation.csv").exists()
    assert names(record, "test") & FIGURES == {"nll", "brier"}
    assert not names(record, "val")


def evaluated(run, tmp_path):
    paths = [
        f"checkpoint={run}",
        "own_run=true",
        f"paths.run={tmp_path / 'again'}",
        f"paths.outputs={tmp_path}",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return evaluate(hydra.compose("evaluate", [*paths, "trainer=cpu"])).metrics


def test_evaluating_a_run_again_gives_the_same_metrics(finished_run, tmp_path):
    run = finished_run()
    assert {**read_metrics(run), "evaluated": str(run)} == evaluated(run, tmp_path)


def test_old_run_without_calibration_is_evaluated(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run)
    (run / "calibration.json").unlink()
    assert "run it again" in read_calibration(run).note
    metrics = {name: value for name, value in read_metrics(run).items() if name.split("/")[-1] not in FIGURES}
    write_metrics(run, metrics)
    assert names(evaluated(run, tmp_path), "test") & FIGURES == {"nll", "brier"}


FORMER = {"temperature": 3.0, "thresholds": [0.5, 1.5, 2.5, 3.5], "points": [], "photographs": 14, "note": ""}
"""``calibration.json`` of a version whose temperature changed the order of the photographs."""


def test_calibration_of_an_earlier_version_is_fitted_again(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run)
    own = read_calibration(run)
    (run / "calibration.json").write_text(json.dumps(FORMER))
    again = read_calibration(run)
    assert again.photographs == own.photographs
    assert again.temperature == pytest.approx(own.temperature, rel=1e-2)
    assert again.nll_change == pytest.approx(own.nll_change, abs=1e-2)
    assert load_model(run).calibration == again
    record = read_metrics(run)
    with pytest.raises(DataError, match="no_such_metric is missing"):
        load_model(run).record["no_such_metric"]
    limits = read_limits(record)
    changed = {**record, **{name: 0.123 for name in record if name.startswith("uncertainty_limit")}}
    write_metrics(run, changed)
    assert read_limits(load_model(run).record) == pytest.approx(limits, abs=1e-2)
    (run / "validation.csv").unlink()
    assert read_calibration(run) == Calibration(note=FORMER_NOTE)
    assert read_limits(load_model(run).record) == {}


def test_published_calibration_of_an_earlier_version_is_not_used(finished_run, tmp_path):
    folder = save_pretrained(finished_run(), tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "calibration": FORMER}))
    assert load_model(folder).calibration == Calibration(note=FORMER_NOTE)


@pytest.mark.parametrize(
    ("old", "new"), [("p0", "q0"), ("0.", "7."), (",0,", ",9,")], ids=["column", "probability", "grade"]
)
def test_damaged_validation_photographs_are_refused(finished_run, tmp_path, old, new):
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run)
    (run / "calibration.json").write_text(json.dumps(FORMER))
    path = run / "validation.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=r"validation\.csv is damaged"):
        read_calibration(run)


@pytest.mark.parametrize("probe", ["linear", "majority"])
def test_probe_is_calibrated(probe, compose, tmp_path):
    record = train(compose(f"protocol={probe}", "init=random", "protocol.val_fraction=0.3"))
    assert names(record, "test") >= FIGURES
    assert names(record, "val") >= {"nll", "brier"}
    assert read_calibration(tmp_path / "run").photographs > 10


def test_calibration_does_not_change_uncalibrated_metrics(finished_run, compose, monkeypatch):
    plain = read_metrics(finished_run())
    monkeypatch.setattr(run_calibration, "fit_and_cross_fit", lambda *_: (Calibration(), {}))
    other = train(compose("protocol.val_fraction=0.3"))
    # Calibration changes the order of the uncertainties, and the referral decision.
    names = [name for name in other if not SELECTIVE.search(name) and "/referral_" not in name]
    assert {name: plain[name] for name in names} == {name: other[name] for name in names}
    assert len(plain) > len(other)
