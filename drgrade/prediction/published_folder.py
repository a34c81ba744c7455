"""Reading and checking of a published folder.

The folder may come from anybody, so it is data and never code: its settings may instantiate only drgrade's
own encoders and heads, its tensors are safetensors, and values are not resolved against the environment.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from drgrade.config import ROLES
from drgrade.errors import ConfigError, DataError
from drgrade.files import file_sha256
from drgrade.models.calibration import Calibration
from drgrade.models.encoder import Encoder
from drgrade.models.heads import Head
from drgrade.renames import current
from drgrade.runs.run_dir import SEEN
from drgrade.runs.settings import PUBLIC_TEXT, strip_private

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, README, SEEN)
"""All files that a published folder may contain; :data:`SEEN` is optional."""

STORES = "outputs/stores"
"""Folder for prepared photographs of a published model, as in ``conf/train.yaml``."""

LIBRARY, FORMAT = "drgrade", 1

_WEIGHT_SETTINGS = (
    "pretrained",
    "weights",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)
"""Settings of timm that download or read weights; they must be empty."""

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
        value = OmegaConf.select(cfg, setting)
        if value is not None:
            OmegaConf.update(kept, setting, value)
    settings: dict[str, Any] = strip_private(OmegaConf.to_container(kept, resolve=True))
    try:
        check_settings(settings)
    except DataError as error:
        raise ConfigError(f"the run cannot be published, because it could not be loaded: {error}") from error
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise DataError if published settings instantiate anything but an encoder and a head of drgrade."""
    probe = settings["protocol"].get("probe")
    for name, node, kind in (
        ("encoder", settings["encoder"], Encoder),
        ("head", probe or settings["grading"]["task"]["head"], Head),
    ):
        if not _is_own_class(node["_target_"], kind):
            raise DataError(f"its {name} is {node['_target_']}, which is not in drgrade.models")
        for setting, value in _leaves(node):
            if not _is_harmless(setting, value):
                raise DataError(f"its {name} has {setting}={value!r}, which is not allowed")


def _is_own_class(target: object, *kinds: type) -> bool:
    """Return True for a class of ``drgrade.models`` of one of these kinds."""
    if not re.fullmatch(r"drgrade\.models(\.\w+)+", str(target)):
        return False
    try:
        return issubclass(get_class(str(target)), kinds)
    except (ImportError, ValueError, TypeError):
        return False


def _is_harmless(setting: str, value: object) -> bool:
    """Return True if a setting of an encoder or head runs no code, reads no file and downloads nothing."""
    if setting == "_target_":
        return _is_own_class(value, Encoder, Head)
    if setting.startswith("_"):
        return (setting, value) == ("_partial_", True)
    if setting in _WEIGHT_SETTINGS:
        return not value
    return not isinstance(value, str) or bool(PUBLIC_TEXT.fullmatch(value))


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, str(key))
    elif isinstance(node, list):
        for item in node:
            yield from _leaves(item, name)
    else:
        yield name, node


def read_published(folder: Path) -> tuple[DictConfig, dict[str, Any], Calibration, dict[str, Tensor]]:
    """Read and check a published folder with ``config.json`` and ``model.safetensors``.

    Returns:
        The published part of the run's config, the run's ``metrics.json``, its calibration, and the tensors
        of encoder and head.

    Raises:
        ConfigError: If drgrade has not published it, or a later version has.
        DataError: If it is damaged, incomplete, or would run foreign code.
    """
    record = read_published_config(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise DataError(f"{folder}: {WEIGHTS} is missing; download the folder again")
    if file_sha256(weights) != record["weights"]["sha256"]:
        raise DataError(f"{weights} does not have the hash that {CONFIG} states; download it again")
    config = OmegaConf.create(record["settings"])
    config.photographs = {
        "_target_": f"{__name__}.{refuse_photographs.__name__}",
        **config.photographs,
        "folder": STORES,
    }
    config.data.update({role: [] for role in ROLES})
    calibration = Calibration.from_json(json.dumps(record["calibration"]))
    return config, record["metrics"], calibration, _load_tensors(weights)


def refuse_photographs(**settings: object) -> NoReturn:
    """Raise DataError; this function replaces the photographs in the config of a published model."""
    raise DataError(
        "a published model does not include its photographs and their split; name a data set with data=NAME"
    )


def read_published_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a published folder; all parts are present and safe to instantiate.

    Raises:
        ConfigError: If drgrade has not published it, or a later version has.
        DataError: If it is damaged, or would run foreign code.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); download the folder again") from error
    if not isinstance(record, dict) or record.get("library_name") != LIBRARY:
        raise ConfigError(
            f"{folder} is not a model published by drgrade ({CONFIG} belongs to something else)"
        )
    if record.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} was published by drgrade {record.get('version')} in format {record.get('format')}, "
            f"but this version reads format {FORMAT}: install that version"
        )
    try:
        record["settings"] = current(record["settings"])
        check_settings(record["settings"])
        for part, name in (("weights", "sha256"), ("calibration", "points"), ("metrics", "status")):
            record[part][name]
        for name in ("image_size", "illumination", "max_pixels"):
            record["settings"]["photographs"][name]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); download the folder again") from error
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    return record


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file ({error}); download it again") from error
