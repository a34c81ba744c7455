"""The calibration of a run: fitted on its validation photographs when its checkpoint has been chosen."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from drgrade.files import write_text
from drgrade.metrics import Predictions
from drgrade.models.calibrated import calibrated_metrics, cross_fitted_metrics
from drgrade.models.calibration import Calibration, fit_calibration
from drgrade.training.artefacts import write_validation
from drgrade.training.folder import CALIBRATION
from drgrade.training.folder import read_calibration as read_calibration
from drgrade.training.processes import is_main_process


def calibrate(
    folder: Path, predictions: Predictions | None, split: pd.DataFrame
) -> tuple[Calibration, dict[str, float]]:
    """Fit the calibration and keep it with the run.

    The test photographs are not looked at. Nothing else that the run reports of itself is changed by it.
    Every process may call: all fit the same, the first one writes.

    Args:
        folder: The run's folder; receives ``calibration.json``, and ``validation.csv`` with what it was
            fitted to.
        predictions: What the chosen checkpoint says of the validation photographs; None if there are none.
        split: image_id and group of every row of the manifest.

    Returns:
        The calibration, and its figures on the validation photographs, cross-fitted, as ``val/...``; none if
        there are no photographs.
    """
    if predictions is None:
        calibration, figures = Calibration(), {}
    else:
        calibration = fit_calibration(predictions.probabilities, predictions.grades)
        groups = split["group"].astype(str).iloc[predictions.index.numpy()].tolist()
        figures = cross_fitted_metrics(predictions.probabilities, predictions.grades, groups)
    if is_main_process():
        if predictions is not None:
            write_validation(folder, predictions, split["image_id"])
        write_text(folder / CALIBRATION, calibration.to_json())
    return calibration, _named("val", figures)


def calibrated_figures(name: str, predictions: Predictions, calibration: Calibration) -> dict[str, float]:
    """The figures of a calibration on one set of photographs.

    Args:
        name: Of the set: ``test`` or ``external/NAME``.
        predictions: On all its photographs.
        calibration: Of the run.

    Returns:
        See :func:`drgrade.models.calibrated.calibrated_metrics`; each name begins with that of the set.
    """
    return _named(name, calibrated_metrics(predictions.probabilities, predictions.grades, calibration))


def _named(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{metric}": value for metric, value in figures.items()}
