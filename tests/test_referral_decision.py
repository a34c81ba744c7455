"""One referral decision: command, overlays, app, exported files, published folder and card agree."""

import csv
import json
import re
import shutil

import pandas as pd
import pytest
import torch

import drgrade
from drgrade.app.analysis import UploadAnalyzer
from drgrade.app.page import render_cards
from drgrade.app.uploads import Uploads
from drgrade.cli.predict import work
from drgrade.config import compose
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError
from drgrade.exporting.export import export
from drgrade.exporting.graph import onnx_runner, torch_runner
from drgrade.models.calibration import Calibration, referral_rule
from drgrade.models.thresholds import OperatingPoint
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.publishing.hub import from_pretrained, save_pretrained
from drgrade.runs.run_dir import read_calibration, read_metrics
from drgrade.settings import ExportSettings


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    """Eight synthetic photographs, large enough to be graded."""
    demo = Demo(tmp_path_factory.mktemp("eyes"), count=8, size=256, workers=1)
    demo.read()
    return sorted((demo.root / "images").iterdir())


@pytest.fixture
def uncalibrated(finished_run, tmp_path):
    """Copy of a run whose calibration file is missing."""
    run = tmp_path / "uncalibrated"
    shutil.copytree(finished_run(), run)
    (run / "calibration.json").unlink()
    return run


def _predicted(run, paths, out):
    work(compose("predict", checkpoint=run, input=list(map(str, paths)), out=out, workers=1, overlays=True))
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _app_card(grader, path, folder):
    analyzer = UploadAnalyzer(grader, abstain=False)
    with Uploads(folder) as uploads, path.open("rb") as file:
        upload = uploads.keep(path.name, file, path.stat().st_size)
        return render_cards([analyzer.analyse(upload, path.name)], analyzer)


def _exported(run, out, **settings):
    done = export(ExportSettings.compose(checkpoint=run, out=out, **settings))
    runner = torch_runner if out.suffix == ".pt2" else onnx_runner
    return runner(out.read_bytes()), json.loads(done.description.read_text())["referral"]


def test_default_is_the_operating_point_of_90_percent(finished_run):
    calibration = read_calibration(finished_run())
    rule = referral_rule([calibration])
    assert rule.threshold == calibration.point(0.9).threshold
    assert f"90 % sensitivity on {calibration.photographs} validation photographs" in rule.describe()
    assert f"{rule.threshold:.4g}" in rule.describe()


def test_default_without_operating_points_is_one_half():
    rule = referral_rule([Calibration(note="why not")])
    assert (rule.threshold, rule.sensitivity) == (0.5, None)
    assert "0.5" in rule.describe()
    assert "why not" in rule.describe()
    with pytest.raises(ConfigError, match="no operating points"):
        referral_rule([Calibration()], 0.9)


def test_ensemble_with_a_member_without_points_refers_from_one_half():
    fitted = Calibration(points=(OperatingPoint(0.3, 1.0, 0.2),), photographs=50)
    other = Calibration(points=(OperatingPoint(0.1, 1.0, 0.2),), photographs=40)
    assert referral_rule([fitted, other]).threshold == pytest.approx(0.2)
    assert "mean threshold of 2 members" in referral_rule([fitted, other]).describe()
    assert referral_rule([fitted, Calibration(note="none")]).threshold == 0.5


def test_metrics_contain_the_referral_decision(finished_run):
    run = finished_run()
    table, record = pd.read_csv(run / "predictions.csv"), read_metrics(run)
    rule = referral_rule([read_calibration(run)])
    probabilities = torch.tensor(table[[f"p{grade}" for grade in range(5)]].to_numpy())
    scores = read_calibration(run).probabilities(probabilities)[:, 2:].sum(dim=1)
    referred, positive = rule.refers(scores).numpy(), table["grade"].to_numpy() >= 2
    assert record["test/referral_threshold"] == rule.threshold
    assert record["test/referral_sensitivity"] == pytest.approx(referred[positive].mean())
    assert record["test/referral_specificity"] == pytest.approx((~referred)[~positive].mean())


def test_all_outputs_agree_for_one_photograph(finished_run, eyes, tmp_path):
    run = finished_run()
    grader = Grader.load([run], device="cpu")
    rule = grader.referral()
    rows = _predicted(run, eyes, tmp_path / "predicted")
    # The photograph furthest from the threshold: 8 bits change its probability slightly.
    row = max(
        (row for row in rows if row["status"] == "graded"),
        key=lambda row: abs(float(row["p_referable"]) - rule.threshold),
    )
    path = next(path for path in eyes if str(path) == row["path"])
    decision = row["referable"] == "true"
    assert float(row["threshold"]) == pytest.approx(rule.threshold, abs=1e-6)
    assert row["referral_rule"] == rule.origin

    page = (tmp_path / "predicted" / "overlays" / "index.html").read_text(encoding="utf-8")
    (article,) = (each for each in page.split("<article")[1:] if row["path"] in each)
    assert ("! referable" in article) == decision
    assert rule.origin in article

    card = _app_card(grader, path, tmp_path)
    assert re.search(r"<strong>(yes|no)</strong>", card).group(1) == ("yes" if decision else "no")
    assert rule.describe() in card.replace("&gt;", ">")

    (result,) = drgrade.load(run, device="cpu").predict(path)
    assert (result.result.referable, result.result.referral_rule) == (decision, rule.origin)

    pixels = grader.preparation.prepare(path).crop.pixels[None]
    files = {"grader.onnx": {}, "grader.pt2": {"format": "torch"}}
    files["int8.onnx"] = {"int8": True, "own_run": True, "resamples": 100}
    for name, settings in files.items():
        outputs, description = _exported(run, tmp_path / name, **settings)
        found = outputs(pixels)
        assert bool(found["referable"][0]) == decision, name
        assert float(found["p_referable"][0]) == pytest.approx(
            float(row["p_referable"]), abs=0.1 if "int8" in name else 1e-4
        )
        assert (description["threshold"], description["rule"]) == (rule.threshold, rule.describe())

    published = save_pretrained(run, tmp_path / "published")
    trained = from_pretrained(published)
    again = Grader([trained], device="cpu")
    assert bool(again.referral().refers(again.grade(pixels).referable)[0]) == decision
    config = json.loads((published / "config.json").read_text())
    assert config["referral"] == {
        "threshold": rule.threshold,
        "sensitivity": rule.sensitivity,
        "rule": rule.describe(),
    }
    for text in ((published / "README.md").read_text(), (run / "model_card.md").read_text()):
        assert rule.describe() in re.sub(r"\\(.)", r"\1", text).replace("&gt;", ">")


def test_uncalibrated_run_refers_from_one_half_everywhere(uncalibrated, eyes, tmp_path):
    grader = Grader(members=[load_model(uncalibrated)], device="cpu")
    rule = grader.referral()
    assert rule.threshold == 0.5
    rows = _predicted(uncalibrated, eyes, tmp_path / "predicted")
    for row in (row for row in rows if row["status"] == "graded"):
        assert (row["referable"] == "true") == (float(row["p_referable"]) >= 0.5)
        assert (row["threshold"], row["referral_rule"]) == ("0.500000", rule.origin)
    outputs, _ = _exported(uncalibrated, tmp_path / "grader.onnx")
    pixels = grader.preparation.prepare(eyes[0]).crop.pixels[None]
    found = outputs(pixels)
    assert found["referable"].tolist() == (found["p_referable"] >= 0.5).tolist()
    assert rule.describe() in _app_card(grader, eyes[0], tmp_path).replace("&gt;", ">")
