"""Loading of a trained grading model from its folder.

The folder may come from anybody: nothing in it runs code, and no file that it names is opened
(docs/security.md).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from drgrade.artefacts import is_number, select, shortened
from drgrade.data.crops import check_illumination
from drgrade.data.fundus_check import Preparation
from drgrade.data.image_reader import MAX_PIXELS
from drgrade.errors import ConfigError, DataError
from drgrade.files import checkpoint_fault, require_regular
from drgrade.model_card.facts import drawings
from drgrade.models.calibration import Calibration
from drgrade.models.grading_model import (
    MAX_IMAGE_SIZE,
    GradingModel,
    build_model,
    check_model_settings,
    model_settings,
    without_weights,
)
from drgrade.prediction import published_folder
from drgrade.prediction.published_folder import is_published, published_tensors, read_published
from drgrade.runs.run_dir import CHECKPOINTS, CONFIG, read_finished, read_fitted


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained grading model with everything that prediction needs.

    Attributes:
        model: Maps normalised images to logits; in evaluation mode, on the CPU.
        preparation: Preparation of the photographs, as in training.
        calibration: Calibration on the validation photographs.
        config: Composed config of the run; of a published model the published part. It may come from anybody:
            instantiate nothing of it.
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
    def drawings(self) -> list[str]:
        """Names of the data sets of drawings that the model was trained on."""
        config = cast(dict[str, Any], OmegaConf.to_container(self.config))
        return drawings(config, self.record)

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

    @property
    def batch_size(self) -> int:
        """Photographs in a batch of the training, at most 4096."""
        value = select(self.config, "grading.datamodule.batch_size")
        if not isinstance(value, int) or not is_number(value, 1, 4096):
            raise DataError(f"{self.config_file}: grading.datamodule.batch_size={shortened(value)}")
        return value


def load_model(folder: Path) -> TrainedModel:
    """Load a trained grading model.

    Args:
        folder: Folder of a finished grading run, or a published folder (:mod:`drgrade.publishing`).

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        ConfigError: If the folder is neither.
        EncoderError: If the checkpoint does not fit the config, or has weights that are not finite.
        DataError: If a file is damaged, or its config describes anything but a model of drgrade.
    """
    published = is_published(folder)
    if published:
        cfg, record, calibration = read_published(folder)
        file, origin = folder / published_folder.CONFIG, folder / published_folder.WEIGHTS
    else:
        cfg, record = read_finished(folder)
        calibration, record = read_fitted(folder, record)
        file, origin = folder / CONFIG, checkpoint_file(folder, record)
    settings: Any = OmegaConf.to_container(cfg)
    try:
        preparation = read_preparation(settings)
        encoder, head = model_settings(settings)
        if not published:
            encoder = without_weights(encoder)  # the checkpoint replaces them
        check_model_settings(encoder, head)
    except DataError as error:
        raise DataError(f"{file} is refused: {error}") from error
    tensors = published_tensors(folder) if published else checkpoint_tensors(folder, record)
    model = build_model(encoder, head, tensors, origin)
    return TrainedModel(model, preparation, calibration, cfg, record, folder)


def read_preparation(settings: Mapping[str, Any]) -> Preparation:
    """Read how a run prepared its photographs; ``max_pixels`` never exceeds the limit of this version.

    Raises:
        DataError: If a setting is missing or out of range.
    """
    node = settings.get("photographs")
    values = node if isinstance(node, Mapping) else {}
    missing = [name for name in ("image_size", "max_pixels", "illumination") if name not in values]
    if missing:
        raise DataError(f"it is damaged: its photographs have no {', '.join(missing)}")
    bounds = {"image_size": (8, MAX_IMAGE_SIZE), "max_pixels": (1, 1e18)}
    for name, (low, high) in bounds.items():
        value = values.get(name)
        if not isinstance(value, int) or not is_number(value, low, high):
            raise DataError(f"its photographs have {name}={shortened(value)}, which is not allowed")
    try:
        check_illumination(values.get("illumination"))  # type: ignore[arg-type]
    except (ConfigError, TypeError):
        light = shortened(values.get("illumination"))
        raise DataError(f"its photographs have illumination={light}, which is not allowed") from None
    max_pixels = min(int(values["max_pixels"]), MAX_PIXELS)
    return Preparation(int(values["image_size"]), max_pixels, str(values["illumination"]))


def checkpoint_file(folder: Path, record: Mapping[str, Any]) -> Path:
    """Return the path of the checkpoint that a run has selected, according to its ``metrics.json``.

    Raises:
        DataError: If it is not a file in ``checkpoints``.
    """
    name = str(record["checkpoint"])
    if not re.fullmatch(r"[\w-][\w.-]{0,50}\.ckpt", name):
        raise DataError(f"{folder}: checkpoint={shortened(name)} is not the name of a checkpoint")
    return folder / CHECKPOINTS / name


def checkpoint_tensors(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Load the tensors of the selected checkpoint by their names in the task.

    Raises:
        ConfigError: If the checkpoint is missing.
        DataError: If it is damaged.
    """
    path = checkpoint_file(folder, record)
    if not require_regular(path).is_file():
        raise ConfigError(f"checkpoint={folder}: {path.relative_to(folder)} is missing")
    if fault := checkpoint_fault(path):
        raise DataError(f"{path} is damaged ({fault}); train again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict(content["state_dict"])
    except Exception as error:  # a damaged archive raises errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged ({reason}); train again") from error
    bad = sorted(str(name) for name, tensor in tensors.items() if not _is_whole(name, tensor))
    if bad:
        raise DataError(f"{path} is damaged ({', '.join(bad[:3])} is not a stored tensor); train again")
    return tensors


def _is_whole(name: object, tensor: object) -> bool:
    """Return True for a dense tensor all of whose values are in the file."""
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )
