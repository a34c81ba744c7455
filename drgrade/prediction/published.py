"""A published folder: what it holds, what it must not hold, and what of it is believed.

It comes from anywhere, so its settings make nothing but drgrade's own encoders and heads, and its tensors are
safetensors: loading one runs no code of whoever wrote it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from drgrade.runs.run_dir import SEEN
from drgrade.runs.settings import PUBLIC_TEXT, strip_private

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, README, SEEN)
"""Every file that a published folder may have; :data:`SEEN` only if its publisher wanted it."""

STORES = "outputs/stores"
"""Where photographs are prepared that a published grader is to look at, as in ``conf/train.yaml``."""

LIBRARY, FORMAT = "drgrade", 1


_OTHER_WEIGHTS = (
    "pretrained",
    "weights",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)
"""Settings of timm that would fetch or read weights; those of the folder replace them all."""

_KEPT = (
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
"""Settings of a run that are published: a list of what may go out, not of what must stay."""


@dataclass(frozen=True, eq=False)
class Published:
    """What a published folder holds.

    Attributes:
        config: The settings that were published of the run's config.
        record: Its ``metrics.json``.
        calibration: Its calibration.
        tensors: Of encoder and head.
    """

    config: DictConfig
    record: Mapping[str, Any]
    calibration: Calibration
    tensors: Mapping[str, Tensor]


def is_published(folder: Path) -> bool:
    """Whether a folder looks like a published one: it has ``config.json`` and no run's ``config.yaml``.

    Args:
        folder: Any folder.
    """
    return (folder / CONFIG).is_file() and not (folder / "config.yaml").is_file()


def published_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of a run that say what the model is, without places and names of people.

    Args:
        cfg: The run's config.

    Returns:
        Nested, as the config; files of weights that training began with are null.

    Raises:
        ConfigError: If encoder or head are not drgrade's, so that nobody could load them.
    """
    kept = OmegaConf.create({})
    for setting in _KEPT:
        value = OmegaConf.select(cfg, setting)
        if value is not None:
            OmegaConf.update(kept, setting, value)
    settings: dict[str, Any] = strip_private(OmegaConf.to_container(kept, resolve=True))
    try:
        check_settings(settings)
    except DataError as error:
        raise ConfigError(f"it cannot be published, as nobody could load it: {error}") from error
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that would make anything but an encoder and a head of drgrade.

    Args:
        settings: As :func:`published_settings` gives them.

    Raises:
        DataError: Naming what is refused.
    """
    probe = settings["protocol"].get("probe")
    for name, node, kind in (
        ("encoder", settings["encoder"], Encoder),
        ("head", probe or settings["grading"]["task"]["head"], Head),
    ):
        if not _is_own(node["_target_"], kind):
            raise DataError(f"its {name} is {node['_target_']}, which is none of drgrade.models")
        for setting, value in _leaves(node):
            if not _is_harmless(setting, value):
                raise DataError(f"its {name} has {setting}={value!r}, which no setting of a model is")


def _is_own(target: object, *kinds: type) -> bool:
    if not re.fullmatch(r"drgrade\.models(\.\w+)+", str(target)):
        return False
    try:
        return issubclass(get_class(str(target)), kinds)
    except (ImportError, ValueError, TypeError):
        return False


def _is_harmless(setting: str, value: object) -> bool:
    """Whether a setting of an encoder or a head runs no code, reads no file and fetches nothing."""
    if setting == "_target_":
        return _is_own(value, Encoder, Head)
    if setting.startswith("_"):
        return (setting, value) == ("_partial_", True)
    if setting in _OTHER_WEIGHTS:
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


def read_published(folder: Path) -> Published:
    """Read a published folder, and believe nothing that can be checked.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.

    Returns:
        What it holds.

    Raises:
        ConfigError: If it is no grader of drgrade, or one of a later version.
        DataError: If it is damaged, incomplete, or would run foreign code.
    """
    record = read_header(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise DataError(f"{folder}: {WEIGHTS} is not there; fetch the folder again")
    if file_sha256(weights) != record["weights"]["sha256"]:
        raise DataError(
            f"{weights} is not the file that its {CONFIG} describes (another hash); fetch it again"
        )
    config = OmegaConf.create(record["settings"])
    config.photographs = {
        "_target_": f"{__name__}.{photographs_of_others.__name__}",
        **config.photographs,
        "folder": STORES,
    }
    config.data.update({role: [] for role in ROLES})
    return Published(
        config,
        record["metrics"],
        Calibration.from_json(json.dumps(record["calibration"])),
        _tensors(weights),
    )


def photographs_of_others(**settings: object) -> NoReturn:
    """Stands where a run's config says what its photographs are.

    Args:
        **settings: Of the photographs.

    Raises:
        DataError: Always.
    """
    raise DataError(
        "a published grader comes without its photographs and their split; name others with data=NAME"
    )


def read_header(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a published folder.

    Args:
        folder: The folder.

    Returns:
        What it holds; its parts are there, and its settings are safe to make a model from.

    Raises:
        ConfigError: If it is no grader of drgrade, or one of a later version.
        DataError: If it is damaged, or would run foreign code.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the folder again") from error
    if not isinstance(record, dict) or record.get("library_name") != LIBRARY:
        raise ConfigError(
            f"{folder} holds no grader that drgrade has published ({CONFIG} is of something else)"
        )
    if record.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} was published by drgrade {record.get('version')} in format {record.get('format')}, "
            f"this one reads format {FORMAT}: install that version"
        )
    try:
        check_settings(record["settings"])
        for part, name in (("weights", "sha256"), ("calibration", "points"), ("metrics", "status")):
            record[part][name]
        for name in ("image_size", "illumination", "max_pixels"):
            record["settings"]["photographs"][name]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); fetch the folder again") from error
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    return record


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no readable safetensors file ({error}); fetch it again") from error
