"""One run, from a composed config to its artefacts. The command line only wraps :func:`train`."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from drgrade.data.datamodules import GradingDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.metrics.distributed import Predictions
from drgrade.models.calibration import Calibration
from drgrade.runs.run_dir import (
    AUTO,
    BEST,
    LAST,
    METRICS,
    read_metrics,
    resolve_run_dir,
    write_metrics,
    write_predictions,
    write_provenance,
)
from drgrade.settings import TrainSettings
from drgrade.tasks.grading import GradingTask
from drgrade.training.build import (
    checkpoints,
    grading_task,
    make,
    make_encoder,
    make_photographs,
    make_trainer,
    open_folder,
    seed_everything,
    warn_of_idle_data,
)
from drgrade.training.cache import Shared
from drgrade.training.calibration import calibrate, calibrated_figures, fit_thresholds
from drgrade.training.callbacks.pruning import is_pruned
from drgrade.training.distributed import alone_in, is_main_process
from drgrade.training.init_weights import initial_encoder, provenance
from drgrade.training.pretraining import pretrain_run
from drgrade.training.probe import check_probe, fit_probe, is_probe
from drgrade.training.tracking.session import show, watched
from drgrade.training.warning_filters import quieten

log = logging.getLogger(__name__)


def train(cfg: DictConfig, shared: Shared | None = None) -> dict[str, Any]:
    """Train, test, and write the artefacts of DESIGN.md, section 4.

    Args:
        cfg: The composed config (``conf/train.yaml``).
        shared: What runs of this process have in common; None for a run that is alone.

    Returns:
        What ``metrics.json`` holds: ``test/qwk`` and the like, hashes, and ``status``: ``finished``, or
        ``pruned`` for a trial that its search has ended.

    Raises:
        DrgradeError: If something is wrong that the user can mend.
    """
    check_settings(cfg)
    quieten()
    folder, checkpoint = resolve_run_dir(cfg)
    cfg.paths.run = str(folder)  # a resumed run logs to the folder that it goes on in
    if cfg.resume == AUTO and _finished(folder):
        return read_metrics(folder)
    with alone_in(folder):
        return _train(cfg, folder, checkpoint, shared)


def _train(cfg: DictConfig, folder: Path, checkpoint: Path | None, shared: Shared | None) -> dict[str, Any]:
    """One run in its folder, which says in the end how it ended."""
    if is_main_process() and not _finished(folder):
        (folder / METRICS).unlink(missing_ok=True)  # how an earlier attempt ended
    try:
        photographs = shared.photographs(cfg) if shared else make_photographs(cfg)
        if cfg.task == "pretext":
            return pretrain_run(cfg, photographs, folder, checkpoint)
        if is_probe(cfg):
            return fit_probe(cfg, photographs, folder, checkpoint, shared)
        return grade(cfg, photographs, folder, checkpoint)
    except BaseException as error:
        # Whatever ended the run, its folder says so; the error itself goes on.
        stopped = not isinstance(error, Exception)
        if is_main_process() and not (checkpoint and _finished(folder)):
            reason = {} if stopped else {"error": f"{type(error).__name__}: {error}"}
            write_metrics(folder, {"status": "interrupted" if stopped else "failed", **reason})
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # Lightning has made an ordinary exit of it
        raise


def check_settings(cfg: DictConfig) -> None:
    """Check types and ranges of the settings, and that they are consistent.

    Args:
        cfg: The run's config.

    Raises:
        ConfigError: Naming the setting, its value, and what is allowed.
    """
    TrainSettings.read(cfg)
    if cfg.trainer.devices != 1 and "strategy" not in cfg.trainer:
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices}: for several devices use trainer=ddp or trainer=ddp_cpu"
        )
    if cfg.task == "grading" and is_probe(cfg):
        check_probe(cfg)


def grade(cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Fine-tune on the label fraction, validate, and test unless ``test`` is false.

    Args:
        cfg: Config with ``task: grading``.
        photographs: What to learn from and test on.
        folder: The run's folder.
        checkpoint: Go on from here.

    Returns:
        As :func:`train`.

    Raises:
        DrgradeError: If something is wrong that the user can mend.
    """
    warn_of_idle_data(cfg)
    initial = initial_encoder(cfg, photographs)
    seed_everything(cfg.seed)
    data = make(cfg.grading.datamodule, photographs=photographs)
    task = grading_task(cfg, make_encoder(cfg, initial))
    assert isinstance(data, GradingDataModule)
    open_folder(cfg, photographs, folder, checkpoint)
    monitor = "val/qwk" if cfg.protocol.checkpoint == BEST else None
    facts = provenance(cfg, photographs, initial)
    unsaid = {name: value for name, value in facts.items() if name not in cfg}
    with watched(cfg, folder, unsaid, resumed=checkpoint is not None) as watch:
        trainer, clock = make_trainer(cfg, folder, checkpoints(folder, monitor), watch.logger)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        watch.record = record = {**_figures(cfg, trainer, task, data, folder), **facts}
        if is_main_process():
            write_provenance(
                folder,
                **clock.cost(),
                steps=trainer.global_step,
                devices=trainer.world_size,
                encoder=str(initial or "") or None,
            )
            write_metrics(folder, record)
    return record


def _figures(
    cfg: DictConfig, trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, folder: Path
) -> dict[str, Any]:
    """What a trained run has come to: its figures, the checkpoint that they are of, its status."""
    # Empty if the run had ended before it was resumed to be tested.
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name == "train/loss"}
    if is_pruned(trainer):
        return {**metrics, **task.results["val"], "status": "pruned"}
    chosen = _chosen_checkpoint(cfg, folder)
    if task.head.fits_thresholds:
        metrics |= fit_thresholds(trainer, task, data, chosen)
    metrics |= validate(trainer, task, data, chosen)
    # Gathered: every process has to ask.
    validated = task.predictions("val") if data.val_dataloader() else None
    calibration, figures = calibrate(folder, validated, data.photographs.split)
    metrics |= figures
    if cfg.test:
        metrics |= test(trainer, task, data, chosen, folder, calibration)
    return {**metrics, "checkpoint": chosen.name, "status": "finished"}


def validate(
    trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, checkpoint: Path
) -> dict[str, float]:
    """Validate one checkpoint.

    Args:
        trainer: Runs it.
        task: Receives the weights.
        data: Validation photographs.
        checkpoint: What is validated.

    Returns:
        ``val/...``; empty if there are no validation photographs.
    """
    data.setup()
    if not data.val_dataloader():
        return {}
    metrics: dict[str, float] = dict(
        trainer.validate(task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    )
    metrics |= task.results["val"]
    show(trainer, "val", task.predictions("val"), data.photographs)
    return metrics


def test(
    trainer: pl.Trainer,
    task: GradingTask,
    data: GradingDataModule,
    checkpoint: Path,
    folder: Path,
    calibration: Calibration,
    kept: dict[str, Predictions] | None = None,  # noqa: PT028 - no test function
) -> dict[str, float]:
    """Test one checkpoint; write its predictions on the test set.

    Args:
        trainer: Runs it.
        task: Receives the weights.
        data: Test photographs.
        checkpoint: What is tested.
        folder: Receives ``predictions.csv`` and ``confusion.csv``, and of an external data set
            ``predictions_NAME.csv`` and ``confusion_NAME.csv``.
        calibration: Of the run; what it is worth here is reported beside the other figures.
        kept: Receives the predictions on each set by its name, ``test`` or ``external/NAME``.

    Returns:
        ``test/...``, and ``external/NAME/...`` of each external data set.
    """
    metrics: dict[str, float] = {}
    for name in ("test", *data.external):
        data.tested, task.test_name = name, name if name == "test" else f"external/{name}"
        metrics |= trainer.test(
            task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False
        )[0]
        metrics |= task.results["test"]
        predictions = task.predictions("test")  # gathered: every process has to ask
        metrics |= calibrated_figures(task.test_name, predictions, calibration)
        if kept is not None:
            kept[task.test_name] = predictions
        if is_main_process():
            ids = data.photographs.split["image_id"]
            write_predictions(folder, predictions, ids, "" if name == "test" else name)
        show(trainer, task.test_name, predictions, data.photographs)
    return metrics


def _chosen_checkpoint(cfg: DictConfig, folder: Path) -> Path:
    chosen = folder / "checkpoints" / f"{cfg.protocol.checkpoint}.ckpt"
    if not chosen.is_file():
        log.warning("no epoch was validated, so that none could be chosen: the last one is tested")
        return chosen.with_stem(LAST)
    return chosen


def _finished(folder: Path) -> bool:
    return read_metrics(folder).get("status") == "finished"
