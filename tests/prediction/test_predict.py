"""``drgrade predict`` as a command."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from drgrade.cli.predict import main, work
from drgrade.config import compose
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError, DataError
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.prediction.job_state import DATABASE
from drgrade.prediction.results import COLUMNS
from drgrade.training.build import make_photographs

P = [f"p{k}" for k in range(5)]
FINAL = ("predictions.csv", "predictions.jsonl", "prediction.json")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory) -> Path:
    """Folder of ten synthetic photographs, large enough for a quality verdict, and of nothing else."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("some") / "eyes"
    Demo(source, count=10, size=128, workers=1).read()
    folder.mkdir()
    # The others are cut off at the top: at 32 px their quality is insufficient.
    whole = [path for patient in (1, 2, 5) for path in sorted(source.glob(f"*/images/p000{patient}_*"))]
    for number in range(10):
        (folder / f"eye{number}.jpg").write_bytes(whole[number % len(whole)].read_bytes())
    return folder


def _predict(run: Path, given: object, out: Path, **more) -> list[dict]:
    work(compose("predict", checkpoint=run, input=str(given), out=out, device="cpu", workers=1, **more))
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def real_run(run: Path, folder: Path) -> Path:
    """Copy a run as if it had been trained on photographs of a folder."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "metrics.json").read_text())
    del record["drawings"]
    (folder / "metrics.json").write_text(json.dumps({**record, "data": "clinic"}))
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.data.name, cfg.data.source._target_ = "clinic", "drgrade.data.sources.folder.Folder"
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def _files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FINAL[:2]}


@pytest.mark.parametrize("encoder", ["encoder=densenet", "encoder=msssl"])
def test_predictions_equal_those_of_the_run(finished_run, encoder, tmp_path):
    """Files are prepared as in training."""
    run = finished_run(encoder)
    own = pd.read_csv(run / "predictions.csv")
    photographs = make_photographs(OmegaConf.load(run / "config.yaml"))
    manifest = photographs.manifest.set_index("image_id")
    paths = [photographs.source.root / manifest.loc[image_id, "path"] for image_id in own["image_id"]]
    listed = pd.DataFrame({"path": paths, "image_id": own["image_id"]})
    listed.to_csv(tmp_path / "list.csv", index=False)
    lines = _predict(run, tmp_path / "list.csv", tmp_path / "out", abstain=False)
    assert [line["image_id"] for line in lines] == own["image_id"].tolist()
    raw = np.array([line["uncalibrated"] for line in lines])
    np.testing.assert_allclose(raw, own[P].to_numpy(), atol=3e-6)
    assert [line["predicted"] for line in lines] == own["predicted"].tolist()
    assert [line["sha256"] for line in lines] == manifest.loc[own["image_id"], "file_sha256"].tolist()


def test_csv_and_json_lines_agree(finished_run, eyes, tmp_path):
    lines = _predict(finished_run(), eyes, tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len(lines) == 10
    assert table["status"].tolist() == ["graded"] * 10
    np.testing.assert_allclose(table[P], [line["probabilities"] for line in lines])
    np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(table["expected_grade"], table[P] @ np.arange(5), atol=1e-5)
    np.testing.assert_allclose(table["p_referable"], table[["p2", "p3", "p4"]].sum(axis=1), atol=1e-5)
    for name in ("path", "image_id", "predicted", "quality", "sha256", "threshold", "uncertainty"):
        assert table[name].tolist() == [line[name] for line in lines]
    assert table["referable"].astype(str).str.lower().tolist() == [
        str(line["referable"]).lower() for line in lines
    ]


def test_the_manifest_records_weights_and_data(finished_run, eyes, tmp_path):
    run = finished_run()
    lines = _predict(run, eyes, tmp_path, tta="flips")
    manifest = json.loads((tmp_path / "prediction.json").read_text())
    record = json.loads((run / "metrics.json").read_text())
    digest = hashlib.sha256((run / "checkpoints" / record["checkpoint"]).read_bytes()).hexdigest()
    assert manifest["job"]["runs"][0]["checkpoint_sha256"] == digest
    assert lines[0]["provenance"]["checkpoints"] == [digest[:12]]
    assert manifest["runs"][0]["data_hash"] == record["data_hash"]
    assert manifest["job"]["settings"]["tta"] == "flips"
    assert manifest["status"] == "finished"
    assert manifest["counts"]["graded"] == 10
    assert "Not a medical device" in manifest["notice"]


def test_model_trained_on_drawings_warns_in_console_and_every_output(finished_run, eyes, tmp_path, capsys):
    lines = _predict(finished_run(), eyes, tmp_path, overlays=True)
    said, printed = (text.splitlines() for text in reversed(capsys.readouterr()))
    warning = lines[0]["warning"]
    assert warning.startswith("TRAINED ON DRAWINGS (demo)")
    assert f"WARNING: {warning}" in said
    assert printed[0] == f"WARNING: {warning}"
    table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    assert set(table["warning"]) == {warning}
    assert COLUMNS.index("warning") < COLUMNS.index("predicted")
    assert json.loads((tmp_path / "prediction.json").read_text())["warning"] == warning
    page = (tmp_path / "overlays" / "index.html").read_text()
    assert page.count(warning) == 1 + 10
    assert page.index(warning) < page.index("For research only")


def test_model_trained_on_photographs_has_no_warning(finished_run, eyes, tmp_path):
    run = real_run(finished_run(), tmp_path / "run")
    lines = _predict(run, eyes, tmp_path / "out", overlays=True)
    assert {line["warning"] for line in lines} == {""}
    assert "DRAWINGS" not in (tmp_path / "out" / "overlays" / "index.html").read_text()


def test_bad_files_are_rows_with_reasons(finished_run, eyes, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted(eyes.iterdir())[0].read_bytes()
    (folder / "good.jpg").write_bytes(good)
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("no photograph")
    (folder / "empty.png").touch()
    (folder / "folder.tif").mkdir()
    (folder / "folder.tif" / "within.jpg").write_bytes(good)
    os.mkfifo(folder / "pipe.jpg")
    Image.new("L", (10_001, 10_000)).save(folder / "bomb.png")
    Image.new("RGB", (300, 300), "white").save(folder / "white.png")
    (folder / "dangling.jpg").symlink_to("nowhere")
    os.link(folder / "good.jpg", os.fsencode(folder) + b"/\xff.jpg")
    lines = {Path(line["path"]).name: line for line in _predict(finished_run(), folder, tmp_path / "out")}
    results = {name: (line["status"], line["reason"]) for name, line in lines.items()}
    assert results.pop("white.png")[0] == "abstained"
    for name in ("good.jpg", "within.jpg", "\udcff.jpg"):
        assert results.pop(name) == ("graded", "")
    assert {status for status, _ in results.values()} == {"failed"}
    expected = {
        "truncated.jpg": "truncated",
        "text.jpg": "looks like text",
        "empty.png": "empty file",
        "folder.tif": "a folder, not a file",
        "pipe.jpg": "a pipe",
        "bomb.png": "too many pixels",
        "dangling.jpg": "not there",
    }
    assert set(results) == set(expected)
    for name, reason in expected.items():
        assert reason in results[name][1], name
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(lines)


def test_abstention_can_be_turned_off(finished_run, eyes, tmp_path):
    dark = np.asarray(Image.open(sorted(eyes.iterdir())[0])) // 5
    Image.fromarray(dark).save(tmp_path / "dark.png")
    (kept,) = _predict(finished_run(), tmp_path / "dark.png", tmp_path / "a")
    (graded,) = _predict(finished_run(), tmp_path / "dark.png", tmp_path / "b", abstain=False)
    assert (kept["status"], kept["predicted"]) == ("abstained", None)
    assert (graded["status"], graded["quality"], graded["reason"]) == (
        "graded",
        kept["quality"],
        kept["reason"],
    )
    assert graded["predicted"] is not None
    assert kept["quality"] != "good"


def test_photographs_are_referred_at_the_requested_sensitivity(finished_run, eyes, tmp_path):
    run = finished_run()
    plain, at = (_predict(run, eyes, tmp_path / str(s), sensitivity=s) for s in (None, 1.0))
    points = [load_model(run).calibration.point(each).threshold for each in (0.9, 1.0)]
    for lines, cut in zip((plain, at), points, strict=True):
        assert {line["threshold"] for line in lines} == {round(cut, 6)}
        assert [line["referable"] for line in lines] == [line["p_referable"] >= cut for line in lines]


def test_an_ensemble_and_views(finished_run, eyes, tmp_path):
    runs = finished_run(), finished_run("seed=1")
    work(compose("predict", checkpoint=runs, input=eyes, out=tmp_path / "both", device="cpu", workers=1))
    both = [json.loads(line) for line in (tmp_path / "both/predictions.jsonl").read_text().splitlines()]
    each = [_predict(run, eyes, tmp_path / str(i)) for i, run in enumerate(runs)]
    mean = [
        np.mean([one["probabilities"], other["probabilities"]], axis=0)
        for one, other in zip(*each, strict=True)
    ]
    np.testing.assert_allclose([line["probabilities"] for line in both], mean, atol=2e-6)
    assert both[0]["logits"] is None
    assert len(both[0]["provenance"]["checkpoints"]) == 2
    assert max(line["disagreement"] for line in both) > 0


def test_a_killed_job_resumes_to_the_same_files(finished_run, eyes, tmp_path, monkeypatch):
    run, paths = finished_run(), sorted(map(str, eyes.iterdir()))
    listed = [f"{path}\n".encode() for path in paths]
    command = [sys.executable, "-m", "drgrade.cli.predict", f"checkpoint={run}", "input=-", "device=cpu"]
    command += ["workers=1", "batch_size=2", f"out={tmp_path / 'killed'}"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | threads
    ) as job:
        assert job.stdin is not None
        job.stdin.write(b"".join(listed[:7]))
        job.stdin.flush()
        database, deadline = tmp_path / "killed" / DATABASE, time.monotonic() + 100
        while not (database.exists() and database.read_bytes().count(b'"sha256"') >= 6):
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "predictions.csv").exists()
    assert json.loads((tmp_path / "killed" / "prediction.json").read_text())["status"] == "unfinished"
    graded = []
    grade = Grader.grade
    monkeypatch.setattr(
        Grader, "grade", lambda self, pixels: graded.append(len(pixels)) or grade(self, pixels)
    )
    for out, before in (("killed", 6), ("whole", 0)):
        graded.clear()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"".join(listed))))
        _predict(run, "-", tmp_path / out, batch_size=2)
        assert sum(graded) == len(paths) - before
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"".join(listed))))
    with pytest.raises(ConfigError, match="standard input lists the same"):
        _predict(run, "-", tmp_path / "killed")


@pytest.mark.slow
def test_an_interrupted_job_prints_that_it_resumes(finished_run, eyes, tmp_path):
    """Ctrl-C also reaches the processes that decode; they end silently."""
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(eyes.iterdir()) * 3))
    command = [sys.executable, "-m", "drgrade.cli.predict", f"checkpoint={finished_run()}", "input=-"]
    command += ["device=cpu", "workers=2", "batch_size=2", f"out={tmp_path / 'out'}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        assert job.stdin is not None
        assert job.stderr is not None
        # 40 different paths: enough to start processes.
        for number in range(40):
            link = tmp_path / f"{number}.jpg"
            link.hardlink_to(sorted(eyes.iterdir())[number % 10])
            job.stdin.write(f"{link}\n")
        job.stdin.flush()
        database, deadline = tmp_path / "out" / DATABASE, time.monotonic() + 100
        while not (database.exists() and b'"sha256"' in database.read_bytes()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "Traceback" not in errors, errors
    assert errors.splitlines()[-2:] == [
        f"finished photographs are kept in {tmp_path / 'out'}; the same command resumes",
        "interrupted",
    ]


def test_another_job_in_the_folder_is_refused_or_overwritten(finished_run, eyes, tmp_path):
    run = finished_run()
    _predict(run, eyes, tmp_path)
    before = _files(tmp_path)
    with pytest.raises(ConfigError, match=r"another job.*tta was none and is flips"):
        _predict(run, eyes, tmp_path, tta="flips")
    with pytest.raises(ConfigError, match="other checkpoints"):
        _predict(finished_run("seed=1"), eyes, tmp_path)
    with pytest.raises(ConfigError, match="inputs were"):
        _predict(run, eyes.parent, tmp_path)
    assert _files(tmp_path) == before
    _predict(run, eyes, tmp_path, tta="flips", overwrite=True)
    assert _files(tmp_path) != before


def test_a_folder_with_other_files_is_refused(finished_run, eyes, tmp_path):
    """A run has a predictions.csv of its own."""
    run = finished_run()
    before = sorted(run.iterdir())
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="contains other files"):
            _predict(run, eyes, run, overwrite=overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        _predict(run, eyes, tmp_path / "file")
    assert sorted(run.iterdir()) == before


def test_the_same_command_uses_the_same_folder(finished_run, eyes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        work(compose("predict", checkpoint=finished_run(), input=eyes, device="cpu", workers=1))
    (folder,) = (tmp_path / "outputs" / "predictions").iterdir()
    assert folder.name.startswith("eyes-")
    printed = capsys.readouterr().out
    assert "10 photographs\n  10 graded: " in printed
    assert "10 photographs, 10 of them before" in printed
    assert "Not a medical device" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": []}, r"checkpoint=\[\] is not allowed"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": 0}, "workers=0"),
        ({"format": []}, r"format=\[\] is not allowed: list of csv, jsonl"),
        ({"input": "nowhere"}, "input=nowhere does not exist"),
        ({"input": "-", "out": None}, "name the output folder"),
        ({"sensitivity": 2.0}, "sensitivity=2.0"),
    ],
)
def test_invalid_settings_are_refused(finished_run, eyes, tmp_path, settings, message):
    given = {"checkpoint": finished_run(), "input": eyes, "out": tmp_path / "out", "device": "cpu"}
    with pytest.raises((ConfigError, DataError), match=message):
        work(compose("predict", **{**given, **settings}))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photographs_is_refused(finished_run, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no photographs were found"):
        _predict(finished_run(), tmp_path / "empty", tmp_path / "out")


def test_help_lists_the_settings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", "--help"])
    main()
    printed = capsys.readouterr().out
    assert printed.startswith("Grade photographs")
    for name in ("checkpoint=", "input=", "sensitivity=null", "tta=none", "overwrite=false"):
        assert f"  {name}" in printed
