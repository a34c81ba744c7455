"""Loads a trained run from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from drgrade.data.preparation import Preparation
from drgrade.errors import ConfigError, DataError
from drgrade.models.calibration import Calibration
from drgrade.models.grading_model import GradingModel
from drgrade.prediction.published import CONFIG as PUBLISHED_CONFIG
from drgrade.prediction.published import WEIGHTS, is_published, read_published
from drgrade.runs.run_dir import CONFIG, read_calibration, read_finished
from drgrade.training.build import instantiate, without_weights


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained grader.

    Attributes:
        model: In evaluation mode, on the CPU; normalised images to logits.
        preparation: How its photographs were prepared.
        calibration: Fitted on its validation photographs.
        config: The run's composed config; of a published grader what was published of it.
        record: The run's ``metrics.json``.
        folder: Where it was loaded from.
    """

    model: GradingModel
    preparation: Preparation
    calibration: Calibration
    config: DictConfig
    record: Mapping[str, Any]
    folder: Path

    @property
    def weights_file(self) -> Path:
        """The file that its weights were read from."""
        if is_published(self.folder):
            return self.folder / WEIGHTS
        return self.folder / "checkpoints" / str(self.record["checkpoint"])

    @property
    def config_file(self) -> Path:
        """The file that its settings were read from."""
        return self.folder / (PUBLISHED_CONFIG if is_published(self.folder) else CONFIG)


def load_trained(folder: Path) -> Trained:
    """Load a trained grader.

    Args:
        folder: Of a finished grading run, or a published one (:mod:`drgrade.publishing`).

    Returns:
        Model, preparation, calibration.

    Raises:
        ConfigError: If the folder holds neither.
        EncoderError: If the checkpoint does not fit the config.
        DataError: If a file of it is damaged.
    """
    if is_published(folder):
        return _load_published(folder)
    cfg, record = read_finished(folder)
    model = untrained(cfg)
    model.load(checkpoint_tensors(folder, record), folder / "checkpoints" / str(record["checkpoint"]))
    calibration = read_calibration(folder)
    return Trained(model.eval(), preparation_of(cfg), calibration, cfg, record, folder)


def _load_published(folder: Path) -> Trained:
    found = read_published(folder)
    model = untrained(found.config)
    model.load(found.tensors, folder / WEIGHTS)
    preparation = preparation_of(found.config)
    return Trained(model.eval(), preparation, found.calibration, found.config, found.record, folder)


def checkpoint_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the checkpoint that a run has chosen.

    Args:
        folder: The run's.
        record: Its ``metrics.json``.

    Returns:
        By their names in the task, encoder and head among others.

    Raises:
        ConfigError: If it is not there.
        DataError: If it is damaged.
    """
    path = folder / "checkpoints" / str(record["checkpoint"])
    if not path.is_file():
        raise ConfigError(f"checkpoint={folder}: {path.relative_to(folder)} is not there")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["state_dict"])
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged ({reason}); train again") from error


def untrained(cfg: DictConfig) -> GradingModel:
    """Make the model of a run, with weights that mean nothing yet.

    Args:
        cfg: The run's config; it is left as it is.

    Returns:
        The model.
    """
    encoder = instantiate(without_weights(cfg.encoder))
    head = instantiate(cfg.protocol.get("probe") or cfg.grading.task.head)(encoder.num_features)
    return GradingModel(encoder, head)


def preparation_of(cfg: DictConfig) -> Preparation:
    """How the photographs of a run were prepared.

    Args:
        cfg: The run's config.
    """
    given = cfg.photographs
    return Preparation(int(given.image_size), str(given.illumination), int(given.max_pixels))
