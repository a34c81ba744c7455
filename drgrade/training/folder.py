"""A run's folder: what its files are called, and how it ended. Imports nothing heavy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.errors import DataError

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
