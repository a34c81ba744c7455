"""What makes a run what it is: the settings that must be equal for one run to go on as another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from drgrade.config import ROLES
from drgrade.errors import ConfigError, DataError
from drgrade.renames import canonical

if TYPE_CHECKING:
    from drgrade.models.calibration import Calibration

METRICS, CONFIG, SPLIT, HASHES, SEEN, PREDICTIONS, CONFUSION, PROVENANCE, CALIBRATION, VALIDATION = (
    "metrics.json",
    "config.yaml",
    "split.csv",
    "photographs.json",
    "seen.txt",
    "predictions.csv",
    "confusion.csv",
    "provenance.json",
    "calibration.json",
    "validation.csv",
)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read ``metrics.json``.

    Args:
        folder: A run's folder.

    Returns:
        What it holds; empty if there is none yet.

    Raises:
        DataError: If it is no JSON object.
    """
    path = folder / METRICS
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to run this again") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} is no JSON object; remove it to run this again")
    return record


def read_calibration(folder: Path) -> "Calibration":
    """Read ``calibration.json``.

    Args:
        folder: A run's folder.

    Returns:
        The calibration; that which changes nothing where there is none.

    Raises:
        DataError: If it is damaged.
    """
    from drgrade.models.calibration import Calibration

    path = folder / CALIBRATION
    if not path.is_file():
        return Calibration(note="the run was made before runs were calibrated; run it again")
    try:
        return Calibration.from_json(path.read_text(encoding="utf-8"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


AUTO = "auto"
"""Value of ``resume``: go on from the run's own folder, if it has been begun there."""

FREE_TO_CHANGE = (
    "resume",
    "download",
    "paths",
    "trainer",
    "logger",
    "callbacks",
    "hydra",
    "name",
    "method",
    "sweep",
)
"""Settings that may differ when a run goes on: where, on what, for how long, how it is watched and called."""

_PLACES = (
    "data.root",
    "data.source.root",
    "photographs.source.root",
    "photographs.folder",
    "split.file",
    "photographs.split.file",
)
"""Photographs may have moved; whether they are still the same, the hash of the split tells."""


WITHOUT_EFFECT = (
    "_target_",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "deterministic",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "enable_model_summary",
    "use_distributed_sampler",
)
"""What of ``trainer`` does not change what is learnt; a batch is counted over all devices."""


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Every setting that makes a run what it is.

    Args:
        cfg: The run's config.

    Returns:
        ``{"a.b": value}``, without what is free to change.
    """
    # Interpolations point anywhere, so everything is resolved before anything is left out.
    container = canonical(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    flat: dict[str, Any] = {}

    def collect(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")
            elif prefix == "data." and name in ROLES:
                flat[f"{prefix}{name}"] = [_without_root(item) for item in value]
            else:
                flat[f"{prefix}{name}"] = value

    collect({name: value for name, value in container.items() if name not in FREE_TO_CHANGE}, "")
    return {
        name: value
        for name, value in flat.items()
        if name not in _PLACES and not name.endswith((".workers", ".download"))
    }


def differences(before: DictConfig, now: DictConfig, *, finished: bool = False) -> list[str]:
    """In what two configs are not one run's.

    Args:
        before: A config.
        now: Another.
        finished: The first one's run is over and shall stand for the second's: length and precision of the
            training, which may change when a run goes on, have to be the same as well.

    Returns:
        Half a sentence for each setting that differs and may not; empty if one run can stand for the other.
    """
    first, second = identity(before), identity(now)
    if finished:
        first, second = first | _training(before), second | _training(now)
    return [
        f"{name} was {first.get(name)} and is {second.get(name)}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def _training(cfg: DictConfig) -> dict[str, Any]:
    """What of the trainer changes what is learnt."""
    trainer = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))["trainer"]
    return {f"trainer.{name}": value for name, value in trainer.items() if name not in WITHOUT_EFFECT}


def _without_root(item: Any) -> Any:
    """A further data set, wherever it lies."""
    return {name: value for name, value in item.items() if name != "root"} if isinstance(item, dict) else item


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
