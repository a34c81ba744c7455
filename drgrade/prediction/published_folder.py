"""Reading and checking of a published folder.

The folder may come from anybody, so it is data and never code (docs/security.md).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from drgrade.artefacts import leaves, read_json, refuse_interpolations, select, shortened, strip_private
from drgrade.errors import ConfigError, DataError
from drgrade.files import file_sha256, require_regular
from drgrade.models.calibration import Calibration
from drgrade.models.grading_model import check_model_settings, model_settings
from drgrade.renames import current
from drgrade.runs.run_dir import SEEN, checked_metrics

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, README, SEEN)
"""All files that a published folder may contain; :data:`SEEN` is optional."""

LIBRARY, FORMAT = "drgrade", 1

_PUBLISHED_SETTINGS = (
    "name",
    "method",
    "task",
    "seed",
    "init",
    "pretrain_on",
    "label_fraction",
    "fold",
    "folds",
    "encoder",
    "protocol",
    "augment",
    "optimizer",
    "schedule",
    "grading.task.head",
    "data.name",
    "data.image_size",
    "data.batch_size",
    "data.balanced",
    "photographs.image_size",
    "photographs.illumination",
    "photographs.max_pixels",
    "photographs.find_duplicates",
    "grading.datamodule.batch_size",
    "split.val_fraction",
    "split.disagreeing",
    "split.seed",
    "split.label_seed",
    "trainer.precision",
    "trainer.max_epochs",
    "trainer.max_steps",
)
"""Settings of a run that are published; all others are left out."""


def is_published(folder: Path) -> bool:
    """Return True if the folder has a ``config.json`` and no ``config.yaml`` of a run."""
    return (folder / CONFIG).is_file() and not (folder / "config.yaml").is_file()


def published_settings(cfg: DictConfig) -> dict[str, Any]:
    """Select the settings of a run that describe the model, without paths and names of people.

    Raises:
        ConfigError: If encoder or head are not part of drgrade, so that the folder could not be loaded.
    """
    kept = OmegaConf.create({})
    for setting in _PUBLISHED_SETTINGS:
        value = select(cfg, setting)
        if value is not None:
            OmegaConf.update(kept, setting, value)
    settings: dict[str, Any] = strip_private(OmegaConf.to_container(kept, resolve=True))
    try:
        for name, value in leaves(settings):
            if isinstance(value, float) and not math.isfinite(value):
                raise DataError(f"{name}={value} is not a finite number")
        check_model_settings(*model_settings(settings))
    except DataError as error:
        raise ConfigError(f"the run cannot be published, because it could not be loaded: {error}") from error
    return settings


def read_published(folder: Path) -> tuple[DictConfig, Mapping[str, Any], Calibration]:
    """Read and check ``config.json``, and the hash of the weights.

    Returns:
        The published part of the run's config, the run's ``metrics.json``, and its calibration.

    Raises:
        ConfigError: If drgrade has not published it, or a later version has.
        DataError: If it is damaged, incomplete, or would run foreign code.
    """
    record = read_published_config(folder)
    weights = folder / WEIGHTS
    if not require_regular(weights).is_file():
        raise DataError(f"{folder}: {WEIGHTS} is missing; download the folder again")
    if file_sha256(weights) != record["weights"].get("sha256"):
        raise DataError(f"{weights} does not have the hash that {CONFIG} states; download it again")
    calibration = Calibration.from_json(json.dumps(record["calibration"]))
    return OmegaConf.create(record["settings"]), record["metrics"], calibration


def read_published_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a published folder; all parts are present and safe to instantiate.

    Raises:
        ConfigError: If drgrade has not published it, or a later version has.
        DataError: If it is damaged, or would run foreign code.
    """
    path, repair = folder / CONFIG, "download the folder again"
    record = read_json(path, repair)
    if not isinstance(record, dict) or record.get("library_name") != LIBRARY:
        raise ConfigError(
            f"{folder} is not a model published by drgrade ({CONFIG} belongs to something else)"
        )
    if record.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} was published by drgrade {shortened(record.get('version'))} in format "
            f"{shortened(record.get('format'))}, "
            f"but this version reads format {FORMAT}: install that version"
        )
    for part in ("settings", "weights", "calibration", "metrics"):
        if not isinstance(record.get(part), dict):
            raise DataError(f"{path} is damaged (it has no {part}); {repair}")
    settings = record["settings"] = current(record["settings"])
    record["metrics"] = checked_metrics(record["metrics"], path, repair)
    try:
        refuse_interpolations(settings)
        check_model_settings(*model_settings(settings))
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    return record


def published_tensors(folder: Path) -> dict[str, Tensor]:
    """Load the tensors of encoder and head; raise DataError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{folder / WEIGHTS} is not a readable safetensors file ({error}); download it again"
        ) from error
