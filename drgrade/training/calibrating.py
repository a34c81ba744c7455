"""The calibration of a run: fitted on its validation photographs when its checkpoint has been chosen."""

from pathlib import Path

import pandas as pd

from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.metrics import Predictions
from drgrade.models.calibration import Calibration, fit_calibration
from drgrade.training.artefacts import write_validation
from drgrade.training.folder import CALIBRATION


def calibrate(folder: Path, predictions: Predictions | None, image_ids: pd.Series) -> Calibration:
    """Fit the calibration and keep it with the run.

    The test photographs are not looked at. Nothing that the run reports of itself is changed by it.

    Args:
        folder: The run's folder; receives ``calibration.json``, and ``validation.csv`` with what it was
            fitted to.
        predictions: What the chosen checkpoint says of the validation photographs; None if there are none.
        image_ids: image_id of every row of the manifest.

    Returns:
        The calibration.
    """
    calibration = Calibration()
    if predictions is not None:
        calibration = fit_calibration(predictions.probabilities, predictions.grades)
        write_validation(folder, predictions, image_ids)
    write_text(folder / CALIBRATION, calibration.to_json())
    return calibration


def read_calibration(folder: Path) -> Calibration:
    """Read what :func:`calibrate` has kept.

    Args:
        folder: A run's folder.

    Returns:
        The calibration; that which changes nothing where there is none.

    Raises:
        DataError: If it is damaged.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return Calibration(note="the run was made before runs were calibrated; run it again")
    try:
        return Calibration.from_json(path.read_text(encoding="utf-8"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
