"""By which id a run is known elsewhere, kept in its folder: a run that goes on continues there."""

import json
from pathlib import Path
from typing import Any

from drgrade.errors import DataError
from drgrade.files import write_text

TRACKING = "tracking.json"


def recall(folder: Path, service: str) -> str | None:
    """The id that a run has.

    Args:
        folder: The run's.
        service: ``wandb`` or ``mlflow``.

    Returns:
        None if the run is not known there yet.

    Raises:
        DataError: If the file is damaged.
    """
    found = _read(folder).get(service)
    return None if found is None else str(found)


def remember(folder: Path, service: str, run_id: str) -> None:
    """Keep the id that a run has been given.

    Args:
        folder: The run's.
        service: ``wandb`` or ``mlflow``.
        run_id: Its id there.
    """
    write_text(folder / TRACKING, json.dumps({**_read(folder), service: run_id}, indent=2) + "\n")


def forget(folder: Path) -> None:
    """Let the next run in a folder be another one.

    Args:
        folder: Of a run that begins anew.
    """
    (folder / TRACKING).unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / TRACKING
    if not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it, and the run is watched as a new one"
        ) from error
    if not isinstance(ids, dict):
        raise DataError(f"{path} is no JSON object; remove it, and the run is watched as a new one")
    return ids
