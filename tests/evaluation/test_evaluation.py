"""Evaluation of runs and ensembles, on their own photographs and on data sets."""

import dataclasses
import filecmp
import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.metrics import cohen_kappa_score

from drgrade.cli import command
from drgrade.config import CONF
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation.evaluation import evaluate
from drgrade.prediction.grader import Grader
from drgrade.publishing.hub import save_pretrained
from drgrade.settings import EvaluateSettings

P = [f"p{k}" for k in range(5)]
FILES = {
    "config.yaml",
    "confusion.csv",
    "evaluation.html",
    "intervals.json",
    "metrics.json",
    "predictions.csv",
    "provenance.json",
    "split.csv",
}


@pytest.fixture(scope="session")
def other_clinic(tmp_path_factory):
    """25 synthetic photographs of another clinic, the last four published as test."""
    root = tmp_path_factory.mktemp("other_clinic")
    demo = Demo(root / "drawn", count=25, size=64, seed=7, workers=1)
    manifest = demo.read().manifest
    names = manifest["path"].str.rpartition("/")[2]
    for path, name in zip(manifest["path"], names, strict=True):
        shutil.copyfile(demo.root / path, root / name)
    table = pd.DataFrame({"image": names, "grade": manifest["grade"], "patient": manifest["patient_id"]})
    table["split"] = ["train"] * 21 + ["test"] * 4
    table.to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture
def run(tmp_path):
    """``run(FOLDER, "data=demo", ...)`` returns the metrics and the folder of an evaluation."""
    number = iter(range(100))

    def make(checkpoint, *more, folder=None):
        folder = folder or tmp_path / f"evaluation{next(number)}"
        named = checkpoint if isinstance(checkpoint, list) else [checkpoint]
        settings = [f"checkpoint=[{','.join(map(str, named))}]", f"paths.run={folder}", "resamples=100"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(
                "evaluate", [*settings, "own_run=true", "paths.outputs=unused", "trainer=cpu", *more]
            )
        return evaluate(cfg).metrics, folder

    return make


def clinic(root, *more):
    return ["data=folder", "data.name=clinic", f"data.root={root}", "data.workers=1", *more]


def pixels(grader, root, image_ids):
    """Return photographs that are prepared one by one, without a store."""
    paths = [next(root.glob(f"{image_id}.*")) for image_id in image_ids]
    return np.stack([each.crop.pixels for each in grader.preparation.prepare_all(paths, workers=1)])


def own(shared):
    """Overrides for the data set of the runs."""
    root = next(each for each in shared if each.startswith("data.root"))
    return ["data=demo", root, "data.count=60", "data.size=64", "data.workers=1"]


def test_predictions_on_a_data_set_equal_those_of_the_grader(finished_run, other_clinic, run):
    metrics, folder = run(finished_run(), *clinic(other_clinic))
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    predictions = pd.read_csv(folder / "predictions.csv")
    assert len(predictions) == metrics["photographs"] == 25
    qwk = cohen_kappa_score(predictions["grade"], predictions["predicted"], weights="quadratic")
    assert metrics["test/qwk"] == pytest.approx(0.0 if np.isnan(qwk) else qwk, abs=1e-9)
    assert {"test/loss", "test/ece_calibrated", "test/sensitivity_at_0.9", "data_hash"} <= set(metrics)
    assert (metrics["data"], metrics["overlap"], metrics["status"]) == ("clinic", 0, "finished")
    assert not [name for name in metrics if name.startswith(("val/", "train/", "split/"))]

    grader = Grader.load([finished_run()], "cpu")
    graded = grader.grade(pixels(grader, other_clinic, predictions["image_id"]))
    np.testing.assert_allclose(predictions[P], graded.raw.numpy(), atol=2e-6)
    assert predictions["predicted"].tolist() == graded.grades.tolist()


def test_metrics_on_the_data_set_of_the_run_equal_those_of_the_run(finished_run, shared, run):
    """Its training photographs are dropped; predictions are compared by photograph."""
    folder = finished_run()
    metrics, out = run(folder, *own(shared), "overlap=drop")
    tested = pd.read_csv(folder / "predictions.csv").set_index("image_id")
    again = pd.read_csv(out / "predictions.csv").set_index("image_id").loc[tested.index]
    np.testing.assert_allclose(again[P], tested[P], atol=2e-6)
    assert again["predicted"].tolist() == tested["predicted"].tolist()
    trained_on = len((folder / "seen.txt").read_text().split())
    assert metrics["overlap_identical"] == trained_on
    assert metrics["overlap_dropped"] == metrics["overlap"] >= trained_on
    assert metrics["photographs"] + metrics["overlap"] == 60
    split = pd.read_csv(out / "split.csv")
    assert not set(split["group"][split["subset"] == "test"]) & set(
        split["group"][split["subset"] == "excluded"]
    )


def test_a_repeated_test_has_the_same_metrics_and_intervals(finished_run, run):
    record = json.loads((finished_run() / "metrics.json").read_text())
    metrics, folder = run(finished_run())
    assert {**metrics, "evaluated": 0} == {**record, "evaluated": 0}
    intervals = json.loads((folder / "intervals.json").read_text())
    assert intervals["sets"]["test"]["photographs"] == len(pd.read_csv(folder / "predictions.csv"))
    for name, estimate in intervals["intervals"].items():
        assert estimate["value"] == pytest.approx(record[name], abs=1e-9), name
        if estimate["low"] is not None:
            assert estimate["low"] < estimate["high"], name
    assert {path.name for path in folder.iterdir()} == FILES


def test_photographs_are_prepared_in_the_given_store(finished_run, run, tmp_path):
    folder = finished_run()
    _, again = run(folder, f"paths.stores={tmp_path / 'fresh'}")
    assert list((tmp_path / "fresh").glob("demo-*/images.npy"))
    assert filecmp.cmp(folder / "predictions.csv", again / "predictions.csv", shallow=False)


def test_training_photographs_are_refused_unless_forced(finished_run, shared, run, tmp_path):
    trained_on = len((finished_run() / "seen.txt").read_text().split())
    with pytest.raises(
        ConfigError, match=rf"of the 60 photographs of demo .*{trained_on} the same file"
    ) as error:
        run(finished_run(), *own(shared), folder=tmp_path / "refused")
    assert "overlap=drop" in str(error.value)
    assert "force=true" in str(error.value)
    assert not (tmp_path / "refused").exists()
    metrics, folder = run(finished_run(), *own(shared), "force=true")
    assert (metrics["photographs"], metrics["overlap_dropped"], metrics["forced"]) == (60, 0, True)
    assert "these metrics do not apply to new photographs" in (folder / "evaluation.html").read_text()


def test_training_photographs_of_any_member_are_refused(finished_run, run):
    """The second member was trained on the test photographs of the first."""
    with pytest.raises(ConfigError, match=r"was trained or validated on"):
        run([finished_run(), finished_run("fold=1")])


def test_training_photographs_of_earlier_versions_are_looked_up(finished_run, shared, run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(finished_run(), old)
    trained_on = len((old / "seen.txt").read_text().split())
    (old / "seen.txt").unlink()
    metrics, _ = run(old, *own(shared), "overlap=drop")
    assert metrics["overlap_identical"] == trained_on
    (old / "split.csv").unlink()
    with pytest.raises(DataError, match=r"has no seen\.txt .*force=true tests nevertheless"):
        run(old, *own(shared))
    metrics, folder = run(old, *own(shared), "force=true")
    assert (metrics["overlap"], metrics["photographs"]) == (None, 60)
    assert "It is unknown if a run was trained" in (folder / "evaluation.html").read_text()


def test_an_ensemble_is_the_mean_of_its_members_with_their_metrics(finished_run, other_clinic, run):
    folders = [finished_run(), finished_run("seed=1")]
    alone = [run(each, *clinic(other_clinic)) for each in folders]
    metrics, folder = run(folders, *clinic(other_clinic))
    both = pd.read_csv(folder / "predictions.csv")
    mean = sum(pd.read_csv(each / "predictions.csv")[P] for _, each in alone) / 2
    np.testing.assert_allclose(both[P], mean, atol=2e-6)
    at_least = both[P].to_numpy()[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    clear = (np.abs(at_least - 0.5) > 1e-5).all(axis=1)
    assert both["predicted"][clear].tolist() == (at_least >= 0.5).sum(axis=1)[clear].tolist()
    intervals = json.loads((folder / "intervals.json").read_text())["intervals"]
    for number, (one, _) in enumerate(alone, start=1):
        assert metrics[f"member/{number}/qwk"] == pytest.approx(one["test/qwk"], abs=1e-12)
        gain = metrics["test/qwk"] - one["test/qwk"]
        assert intervals[f"member/{number}/qwk_gain"]["value"] == pytest.approx(gain, abs=1e-12)
    assert metrics["evaluated"] == ",".join(map(str, folders))
    assert "seed" not in metrics  # the members differ in it
    assert metrics["protocol"] == "published"
    assert "test/loss" not in metrics


def test_two_processes_compute_the_same_bits_as_one(finished_run, other_clinic, run, tmp_path):
    """25 photographs cannot be split evenly. The size of batches has no effect in double precision."""
    folders = [finished_run(), finished_run("seed=1")]
    settings = [*clinic(other_clinic), "trainer.precision=64-true"]
    _, one = run(folders, *settings)
    two = tmp_path / "two"
    command = [sys.executable, "-m", "drgrade.cli.evaluate", f"checkpoint={folders[0]},{folders[1]}"]
    command += [
        f"paths.run={two}",
        f"paths.outputs={tmp_path}",
        "resamples=100",
        "trainer=ddp_cpu",
        *settings,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("predictions.csv", "confusion.csv", "split.csv", "intervals.json", "metrics.json"):
        assert filecmp.cmp(one / name, two / name, shallow=False), name
    assert json.loads((two / "provenance.json").read_text())["devices"] == 2
    assert done.stdout.count("test/accuracy ") == 1
    assert "finished: " in done.stdout
    assert len(pd.read_csv(two / "predictions.csv")) == 25


def test_tta_and_thresholds_equal_those_of_the_grader(finished_run, other_clinic, run):
    metrics, folder = run(finished_run(), *clinic(other_clinic), "tta=flips", "reading=thresholds")
    predictions = pd.read_csv(folder / "predictions.csv")
    grader = Grader.load([finished_run()], "cpu", "flips", "thresholds")
    graded = grader.grade(pixels(grader, other_clinic, predictions["image_id"]))
    np.testing.assert_allclose(predictions[P], graded.raw.numpy(), atol=2e-6)
    assert predictions["predicted"].tolist() == graded.grades.tolist()
    assert metrics["test/qwk"] == metrics["test/qwk_thresholds"]


def test_a_published_part_is_tested(finished_run, other_clinic, run):
    metrics, _ = run(finished_run(), *clinic(other_clinic, "data.split_column=split"), "part=test")
    assert metrics["photographs"] == 4
    with pytest.raises(DataError, match=r"no graded photographs of that part; .*part=test, part=train"):
        run(finished_run(), *clinic(other_clinic, "data.split_column=split"), "part=val")
    with pytest.raises(DataError, match="published as a whole"):
        run(finished_run(), *clinic(other_clinic), "part=test")


def test_photographs_without_grades_are_refused(finished_run, other_clinic, run):
    with pytest.raises(
        DataError, match=r"has a grade to compare with; drgrade predict checkpoint=RUN input="
    ):
        run(finished_run(), *clinic(other_clinic, "data.csv=null"))


def test_pretraining_on_the_photographs_is_reported(finished_run, other_clinic, run, tmp_path):
    pretrained = tmp_path / "pretrained"
    shutil.copytree(finished_run(), pretrained)
    record = json.loads((pretrained / "provenance.json").read_text())
    (pretrained / "provenance.json").write_text(json.dumps({**record, "encoder": str(tmp_path / "encoder")}))
    assert run(pretrained, *clinic(other_clinic))[0]["pretraining_saw_test"] is None
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "seen.txt").write_text("0" * 64 + "\n")
    assert run(pretrained, *clinic(other_clinic))[0]["pretraining_saw_test"] is False
    _, folder = run(finished_run(), *clinic(other_clinic))
    name = pd.read_csv(folder / "predictions.csv")["image_id"][3]
    content = hashlib.sha256(next(other_clinic.glob(f"{name}.*")).read_bytes()).hexdigest()
    (tmp_path / "encoder" / "seen.txt").write_text(content + "\n")
    metrics, folder = run(pretrained, *clinic(other_clinic))
    assert metrics["pretraining_saw_test"] is True
    assert "Pre-training used tested photographs" in (folder / "evaluation.html").read_text()
    assert run([finished_run(), pretrained], *clinic(other_clinic))[0]["pretraining_saw_test"] is True


def test_a_published_model_is_tested_on_a_data_set(finished_run, other_clinic, run, tmp_path):
    published = tmp_path / "published"
    save_pretrained(finished_run(), published, seen=True)
    metrics, _ = run(published, *clinic(other_clinic), f"paths.stores={tmp_path}/stores")
    record, _ = run(finished_run(), *clinic(other_clinic))
    assert metrics["test/qwk"] == record["test/qwk"]
    with pytest.raises(ConfigError, match=r"is a published model.*data=NAME"):
        run(published)
    (published / "seen.txt").unlink()
    with pytest.raises(DataError, match=r"was published without seen\.txt.*force=true"):
        run(published, *clinic(other_clinic), f"paths.stores={tmp_path}/stores")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tta=rotate"], "tta=rotate is not allowed: none, flips, dihedral"),
        (["reading=best"], "reading=best is not allowed: head, thresholds"),
        (["part=test"], "part=test is a part of a data set: name it"),
        (["overlap=keep"], "overlap=keep is not allowed: refuse, drop"),
        (["overlap=drop", "force=true"], "choose one of them"),
        (["resamples=10"], "resamples=10 is not allowed: whole number ≥ 100"),
        (
            ["data=ddr", "data.root=x", "data.external=[eyepacs]"],
            r"data\.external=\['eyepacs'\] has no effect",
        ),
        (["data.image_size=64"], r"data\.image_size=64, but the run was trained with 32"),
        (["data=ddr", "data.root=x", "data.illumination=clahe"], "was trained with none"),
        (["data.fold=0"], r"data\.fold=0 has no effect here: part=test"),
        (["data.batch_size=0"], r"data\.batch_size=0"),
    ],
)
def test_invalid_settings_are_refused(finished_run, run, settings, message):
    with pytest.raises(ConfigError, match=message):
        # With test-time augmentation, the same code runs with and without a data set.
        run(finished_run(), *settings, *([] if "tta=rotate" in settings else ["tta=flips"]))


def test_a_run_named_twice_is_refused(finished_run, run):
    with pytest.raises(ConfigError, match="is named twice"):
        run([finished_run(), f"{finished_run()}/"])


def test_a_setting_of_a_data_set_needs_a_data_set(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "data.root=x"])
    monkeypatch.setattr(command, "_running", [EvaluateSettings])
    message = command.explain_override("Could not override 'data.root'.")
    assert message == "data.root is a setting of a data set and none is named: add data=NAME"


def test_page_says_on_top_that_the_model_was_trained_on_drawings(
    finished_run, other_clinic, shared, run, capsys
):
    _, folder = run(finished_run(), *clinic(other_clinic))
    page = (folder / "evaluation.html").read_text()
    assert page.index("TRAINED ON DRAWINGS (demo)") < page.index("<h2>")
    assert "note: TRAINED ON DRAWINGS" in capsys.readouterr().err
    _, folder = run(finished_run(), *own(shared), "force=true")
    assert "TRAINED ON DRAWINGS" not in (folder / "evaluation.html").read_text()  # nor are they photographs


def test_page_says_on_top_that_every_photograph_got_one_grade(
    finished_run, other_clinic, run, monkeypatch, capsys
):
    grade = Grader.grade_normalised

    def constant(self, images):
        graded, members = grade(self, images)
        same = dataclasses.replace(graded, grades=torch.full_like(graded.grades, 2))
        return same, members

    _, folder = run(finished_run(), *clinic(other_clinic))
    page = (folder / "evaluation.html").read_text()
    predicted = set(pd.read_csv(folder / "predictions.csv")["predicted"])
    assert ("was graded" in page) == (len(predicted) == 1)
    monkeypatch.setattr(Grader, "grade_normalised", constant)
    _, folder = run(finished_run(), *clinic(other_clinic))
    page, text = (
        (folder / "evaluation.html").read_text(),
        "test: every one of the 25 photographs was graded 2.",
    )
    assert page.index(text) < page.index("<h2>")
    assert f"note: {text}" in capsys.readouterr().err


def test_the_page_is_self_contained_and_shows_every_count(finished_run, other_clinic, run):
    metrics, folder = run(finished_run(), *clinic(other_clinic))
    page = (folder / "evaluation.html").read_text()
    assert not re.search(r"<script|<link|<img|url\((?!#)|https?://(?!www\.w3\.org)", page)
    assert f"{metrics['test/qwk']:.3f}".replace("-", "\N{MINUS SIGN}") in page
    assert "25 photographs in" in page
    assert "not a medical device" in page
    confusion = pd.read_csv(folder / "confusion.csv", index_col=0).to_numpy()
    cells = re.findall(r"grade (\d) \(\w+\), (correct|predicted as grade \d)\n(\d+) of", page)
    assert len(cells) == 25
    for true, verdict, count in cells:
        predicted = true if verdict == "correct" else verdict[-1]
        assert confusion[int(true), int(predicted)] == int(count)
