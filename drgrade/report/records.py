"""What ``metrics.json`` and ``config.yaml`` of a run have to say before its figures can be believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drgrade.errors import DataError
from drgrade.training.folder import CONFIG, METRICS

_CELL = ("label_fraction", "fold", "seed")
_SETTINGS = (
    *_CELL,
    "folds",
    "init",
    "protocol.name",
    "data.image_size",
    "data.illumination",
    "encoder._target_",
    "split.seed",
    "split.disagreeing",
    "split.file",
    "split.val_fraction",
    "split.val_within_fraction",
)
_FACTS = ("test/qwk", "data", "data_hash", "split_hash")
_BOTH = (*_CELL, "init")


def check_record(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse a finished run whose files lack what a report needs, or contradict each other.

    Args:
        folder: The run's.
        config: ``config.yaml``.
        record: ``metrics.json``.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    mend = "run it again, or leave it out"
    lacking = [name for name in _FACTS if record.get(name) is None]
    if lacking:
        raise DataError(f"{folder / METRICS}: the run is finished but has no {', '.join(lacking)}; {mend}")
    if not isinstance(record["test/qwk"], int | float):
        raise DataError(f"{folder / METRICS}: test/qwk is no number; {mend}")
    lacking = [name for name in _SETTINGS if not _has(config, name)]
    if lacking or known_cell(config) is None:
        what = f"has no {', '.join(lacking)}" if lacking else f"has no usable {', '.join(_CELL)}"
        raise DataError(f"{folder / CONFIG} {what}; {mend}")
    for name in _BOTH:
        if name in record and record[name] != config[name] and str(record[name]) != str(config[name]):
            raise DataError(
                f"{folder}: {name} is {config[name]} in {CONFIG} and {record[name]} in {METRICS}; {mend}"
            )


def known_cell(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A config, if it says which cell of the table its run is; a run that failed may not have come so far.

    Args:
        config: ``config.yaml``.
    """
    if config is None or not all(_has(config, name) for name in _SETTINGS):
        return None
    numbers = isinstance(config["label_fraction"], int | float) and isinstance(config["seed"], int)
    return config if numbers and config["fold"] is not None else None


def _has(config: Mapping[str, Any], name: str) -> bool:
    """Whether a setting is there; its value may be null."""
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True
