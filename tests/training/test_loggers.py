"""Loggers: W&B offline when nobody is logged in, and nothing imported that is not used."""

import os
import subprocess
import sys

import pytest

from drgrade.training.loggers import wandb_logger
from drgrade.training.run import train


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_is_offline_when_nobody_is_logged_in(nobody, tmp_path):
    assert wandb_logger(str(tmp_path))._offline is True


def test_wandb_is_online_with_a_key(nobody, tmp_path, monkeypatch):
    nobody.write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_logger(str(tmp_path))._offline is False
    nobody.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_logger(str(tmp_path))._offline is False


def test_an_offline_run_is_written(nobody, compose, tmp_path):
    train(compose("logger=wandb", "trainer.max_steps=1"))
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(run.glob("*.wandb")).stat().st_size > 0


def test_csv_has_the_curves(compose, tmp_path):
    train(compose("logger=csv"))
    text = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "train/loss" in text
    assert "val/qwk" in text


def test_tensorboard_has_the_curves(compose, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(compose("logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"train/loss", "val/qwk", "test/qwk"} <= set(events.Tags()["scalars"])


def test_a_run_imports_what_it_uses(command, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print('LOADED', *(name for name in ('wandb', 'sklearn', 'tensorboard') if name in sys.modules))\n"
    )
    arguments = command("logger=csv", "trainer.max_steps=1", "augment=none")[1:]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
