"""Train and test one run, step by step, from a composed config to the files in the run's folder."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from drgrade.config import is_pretrained
from drgrade.data.datamodules import GradingDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.metrics.distributed import Predictions
from drgrade.models.calibration import Calibration
from drgrade.runs.run_dir import (
    AUTO,
    BEST,
    CHECKPOINTS,
    ENDED,
    LAST,
    METRICS,
    read_metrics,
    resolve_run_dir,
    write_metrics,
    write_predictions,
    write_provenance,
)
from drgrade.tasks import GradingTask
from drgrade.training.build import (
    check_learning_rates,
    check_loadable,
    check_trainer,
    checkpoint_callbacks,
    final_status,
    finish_run_dir,
    instantiate,
    is_probe,
    make_encoder,
    make_photographs,
    make_task,
    make_trainer,
    open_run_dir,
    restoring,
    seed_everything,
    silence_known_warnings,
)
from drgrade.training.callbacks import BatchNormMomentum
from drgrade.training.distributed import is_main_process, lock_run_dir, supervised
from drgrade.training.frozen_encoder import RunCache, estimate_encoder_statistics, fit_linear_head
from drgrade.training.pretraining import find_initial_encoder, pretrain, run_facts
from drgrade.training.probe import check_probe, fit_probe
from drgrade.training.tracking.tracker import failure_record, log_evaluation, tracked_run
from drgrade.training.validation import (
    Trial,
    calibrate,
    calibrated_figures,
    fit_thresholds,
    rates_to_try,
    try_rates,
    tuning_cost,
    tuning_facts,
    with_rate,
)

log = logging.getLogger(__name__)


def train(cfg: DictConfig, cache: RunCache | None = None) -> dict[str, Any]:
    """Train and test one run, and write its files.

    Args:
        cfg: The composed config (``conf/train.yaml``), whose types and ranges are already checked
            (:class:`drgrade.settings.TrainSettings`).
        cache: Photographs and encoders shared with other runs of this process; None for a single run.

    Returns:
        The content of ``metrics.json``: ``test/qwk`` and other metrics, hashes, and ``status``, which is
        ``finished``, ``trial`` for a run that only tries the code, or ``pruned`` for a trial that its search
        has stopped.

    Raises:
        DrgradeError: If a setting, a photograph or an encoder cannot be used.
    """
    check_settings(cfg)
    silence_known_warnings()
    folder, checkpoint = resolve_run_dir(cfg)
    cfg.paths.run = str(folder)  # a resumed run logs into its own folder
    if cfg.resume == AUTO and _is_finished(folder):
        return read_metrics(folder)
    with (
        lock_run_dir(folder, wait=cfg.resume == AUTO),
        _failure_recorded(folder, checkpoint),
        restoring(folder),
        supervised(partial(_record_failure, folder)),
    ):
        photographs = cache.photographs(cfg) if cache else make_photographs(cfg)
        if cfg.task == "pretext":
            return pretrain(cfg, photographs, folder, checkpoint)
        initial = find_initial_encoder(cfg, photographs)
        if is_probe(cfg):
            return fit_probe(cfg, photographs, initial, folder, checkpoint, cache or RunCache())
        return fine_tune(cfg, photographs, initial, folder, checkpoint)


def check_settings(cfg: DictConfig) -> None:
    """Raise ConfigError if settings contradict each other, have no effect, or give an unloadable run."""
    check_trainer(cfg)
    check_loadable(cfg)
    if cfg.seed >= 2**63:
        raise ConfigError(f"seed={cfg.seed} is not below 2^63, the limit of torch")
    if cfg.task != "grading":
        return
    if is_probe(cfg):
        check_probe(cfg)
        return
    check_learning_rates(cfg)
    if cfg.protocol.probe_first and cfg.head.hidden:
        raise ConfigError(
            f"protocol.probe_first=true fits a linear head, and head.hidden={cfg.head.hidden} is not one: "
            "head.hidden=0, or protocol.probe_first=false"
        )


def fine_tune(
    cfg: DictConfig, photographs: Photographs, initial: Path | None, folder: Path, checkpoint: Path | None
) -> dict[str, Any]:
    """Fine-tune on the label fraction, choose a checkpoint, validate, calibrate and test.

    Args:
        cfg: Config with ``task: grading``.
        photographs: Photographs of the run, with their split.
        initial: Folder or file of a pre-trained encoder.
        folder: The run's folder.
        checkpoint: Checkpoint to resume from.

    Returns:
        The content of ``metrics.json``.
    """
    seed_everything(cfg.seed)
    data = instantiate(cfg.grading.datamodule, photographs=photographs)
    assert isinstance(data, GradingDataModule)
    task = make_task(cfg, make_encoder(cfg, initial))
    if task.frozen_epochs < cfg.protocol.frozen_epochs and is_main_process():
        log.info("protocol.frozen_epochs is for trained first weights; random weights learn in every epoch")
    open_run_dir(cfg, photographs, folder, checkpoint)
    facts = run_facts(cfg, photographs, initial)
    with tracked_run(cfg, folder, facts, resumed=checkpoint is not None) as tracked:
        record: dict[str, Any] = {}
        if cfg.protocol.learning_rates is None:
            trainer, trial = fit(cfg, task, data, folder / CHECKPOINTS, checkpoint, tracked.logger)
            cost: dict[str, Any] = dict(trial.cost)
        else:
            trial, record, cost = choose_learning_rate(cfg, initial, data, folder)
            trainer, _ = make_trainer(cfg, folder, (), tracked.logger)
        record |= {name: value for name, value in trial.metrics.items() if name == "train/loss"}
        if _is_pruned(trainer):
            record |= {**task.results["val"], "status": "pruned"}
        else:
            record |= {**validate_and_test(cfg, trainer, task, data, folder), "status": final_status(cfg)}
        tracked.record = record = {**record, **facts}
        if is_main_process():
            cost |= {"steps": trial.steps, "devices": trainer.world_size}
            write_provenance(folder, **cost, encoder=str(initial or "") or None)
            finish_run_dir(folder, record)
    return record


def fit(
    cfg: DictConfig,
    task: GradingTask,
    data: GradingDataModule,
    checkpoints: Path,
    checkpoint: Path | None,
    logger: Logger | Literal[False],
) -> tuple[pl.Trainer, Trial]:
    """Train a task; if the protocol asks for it, estimate batch statistics and fit the head before.

    Args:
        cfg: The run's config.
        task: Task with its first weights.
        data: Data module with the training photographs.
        checkpoints: Receives the checkpoints.
        checkpoint: Checkpoint to resume from.
        logger: Receives the metrics of every epoch.

    Returns:
        The trainer, and learning rate, metrics of the last epoch, cost and steps of the training.
    """
    callbacks = checkpoint_callbacks(checkpoints, "val/qwk" if cfg.protocol.checkpoint == BEST else None)
    trainer, clock = make_trainer(cfg, Path(cfg.paths.run), callbacks, logger)
    device, batch_size = trainer.strategy.root_device, cfg.data.batch_size
    probe_first = cfg.protocol.probe_first and is_pretrained(cfg)
    if checkpoint is None and cfg.protocol.precise_bn and (task.frozen_epochs or probe_first):
        estimate_encoder_statistics(task.encoder, data.photographs, batch_size, device)
    if checkpoint is None and probe_first:
        fit_linear_head(task, instantiate(cfg.head), data.photographs, batch_size, device)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    rate = float(cfg.optimizer.get("lr") or 0)
    return trainer, Trial(rate, clock.last_metrics(trainer), clock.cost(), trainer.global_step)


def choose_learning_rate(
    cfg: DictConfig, initial: Path | None, data: GradingDataModule, folder: Path
) -> tuple[Trial, dict[str, Any], dict[str, Any]]:
    """Train with each of ``protocol.learning_rates`` and keep the best, by the validation photographs.

    Returns:
        The best training, entries of ``metrics.json``, and the cost of all trainings.
    """

    def train_with(rate: float, checkpoints: Path) -> Trial:
        own = with_rate(cfg, rate)
        seed_everything(cfg.seed)
        task = make_task(own, make_encoder(own, initial))
        last = checkpoints / f"{LAST}.ckpt"
        trainer, trial = fit(own, task, data, checkpoints, last if last.is_file() else None, False)
        validated = validate(trainer, task, data, choose_checkpoint(cfg, checkpoints))
        kept = {name: value for name, value in validated.items() if name in ("val/qwk", "val/loss")}
        return replace(trial, metrics={"train/loss": trial.metrics["train/loss"], **kept})

    data.setup()
    rates = rates_to_try(cfg.protocol.learning_rates, validated=bool(data.val_dataloader()))
    best, trials = try_rates(rates, folder / CHECKPOINTS, train_with)
    return best, tuning_facts(best, trials), tuning_cost(trials)


def validate_and_test(
    cfg: DictConfig, trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, folder: Path
) -> dict[str, Any]:
    """Choose a checkpoint, fit thresholds and calibration to the validation photographs, and test it.

    Returns:
        The metrics of the run, and ``checkpoint``: the name of the file.
    """
    chosen = choose_checkpoint(cfg, folder / CHECKPOINTS)
    metrics: dict[str, Any] = {"checkpoint": chosen.name}
    if task.head.fits_thresholds:
        metrics |= fit_thresholds(trainer, task, data, chosen)
    metrics |= validate(trainer, task, data, chosen)
    # Gathered from all processes: every process must call.
    validated = task.predictions("val") if data.val_dataloader() else None
    calibration, cross_fitted = calibrate(folder, validated, data.photographs.split)
    metrics |= cross_fitted
    if cfg.test:
        metrics |= test(trainer, task, data, chosen, folder, calibration, metrics)
        metrics |= test_momenta(trainer, task, data, folder)
    return metrics


def choose_checkpoint(cfg: DictConfig, checkpoints: Path) -> Path:
    """Return the checkpoint that ``protocol.checkpoint`` names; the last one if there is no best."""
    chosen = checkpoints / f"{cfg.protocol.checkpoint}.ckpt"
    if not chosen.is_file():
        log.warning("no epoch was validated, so the last one is tested")
        return chosen.with_stem(LAST)
    return chosen


def validate(
    trainer: pl.Trainer, task: GradingTask, data: GradingDataModule, checkpoint: Path | None
) -> dict[str, float]:
    """Validate the weights of a checkpoint and return ``val/...``; empty without photographs.

    They are loaded into the task; without a checkpoint those that it has are validated.
    """
    data.setup()
    if not data.val_dataloader():
        return {}
    metrics: dict[str, float] = dict(
        trainer.validate(task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    )
    metrics |= task.results["val"]
    log_evaluation(trainer.loggers, "val", task.predictions("val"), data.photographs, trainer.global_step)
    return metrics


def test(
    trainer: pl.Trainer,
    task: GradingTask,
    data: GradingDataModule,
    checkpoint: Path | None,
    folder: Path,
    calibration: Calibration,
    record: Mapping[str, Any],
    kept: dict[str, Predictions] | None = None,  # noqa: PT028 - no test function
) -> dict[str, float]:
    """Test one checkpoint on the test photographs and every external data set; write the predictions.

    Args:
        trainer: Trainer that runs the test.
        task: Task that receives the weights.
        data: Data module with the test photographs.
        checkpoint: Checkpoint to test; None for the weights that the task has.
        folder: Receives ``predictions.csv`` and ``confusion.csv``, with the suffix ``_NAME`` for an external
            data set.
        calibration: Calibration of the run; its metrics are reported with the others.
        record: Metrics of the run with its uncertainty limits.
        kept: Receives the predictions on each set, with the key ``test`` or ``external/NAME``.

    Returns:
        ``test/...``, and ``external/NAME/...`` for each external data set.
    """
    metrics: dict[str, float] = {}
    for name in ("test", *data.external):
        data.tested, task.test_name = name, name if name == "test" else f"external/{name}"
        metrics |= trainer.test(
            task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False
        )[0]
        metrics |= task.results["test"]
        predictions = task.predictions("test")  # gathered from all processes: every process must call
        metrics |= calibrated_figures(task.test_name, predictions, calibration, record)
        if kept is not None:
            kept[task.test_name] = predictions
        if is_main_process():
            ids = data.photographs.split["image_id"]
            write_predictions(folder, predictions, ids, "" if name == "test" else name)
        log_evaluation(trainer.loggers, task.test_name, predictions, data.photographs, trainer.global_step)
    return metrics


def test_momenta(
    trainer: pl.Trainer,
    task: GradingTask,
    data: GradingDataModule,
    folder: Path,
) -> dict[str, float]:
    """Test the task's weights with the batch statistics of other momenta, if a callback has kept them.

    Returns:
        ``momentum_M/test/...`` for each; the predictions are written as those of an external data set.
    """
    kept = [each for each in trainer.callbacks if isinstance(each, BatchNormMomentum)]  # type: ignore[attr-defined]
    metrics: dict[str, float] = {}
    for momentum, statistics in (item for callback in kept for item in callback.statistics.items()):
        name = f"momentum_{momentum:g}"
        data.tested, task.test_name = "test", f"{name}/test"
        with statistics.used():
            trainer.test(task, datamodule=data, verbose=False)
        metrics |= task.results["test"]
        write_predictions(folder, task.predictions("test"), data.photographs.split["image_id"], name)
    return metrics


@contextmanager
def _failure_recorded(folder: Path, checkpoint: Path | None) -> Iterator[None]:
    """Write ``metrics.json`` with status failed or interrupted if the run ends with an exception."""
    if is_main_process() and not (checkpoint and _is_finished(folder)):
        (folder / METRICS).unlink(missing_ok=True)  # of an earlier attempt
    try:
        yield
    except BaseException as error:
        _record_failure(folder, error)
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # Lightning has replaced it by an ordinary exit
        raise


def _record_failure(folder: Path, error: BaseException) -> None:
    if is_main_process() and not _is_finished(folder):
        with suppress(OSError):  # the disk that is full or fails may be the cause
            write_metrics(folder, failure_record(error))


def _is_finished(folder: Path) -> bool:
    return read_metrics(folder).get("status") in ENDED


def _is_pruned(trainer: pl.Trainer) -> bool:
    """Return True if the pruner of a search has stopped the run."""
    return any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
