"""Thresholds of a head, fitted on the validation photographs when training is over."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from drgrade.data.modules import GradingDataModule
from drgrade.metrics import confusion_matrix
from drgrade.metrics.kappa import quadratic_weighted_kappa
from drgrade.tasks import GradingTask
from drgrade.training.processes import is_main_process, wait_for_all


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
    with task.keeping_logits():
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
