"""A run's logger, from the beginning of training until it is known how the run ended."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from drgrade.data.photographs import Collection
from drgrade.metrics.distributed import Predictions
from drgrade.training.build import make
from drgrade.training.distributed import is_main_process
from drgrade.training.tracking.base import Ending, Tracker, forget
from drgrade.training.tracking.evaluation import Evaluation


@dataclass
class Watch:
    """What is known of a run while it goes on.

    Attributes:
        logger: For the trainer; False in all processes but the first.
        record: What ``metrics.json`` holds, once it is known.
    """

    logger: Logger | Literal[False]
    record: Mapping[str, object] = field(default_factory=dict)


@contextmanager
def watched(
    cfg: DictConfig, folder: Path, facts: Mapping[str, object], resumed: bool = False
) -> Iterator[Watch]:
    """Log a run, and tell the logger how it ended, whatever ended it.

    Args:
        cfg: The run's config; the logger gets all of it.
        folder: The run's folder.
        facts: What the config does not say: hashes of data, split and encoder.
        resumed: Whether the run goes on, and its logger with it.

    Yields:
        The watch. Give it the ``record`` before the end.
    """
    if not is_main_process():
        yield Watch(False)
        return
    if not resumed:
        forget(folder)
    logger = make(cfg.logger)
    assert isinstance(logger, Logger)
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    logger.log_hyperparams({**cast(dict[str, Any], settings), **facts})  # here the run starts
    watch = Watch(logger)
    try:
        yield watch
    except BaseException as error:
        stopped = not isinstance(error, Exception)
        reason = {} if stopped else {"error": f"{type(error).__name__}: {error}"}
        ending: Ending = "interrupted" if stopped else "failed"
        _conclude(logger, ending, {"status": ending, **reason})
        raise
    _conclude(logger, "finished", watch.record)


def show(trainer: pl.Trainer, name: str, predictions: Predictions, collection: Collection) -> None:
    """Show an evaluation in the loggers that can.

    Args:
        trainer: Whose loggers; processes but the first have none.
        name: ``val``, ``test`` or ``external/NAME``.
        predictions: On all photographs of the set.
        collection: Which they are rows of.
    """
    show_in(trainer.loggers, name, predictions, collection, trainer.global_step)


def show_in(
    loggers: Sequence[Logger], name: str, predictions: Predictions, collection: Collection, step: int
) -> None:
    """Show an evaluation in the loggers that can.

    Args:
        loggers: Of the run.
        name: ``val``, ``test`` or ``external/NAME``.
        predictions: On all photographs of the set.
        collection: Which they are rows of.
        step: Optimiser steps before it.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.show(Evaluation(name, predictions, collection, step))


def _conclude(logger: Logger, ending: Ending, record: Mapping[str, object]) -> None:
    if isinstance(logger, Tracker):
        logger.conclude(ending, record)
