"""Loading of a trained grading model from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from drgrade.data.photographs import Photographs
from drgrade.data.preparation import Preparation
from drgrade.errors import ConfigError, DataError
from drgrade.files import require_regular
from drgrade.models.calibration import Calibration
from drgrade.models.grading_model import GradingModel
from drgrade.prediction import published_folder
from drgrade.prediction.published_folder import is_published, read_published
from drgrade.runs.run_dir import CONFIG, read_calibration, read_finished
from drgrade.training.build import instantiate, make_photographs, without_weights


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained grading model with everything that prediction needs.

    Attributes:
        model: Maps normalised images to logits; in evaluation mode, on the CPU.
        preparation: Preparation of the photographs, as in training.
        calibration: Calibration on the validation photographs.
        config: Composed config of the run; of a published model the published part.
        record: Content of the run's ``metrics.json``.
        folder: Folder it was loaded from.
    """

    model: GradingModel
    preparation: Preparation
    calibration: Calibration
    config: DictConfig
    record: Mapping[str, Any]
    folder: Path

    @property
    def weights_file(self) -> Path:
        """File with the weights."""
        if is_published(self.folder):
            return self.folder / published_folder.WEIGHTS
        return checkpoint_file(self.folder, self.record)

    @property
    def config_file(self) -> Path:
        """File with the settings."""
        return self.folder / (published_folder.CONFIG if is_published(self.folder) else CONFIG)


def load_model(folder: Path) -> TrainedModel:
    """Load a trained grading model.

    Args:
        folder: Folder of a finished grading run, or a published folder (:mod:`drgrade.publishing`).

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        ConfigError: If the folder is neither.
        EncoderError: If the checkpoint does not fit the config.
        DataError: If a file is damaged.
    """
    tensors: Mapping[str, Tensor]
    if is_published(folder):
        cfg, record, calibration, tensors = read_published(folder)
        origin = folder / published_folder.WEIGHTS
    else:
        cfg, record = read_finished(folder)
        calibration = read_calibration(folder)
        tensors, origin = checkpoint_tensors(folder, record), checkpoint_file(folder, record)
    model = untrained_model(cfg)
    model.load(tensors, origin)
    settings = cfg.photographs
    preparation = Preparation(int(settings.image_size), int(settings.max_pixels), str(settings.illumination))
    return TrainedModel(model.eval(), preparation, calibration, cfg, record, folder)


def checkpoint_file(folder: Path, record: Mapping[str, Any]) -> Path:
    """Return the path of the checkpoint that a run has selected, according to its ``metrics.json``."""
    return folder / "checkpoints" / str(record["checkpoint"])


def checkpoint_tensors(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Load the tensors of the selected checkpoint by their names in the task.

    Raises:
        ConfigError: If the checkpoint is missing.
        DataError: If it is damaged.
    """
    path = checkpoint_file(folder, record)
    if not require_regular(path).is_file():
        raise ConfigError(f"checkpoint={folder}: {path.relative_to(folder)} is missing")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["state_dict"])
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged ({reason}); train again") from error


def untrained_model(cfg: DictConfig) -> GradingModel:
    """Build the model of a run with random weights; no weights file is read."""
    encoder = instantiate(without_weights(cfg.encoder))
    head = instantiate(cfg.protocol.get("probe") or cfg.grading.task.head)(encoder.num_features)
    return GradingModel(encoder, head)


def run_photographs(
    cfg: DictConfig,
    record: Mapping[str, Any],
    folder: Path,
    stores: Path | str | None = None,
    download: bool = False,
) -> Photographs:
    """Return the photographs of a run with its split.

    Args:
        cfg: Config of the run; it is not changed.
        record: Content of its ``metrics.json``.
        folder: Run folder, for the error message.
        stores: Folder of the prepared photographs; None for that of the run.
        download: Download the data set if it is missing.

    Raises:
        DataError: If photographs or split are not those of the run.
    """
    cfg = cfg.copy()
    if stores is not None:
        cfg.photographs.folder = str(stores)
    if download:
        cfg.photographs.download = True
    photographs = make_photographs(cfg)
    for name, now in (("data_hash", photographs.sha256), ("split_hash", photographs.split_hash)):
        if now != record[name]:
            raise DataError(
                f"{name} is {now[:12]}, but the run has {record[name][:12]}: the photographs, their grades "
                f"or their split are not those of {folder}"
            )
    return photographs
