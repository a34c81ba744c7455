"""Choose learning rate, thresholds and calibration by the validation photographs of a run.

Every rate of ``protocol.learning_rates`` is a training of full length from the same first weights and seed;
the test photographs are evaluated once, with the chosen one. A run that is interrupted resumes in the
training where it was. Thresholds and calibration are fitted after the checkpoint is chosen.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from drgrade.artefacts import read_object
from drgrade.data.datamodules import GradingDataModule
from drgrade.errors import DivergenceError
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.models.calibration import Calibration, calibrated_metrics, selective_uncertainty
from drgrade.models.cross_fitting import fit_and_cross_fit
from drgrade.runs.run_dir import CALIBRATION, write_validation
from drgrade.stats.selective import fit_limits, measure_selective
from drgrade.tasks import GradingTask
from drgrade.training.build import save_checkpoint
from drgrade.training.callbacks import cost_entries
from drgrade.training.distributed import is_main_process, wait_for_all

TRIALS = "learning_rates.json"
"""File in ``checkpoints``: outcome of each training that has ended."""


_TRIAL = "lr-"
"""Prefix of the folders of trainings in ``checkpoints``."""


@dataclass(frozen=True)
class Trial:
    """Outcome of the training with one learning rate.

    Attributes:
        rate: Learning rate.
        metrics: ``val/qwk``, ``val/loss`` and ``train/loss``; empty if the training has diverged or nothing
            was validated.
        cost: Cost of the training; see :meth:`~drgrade.training.callbacks.Clock.cost`.
        steps: Optimiser steps; 0 if the training has diverged.
    """

    rate: float
    metrics: Mapping[str, float]
    cost: Mapping[str, float]
    steps: int

    @property
    def has_diverged(self) -> bool:
        """True if the training has diverged."""
        return not self.steps

    @property
    def order(self) -> tuple[bool, float, float, float]:
        """Sort key: highest validation QWK, lowest loss, lowest rate; diverged trainings come last."""
        qwk, loss = self.metrics.get("val/qwk", -math.inf), self.metrics.get("val/loss", math.inf)
        return self.has_diverged, -qwk, loss, self.rate


def rates_to_try(rates: Sequence[float], validated: bool) -> list[float]:
    """Return the rates in rising order; without validation photographs the middle one alone.

    Example:
        >>> rates_to_try([1e-3, 3e-3, 3e-4], validated=False)
        [0.001]
    """
    ordered = sorted(map(float, rates))
    if validated or len(ordered) == 1:
        return ordered
    middle = ordered[len(ordered) // 2]
    log.warning(
        "there are no validation photographs to choose a learning rate by: %g, the middle one", middle
    )
    return [middle]


def with_rate(cfg: DictConfig, rate: float) -> DictConfig:
    """Return a copy of a run's config with another learning rate."""
    own = cfg.copy()
    own.optimizer.lr = rate
    return own


def try_rates(
    rates: Sequence[float], checkpoints: Path, train: Callable[[float, Path], Trial]
) -> tuple[Trial, list[Trial]]:
    """Train with each learning rate and keep the checkpoints of the best one.

    Args:
        rates: Learning rates.
        checkpoints: The run's folder of checkpoints. It receives those of the best rate, and
            ``learning_rates.json``; during the search each training has a folder in it.
        train: (rate, folder of its checkpoints) -> its outcome; resumes from the checkpoints in the folder.

    Returns:
        The best trial, and all.

    Raises:
        DivergenceError: If every training has diverged.
    """
    trials = _read_trials(checkpoints / TRIALS)
    for rate in rates:
        if rate in trials:
            continue
        log.info("learning rate %g", rate)
        try:
            trials[rate] = train(rate, checkpoints / f"{_TRIAL}{rate}")
        except DivergenceError as error:
            log.warning("learning rate %g: %s", rate, error)
            trials[rate] = Trial(rate, {}, {}, 0)
        if is_main_process():
            listed = {str(each.rate): asdict(each) for each in trials.values()}
            write_text(checkpoints / TRIALS, json.dumps(listed, indent=2) + "\n")
    tried = [trials[rate] for rate in rates]
    best = min(tried, key=lambda trial: trial.order)
    if best.has_diverged:
        raise DivergenceError(f"training has diverged with every learning rate of {list(rates)}: lower them")
    if is_main_process():
        _keep(checkpoints, best)
    wait_for_all()
    return best, tried


def _read_trials(path: Path) -> dict[float, Trial]:
    if not path.is_file():
        return {}
    listed = read_object(path, "remove the run's folder and start again")
    return {float(rate): Trial(**trial) for rate, trial in listed.items()}


def _keep(checkpoints: Path, best: Trial) -> None:
    """Move the best checkpoints up, and remove all others."""
    for path in sorted((checkpoints / f"{_TRIAL}{best.rate}").glob("*.ckpt")):
        path.replace(checkpoints / path.name)
    for folder in checkpoints.glob(f"{_TRIAL}*"):
        shutil.rmtree(folder)


def tuning_facts(best: Trial, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the entries of ``metrics.json``: the chosen rate, and the validation QWK of each."""
    scores = {f"tuning/lr_{each.rate}/qwk": each.metrics.get("val/qwk") for each in trials}
    facts = {"learning_rate": best.rate, **{name: qwk for name, qwk in scores.items() if qwk is not None}}
    log.info(
        "learning rate %g is chosen (validation QWK: %s)",
        best.rate,
        ", ".join(
            f"{each.rate:g} {each.metrics['val/qwk']:.4f}"
            if "val/qwk" in each.metrics
            else f"{each.rate:g} -"
            for each in trials
        ),
    )
    if len(trials) > 1 and best.rate in (trials[0].rate, trials[-1].rate):
        log.info("the chosen rate is at the end of protocol.learning_rates; a wider range may be better")
    return facts


def tuning_cost(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the cost of all trainings together, and each, for ``provenance.json``."""
    costs = [each.cost for each in trials if each.cost]
    seconds, images = (sum(cost[name] for cost in costs) for name in ("seconds", "images"))
    peak_memory = max((cost["peak_memory"] for cost in costs), default=0)
    return {
        **cost_entries(seconds, images, peak_memory),
        "learning_rates": {str(each.rate): {**each.metrics, **each.cost} for each in trials},
    }


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


log = logging.getLogger(__name__)
