"""Fit thresholds and calibration to the validation photographs, after the checkpoint is chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from drgrade.data.datamodules import GradingDataModule
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.calibration import Calibration, calibrated_metrics, selective_uncertainty
from drgrade.models.cross_fitting import fit_and_cross_fit
from drgrade.runs.run_dir import CALIBRATION, write_validation
from drgrade.stats.selective import fit_limits, measure_selective
from drgrade.tasks.grading import GradingTask
from drgrade.training.build import save_checkpoint
from drgrade.training.distributed import is_main_process, wait_for_all


def fit_thresholds(
    trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, checkpoint: Path
) -> dict[str, float]:
    """Fit the head's thresholds to the validation photographs and store them in the checkpoint.

    Returns:
        ``threshold_1``, ... and ``val/qwk_fitted``, which is optimistic because the thresholds are fitted to
        the same photographs. ``val/qwk`` is computed without fitted thresholds.
    """
    with task.store_logits():
        trainer.validate(task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        logits, grades = (each.to(task.device) for each in task.logits())
    task.head.fit_thresholds(logits, grades)
    if is_main_process():
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        content["state_dict"] |= {
            f"head.{name}": value.cpu() for name, value in task.head.state_dict().items()
        }
        save_checkpoint(content, checkpoint)
    wait_for_all()
    kappa = quadratic_weighted_kappa(confusion_matrix(task.head.predict(logits), grades))
    thresholds = task.head.get_buffer("thresholds").tolist()
    return {
        **{f"threshold_{grade}": float(value) for grade, value in enumerate(thresholds, start=1)},
        "val/qwk_fitted": float(kappa),
    }


def calibrate(
    folder: Path, predictions: Predictions | None, split: pd.DataFrame
) -> tuple[Calibration, dict[str, float]]:
    """Fit the calibration to the validation photographs and write it into the run's folder.

    Every process may call: all fit the same calibration, and the first one writes it.

    Args:
        folder: Receives ``calibration.json`` and ``validation.csv``.
        predictions: Predictions of the chosen checkpoint; None without validation photographs.
        split: image_id and group of every row of the manifest.

    Returns:
        The calibration; its cross-fitted metrics as ``val/...``, and the uncertainty limits that are fitted
        to the same photographs (:func:`drgrade.stats.selective.fit_limits`). The identity and no metrics
        without validation photographs.
    """
    if predictions is None:
        calibration, figures, limits = Calibration(), dict[str, float](), dict[str, float]()
    else:
        groups = split["group"].astype(str).iloc[predictions.index.numpy()].tolist()
        calibration, figures = fit_and_cross_fit(predictions.probabilities, predictions.grades, groups)
        limits = fit_limits(
            selective_uncertainty(predictions.probabilities, calibration),
            predictions.predicted.numpy(),
            predictions.grades.numpy(),
        )
    if is_main_process():
        if predictions is not None:
            write_validation(folder, predictions, split["image_id"])
        write_text(folder / CALIBRATION, calibration.to_json())
    return calibration, {**{f"val/{metric}": value for metric, value in figures.items()}, **limits}


def calibrated_figures(
    name: str, predictions: Predictions, calibration: Calibration, record: Mapping[str, Any]
) -> dict[str, float]:
    """Compute the metrics of calibration and selective prediction of a set, with its name as prefix.

    They are those of :func:`drgrade.models.calibration.calibrated_metrics` and
    :func:`drgrade.stats.selective.measure_selective`; ``record`` contains the uncertainty limits.
    """
    figures = calibrated_metrics(predictions.probabilities, predictions.grades, calibration)
    uncertainty = selective_uncertainty(predictions.probabilities, calibration)
    figures |= measure_selective(
        uncertainty, predictions.predicted.numpy(), predictions.grades.numpy(), record
    )
    return {f"{name}/{metric}": value for metric, value in figures.items()}
