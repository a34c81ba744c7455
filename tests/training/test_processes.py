"""Runs of two processes give the results of one. Each test starts `python` as a user would."""

import filecmp
import json
import subprocess
import sys

import pandas as pd
import pytest
from wandb_files import offline_runs

from drgrade.training.run import train


def call(command, folder):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def evaluate(tmp_path):
    def run(name, *more):
        command = [
            sys.executable,
            "-m",
            "drgrade.cli.evaluate",
            f"checkpoint={tmp_path / 'run'}",
            "own_run=true",
        ]
        call([*command, f"paths.run={tmp_path / name}", f"paths.outputs={tmp_path}", *more], tmp_path)
        return tmp_path / name

    return run


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_metrics(compose, tmp_path, evaluate):
    train(compose("+experiment=msssl_100pct", "init=random", "trainer.precision=64-true", "folds=4"))
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert len(predictions) % 2 == 1
    # Batches differ in size, so that single precision differs in its last bits; double precision shows all
    # else.
    one = evaluate("one", "trainer=cpu", "trainer.precision=64-true")
    two = evaluate("two", "trainer=ddp_cpu", "trainer.precision=64-true")
    assert filecmp.cmp(one / "predictions.csv", two / "predictions.csv", shallow=False)
    assert filecmp.cmp(one / "predictions.csv", tmp_path / "run" / "predictions.csv", shallow=False)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name


@pytest.mark.slow
def test_each_cell_of_a_ddp_sweep_runs_once(command, tmp_path):
    settings = ("init=random", "trainer=ddp_cpu", "trainer.max_steps=1", "label_fraction=0.5,1.0")
    output = call(command(*settings, f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"), tmp_path)
    assert output.count("  finished  ") == 2
    for fraction in ("0.5", "1.0"):
        cell = tmp_path / "sweep" / f"init-random_label_fraction-{fraction}_fold-0_seed-0"
        assert json.loads((cell / "metrics.json").read_text())["label_fraction"] == float(fraction)
        assert json.loads((cell / "provenance.json").read_text())["devices"] == 2
        assert (cell / "output.log").read_text().count("finished:") == 1


def test_ddp_run_pretrains_trains_tests_and_logs_once(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = ("+experiment=rotation_100pct", "trainer=ddp_cpu", "logger=wandb")
    output = call(command(*settings, f"paths.run={tmp_path / 'run'}"), tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert output.count("pre-training for") == 1
    predictions, split = (pd.read_csv(tmp_path / "run" / f"{name}.csv") for name in ("predictions", "split"))
    assert sorted(predictions["image_id"]) == sorted(split["image_id"][split["subset"] == "test"])
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["devices"] == 2
    (run,) = offline_runs(tmp_path / "run")
    assert (run.exit_code, len(run.curve("train/loss"))) == (0, 2)
