"""All loggers log the same curves."""

import csv
import os

import pytest

from drgrade.errors import ConfigError
from drgrade.settings import TrainSettings
from drgrade.training.build import instantiate
from drgrade.training.run import train

CURVES = {"train/loss", "val/loss", "val/qwk", "val/recall_0", "val/recall_4", "val/auroc_0", "test/qwk"}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield tmp_path / "netrc"
    os.environ.pop("WANDB_MODE", None)  # Lightning sets it for an offline run


@pytest.fixture
def logger(compose):
    return lambda: instantiate(compose("logger=wandb").logger)


def test_wandb_is_offline_without_a_login(logger):
    assert logger()._offline is True


def test_wandb_is_online_with_a_key(nobody, logger, monkeypatch):
    nobody.write_text("machine api.wandb.ai login user password secret\n")
    assert logger()._offline is False
    nobody.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert logger()._offline is False


def test_negative_number_of_photographs_is_refused():
    with pytest.raises(ConfigError, match="worst_photographs=-1"):
        TrainSettings.compose("logger=tensorboard", "logger.worst_photographs=-1")


def test_csv_logs_the_curves(compose, tmp_path):
    train(compose("logger=csv"))
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        assert set(next(csv.reader(file))) >= CURVES


def test_tensorboard_logs_curves_figures_and_status_of_a_resumed_run(compose, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(compose("logger=tensorboard", "trainer.max_epochs=1"))
    train(compose("logger=tensorboard", "logger.worst_photographs=2", f"resume={tmp_path / 'run'}"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert len({event.step for event in events.Scalars("train/loss")}) == 2
    figures = {
        f"{name}/{kind}" for name in ("val", "test") for kind in ("confusion", "roc", "precision_recall")
    }
    assert set(events.Tags()["images"]) == figures | {"test/worst"}
    (status,) = events.Tensors("status/text_summary")[-1].tensor_proto.string_val
    assert status == b"finished"
