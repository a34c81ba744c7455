"""The calibration of a run: fitted on its validation photographs when its checkpoint has been chosen."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch

from drgrade.data.datamodules import GradingDataModule
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.calibration import Calibration, calibrated_metrics, cross_fitted_metrics, fit_calibration
from drgrade.runs.run_dir import CALIBRATION, write_validation
from drgrade.tasks.grading import GradingTask
from drgrade.training.distributed import is_main_process, wait_for_all


def fit_thresholds(
    trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, checkpoint: Path
) -> dict[str, float]:
    """Fit the head's thresholds on what the chosen checkpoint says of the validation photographs.

    They are kept in the checkpoint itself: whoever loads it reads grades with them. The test photographs are
    not looked at.

    Args:
        trainer: Runs the validation.
        task: Receives weights and thresholds.
        data: Validation photographs.
        checkpoint: The chosen one; it is written again with the thresholds.

    Returns:
        ``threshold_1``, ... and ``val/qwk_fitted``, which is optimistic: the thresholds are the best ones for
        these very photographs. ``val/qwk`` goes on meaning a reading that has not been fitted.
    """
    with task.store_logits():
        trainer.validate(task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        logits, grades = (each.to(task.device) for each in task.logits())
    task.head.fit_thresholds(logits, grades)
    if is_main_process():
        _keep(task, checkpoint)
    wait_for_all()
    kappa = quadratic_weighted_kappa(confusion_matrix(task.head.predict(logits), grades))
    thresholds = task.head.get_buffer("thresholds").tolist()
    return {
        **{f"threshold_{grade}": float(value) for grade, value in enumerate(thresholds, start=1)},
        "val/qwk_fitted": float(kappa),
    }


def _keep(task: GradingTask, checkpoint: Path) -> None:
    """Put the head, which differs from the checkpoint's in its thresholds only, into the checkpoint."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["state_dict"] |= {f"head.{name}": value.cpu() for name, value in task.head.state_dict().items()}
    partial = checkpoint.with_name(f".{checkpoint.name}")
    torch.save(content, partial)
    partial.replace(checkpoint)


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
        See :func:`drgrade.models.calibration.calibrated_metrics`; each name begins with that of the set.
    """
    return _named(name, calibrated_metrics(predictions.probabilities, predictions.grades, calibration))


def _named(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{metric}": value for metric, value in figures.items()}
