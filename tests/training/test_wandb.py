"""Runs in W&B, read back from the offline run files."""

import json
import math
import socket
import time
from pathlib import Path

import hydra
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import confusion_matrix
from test_loggers import CURVES, nobody  # noqa: F401 - a fixture
from tiny_run import REPOSITORY
from wandb_files import offline_runs

from drgrade.data.datamodules import GradingDataModule
from drgrade.errors import DrgradeError
from drgrade.tasks import GradingTask, PretextTask
from drgrade.training.run import train
from drgrade.training.tracking.tracker import without_paths


def table(run, key):
    return json.loads((run.folder / "files" / run.summary[f"{key}.path"]).read_text())


@pytest.fixture
def finished(finished_run):
    """Folder, metrics and log of one finished run."""
    folder = finished_run("logger=wandb", "name=trial", "label_fraction=0.5", "logger.tags=[mine]")
    (run,) = offline_runs(folder)
    return folder, json.loads((folder / "metrics.json").read_text()), run


def test_wandb_run_has_name_and_tags(finished):
    folder, metrics, run = finished
    assert (run.run.display_name, run.run.run_group, run.run.job_type) == ("trial", "", "grading")
    assert run.run.project == "drgrade"
    tags = {"densenet121", "demo", "published", "init=random", "50%", "fold=0", "scale=demo", "mine"}
    assert set(run.run.tags) == tags
    cfg = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert {name: run.config[name] for name in cfg} == without_paths(cfg)
    for name in ("data_hash", "split_hash"):
        assert run.config[name] == run.summary[name] == metrics[name]
    assert run.exit_code == 0


def test_wandb_logs_the_curves(finished):
    assert set().union(*finished[2].history) >= CURVES


def test_wandb_summary_has_best_and_final_metrics(finished):
    _, metrics, run = finished
    for name, best, where in (
        ("val/qwk", max, "max"),
        ("val/accuracy", max, "max"),
        ("val/auroc", max, "max"),
        ("val/mae", min, "min"),
        ("val/loss", min, "min"),
        ("train/loss", min, "min"),
    ):
        assert run.summary[name] == {where: pytest.approx(best(run.curve(name)))}
        assert run.metrics[name].step_metric == "epoch"
    for name, value in metrics.items():
        key = f"final/{name}" if name.startswith(("train/", "val/")) else name
        assert run.summary[key] == value
    assert math.isfinite(run.summary["test/qwk"])


def test_wandb_logs_confusion_and_curves(finished):
    folder, _, run = finished
    predictions = pd.read_csv(folder / "predictions.csv")
    cells = table(run, "test/confusion_table")["data"]
    want = confusion_matrix(predictions["grade"], predictions["predicted"], labels=range(5))
    assert {(int(true), int(called)): count for true, called, count in cells} == {
        (true, called): want[true, called] for true in range(5) for called in range(5)
    }
    grades = {f"grade {grade}" for grade in predictions["grade"].unique()}
    for key in ("test/roc_table", "test/precision_recall_table"):
        assert {row[0] for row in table(run, key)["data"]} == grades
    assert table(run, "val/confusion_table")["data"]
    assert not any("worst" in name for name in run.summary)  # patients' photographs stay here


def test_wandb_logs_the_worst_photographs_on_request(compose, tmp_path):
    train(compose("logger=wandb", "logger.worst_photographs=3"))

    (run,) = offline_runs(tmp_path / "run")
    logged = json.loads(run.artifacts["test/worst.table.json"].read_text())
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    table["distance"] = (table["predicted"] - table["grade"]).abs()
    table["probability"] = [row[f"p{int(row['grade'])}"] for _, row in table.iterrows()]
    want = table[table["distance"] > 0].sort_values(["distance", "probability"], ascending=[False, True])
    column = logged["columns"].index("image_id")
    assert [row[column] for row in logged["data"]] == want["image_id"].tolist()[:3]
    photographs = [row[logged["columns"].index("photograph")] for row in logged["data"]]
    assert {Image.open(run.artifacts[each["path"]]).size for each in photographs} == {(32, 32)}
    assert all(path.is_relative_to(tmp_path / "run") for path in run.artifacts.values())


def test_cell_and_its_pretraining_are_two_runs_of_a_group(compose, tmp_path):
    metrics = train(compose("logger=wandb", "init=ssl", "sweep=table", run="init-ssl_fold-0"))

    (grading,) = offline_runs(tmp_path / "init-ssl_fold-0")
    (folder,) = [path.parent for path in (tmp_path / "encoders").glob("*/encoder.json")]
    (pretext,) = offline_runs(folder)
    assert grading.run.run_group == pretext.run.run_group == "table"
    assert (grading.run.job_type, pretext.run.job_type) == ("grading", "pretext")
    assert (grading.run.display_name, pretext.run.display_name) == ("init-ssl_fold-0", folder.name)
    assert "init=ssl" in grading.run.tags
    assert not {"published", "100%", "fold=0"} & set(pretext.run.tags)  # one encoder serves all of them
    assert grading.config["encoder_hash"] == pretext.summary["encoder_hash"] == metrics["encoder_hash"]
    assert pretext.curve("train/accuracy")
    assert (grading.exit_code, pretext.exit_code) == (0, 0)


def test_resumed_run_is_the_same_run(compose, tmp_path):
    train(compose("logger=wandb", "trainer.max_epochs=1"))
    train(compose("logger=wandb", f"resume={tmp_path / 'run'}"))

    first, second = offline_runs(tmp_path / "run")
    assert first.run.run_id == second.run.run_id
    assert first.curve("train/loss") != second.curve("train/loss")
    assert [row["epoch"] for row in second.history if "train/loss" in row] == [1]


def test_restarted_run_is_another_wandb_run(compose, tmp_path):
    for _ in range(2):
        train(compose("logger=wandb", "trainer.max_steps=1"))

    first, second = offline_runs(tmp_path / "run")
    assert first.run.run_id != second.run.run_id


def test_failed_wandb_run_is_resumed(compose, tmp_path, monkeypatch):
    def fail(*_):
        raise DrgradeError("no more disk")

    with monkeypatch.context() as broken:
        broken.setattr(GradingDataModule, "test_dataloader", fail)
        with pytest.raises(DrgradeError):
            train(compose("logger=wandb", "resume=auto"))
    train(compose("logger=wandb", "resume=auto"))

    failed, mended = offline_runs(tmp_path / "run")
    assert (failed.exit_code, mended.exit_code) == (1, 0)
    assert (failed.summary["status"], failed.summary["error"]) == ("failed", "DrgradeError: no more disk")
    assert failed.run.run_id == mended.run.run_id
    assert mended.summary["status"] == "finished"


def test_interrupted_wandb_run_is_not_finished(compose, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(GradingTask, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(compose("logger=wandb"))

    (run,) = offline_runs(tmp_path / "run")
    assert (run.exit_code, run.summary["status"]) == (1, "interrupted")


def test_failed_pretraining_fails_its_wandb_run(compose, tmp_path, monkeypatch):
    def fail(*_):
        raise DrgradeError("diverged")

    monkeypatch.setattr(PretextTask, "training_step", fail)
    with pytest.raises(DrgradeError):
        train(compose("logger=wandb", "init=ssl"))

    (folder,) = {path.parent for path in (tmp_path / "encoders").glob("*/wandb")}
    (run,) = offline_runs(folder)
    assert (run.exit_code, run.run.job_type) == (1, "pretext")
    assert not offline_runs(tmp_path / "run")


def test_wandb_run_contains_no_remote_path_or_host(finished):
    folder, _, run = finished
    uploaded = [path.read_text() for path in (run.folder / "files").rglob("*") if path.is_file()]
    sent = "".join([*uploaded, *map(str, (run.run, run.config, run.summary))])
    for private in (folder.parent, Path.home(), REPOSITORY, "git@", "github.com"):
        assert str(private) not in sent, private
    assert run.run.host == "not recorded"
    assert not (run.folder / "files" / "wandb-metadata.json").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/my eyes/a.jpg", ".../a.jpg"),
        ("DataError: /home/alice/a.jpg: cannot be read", "DataError: .../a.jpg: cannot be read"),
        ("init=~/runs/b", "init=.../b"),
        ("https://alice:key@example.org/a/b", "https://example.org/a/b"),
        ("cuda:0, 1/2 of it, a/b", "cuda:0, 1/2 of it, a/b"),
        ("test/qwk", "test/qwk"),
    ],
)
def test_absolute_paths_and_users_are_dropped(text, shown):
    assert without_paths({"a": [text]}) == {"a": [shown]}


def test_run_is_kept_offline_if_the_server_cannot_be_reached(compose, tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        for port in (1, silent.getsockname()[1]):
            monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
            logger = hydra.utils.instantiate(compose("logger=wandb").logger)
            start = time.monotonic()
            logger.log_hyperparams({"seed": 1})
            assert time.monotonic() - start < 20
            logger.finish_run("finished", {})
            assert "W&B cannot be reached" in capsys.readouterr().err
    assert len(offline_runs(tmp_path / "run")) == 2
