"""Loads a trained run from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from drgrade.errors import ConfigError
from drgrade.inference.preparation import Preparation
from drgrade.models.calibration import Calibration
from drgrade.models.grading import GradingModel
from drgrade.training.calibrating import read_calibration
from drgrade.training.folder import CONFIG, METRICS, read_metrics
from drgrade.training.setup import grading_task, make, weights_files


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained grader.

    Attributes:
        model: In evaluation mode, on the CPU; normalised images to logits.
        preparation: How its photographs were prepared.
        calibration: Fitted on its validation photographs.
        config: The run's composed config.
        record: The run's ``metrics.json``.
        folder: Where it was loaded from.
    """

    model: GradingModel
    preparation: Preparation
    calibration: Calibration
    config: DictConfig
    record: Mapping[str, Any]
    folder: Path


def load_trained(folder: Path) -> Trained:
    """Load a trained grader.

    Args:
        folder: Of a finished grading run.

    Returns:
        Model, preparation, calibration.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        EncoderError: If the checkpoint does not fit the config.
        DataError: If a file of it is damaged.
    """
    cfg, record = read_finished(folder)
    checkpoint = folder / "checkpoints" / str(record["checkpoint"])
    if not checkpoint.is_file():
        raise ConfigError(f"checkpoint={folder}: {checkpoint.relative_to(folder)} is not there")
    model = untrained(cfg)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load(content["state_dict"], checkpoint)
    calibration = read_calibration(folder)
    return Trained(model.eval(), preparation_of(cfg), calibration, cfg, record, folder)


def read_finished(folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Read config and metrics of a finished grading run.

    Args:
        folder: The run's folder.

    Returns:
        The config, and what ``metrics.json`` holds.

    Raises:
        ConfigError: If there is no finished grading run.
        DataError: If its ``metrics.json`` is damaged.
    """
    if not (folder / CONFIG).is_file() or not (folder / METRICS).is_file():
        raise ConfigError(f"checkpoint={folder} is not a run's folder (no {CONFIG} or {METRICS} in it)")
    record = read_metrics(folder)
    if record.get("status") != "finished" or "checkpoint" not in record or "evaluated" in record:
        raise ConfigError(
            f"checkpoint={folder} is not a finished grading run (status: {record.get('status')})"
        )
    cfg = OmegaConf.load(folder / CONFIG)
    assert isinstance(cfg, DictConfig)
    return cfg, record


def untrained(cfg: DictConfig) -> GradingModel:
    """Make the model of a run, with weights that mean nothing yet.

    Args:
        cfg: The run's config; it is left as it is.

    Returns:
        The model.
    """
    cfg = cfg.copy()
    cfg.init = "random"
    cfg.compile = False  # one photograph at a time would be compiled for each number of them
    for setting in weights_files(cfg.encoder):  # the files need not be there any more
        OmegaConf.update(cfg.encoder, setting, None)
    task = grading_task(cfg, make(cfg.encoder))
    return GradingModel(task.encoder, task.head)


def preparation_of(cfg: DictConfig) -> Preparation:
    """How the photographs of a run were prepared.

    Args:
        cfg: The run's config.
    """
    given = cfg.photographs
    return Preparation(int(given.image_size), str(given.illumination), int(given.max_pixels))
