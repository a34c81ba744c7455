"""Pruning of a search's trials: a callback that reports to Optuna's study, through its database."""

import logging
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from drgrade.errors import ConfigError
from drgrade.tasks.grading import GradingTask

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage
    from optuna.trial import Trial

log = logging.getLogger(__name__)

_LOCK_SECONDS = 120
"""Time that a process waits while another one writes to the same SQLite file."""


class Pruning(Callback):
    """Reports a metric of every validated epoch to a study, and stops the run if the pruner decides so.

    The search adds this callback to its trials (:mod:`drgrade.sweeps.trials`). A pre-training that a trial
    does first reports nothing.

    Attributes:
        pruned: True once the pruner has stopped the run.
    """

    def __init__(
        self, metric: str, trial: int, study: str, storage: str, pruner: "BasePruner | None" = None
    ) -> None:
        """Store the settings; the study is opened with the first report.

        Args:
            metric: Name of the reported metric, such as ``val/qwk``.
            trial: Number of the trial.
            study: Name of the study.
            storage: URL of the study's database.
            pruner: Decides whether to stop; None: never.
        """
        self.metric, self.number, self.pruned = metric, trial, False
        self._study, self._storage, self._pruner = study, storage, pruner
        self._trial: Trial | None = None
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch was validated; the trainer keeps the metrics of earlier epochs."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metric, and stop the run on all processes if the pruner decides so."""
        if not self._validated or not isinstance(pl_module, GradingTask):
            return
        self._validated = False
        metrics = trainer.callback_metrics  # read by all processes, because it may gather a metric
        if self.metric not in metrics:
            raise ConfigError(f"the search needs {self.metric}, which validation does not compute")
        decision = trainer.is_global_zero and self._report(trainer, float(metrics[self.metric]))
        self.pruned = bool(trainer.strategy.broadcast(decision))
        if self.pruned:
            trainer.should_stop = True

    def _report(self, trainer: pl.Trainer, value: float) -> bool:
        if self._trial is None:
            self._trial = self._open()
        self._trial.report(value, step=trainer.current_epoch)
        if _is_last_epoch(trainer) or not self._trial.should_prune():
            return False
        log.info("the search stops this trial after epoch %d", trainer.current_epoch + 1)
        return True

    def _open(self) -> "Trial":
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)  # a resumed run may report an epoch twice
        pruner = self._pruner or optuna.pruners.NopPruner()
        try:
            storage = open_storage(self._storage)
            study = optuna.load_study(study_name=self._study, storage=storage, pruner=pruner)
            return open_trial(study, storage, self.number)
        except KeyError as error:
            raise ConfigError(f"trial {self.number} of {self._study}: {_unreachable(error)}") from error


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Return True if the run ends after this epoch anyway; it then counts as finished."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step


def open_storage(url: str) -> "RDBStorage":
    """Open the database of a study, and create it if necessary.

    Args:
        url: URL of the database in SQLAlchemy's format.

    Returns:
        Optuna's storage.

    Raises:
        ConfigError: If the URL is invalid, or the database cannot be used.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    settings = {"connect_args": {"timeout": _LOCK_SECONDS}} if url.startswith("sqlite") else None
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=settings)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"hydra.sweeper.storage is not the URL of a usable database: {error}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise ConfigError(_unreachable(error)) from error


def open_trial(study: "Study", storage: "RDBStorage", number: int) -> "Trial":
    """Open a trial that another process created.

    Args:
        study: The study.
        storage: Its storage.
        number: Number of the trial.

    Returns:
        The trial, for reports and attributes.

    Raises:
        KeyError: If there is no such trial.
    """
    from optuna.trial import Trial

    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def _unreachable(error: Exception) -> str:
    # Without the URL, which may contain a password.
    return (
        f"the database of the search cannot be used ({type(error).__name__}): every machine that runs trials "
        "must reach it under the same URL, with the same version of optuna (hydra.sweeper.storage)"
    )
