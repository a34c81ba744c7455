"""A trial of a search tells its study every epoch how it does, and ends where the pruner gives it up."""

import logging
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from drgrade.errors import ConfigError
from drgrade.tasks import GradingTask
from drgrade.training.studies import open_trial

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports a metric of every validated epoch to the study, which may be another process's.

    The search puts it into each trial's ``callbacks`` (``drgrade.sweeps.search``). Pre-training, which a
    trial may have to do first, reports nothing.

    Attributes:
        pruned: Whether the pruner has ended the trial.
    """

    def __init__(
        self, metric: str, trial: int, study: str, storage: str, pruner: "BasePruner | None" = None
    ) -> None:
        """Keep the trial's address; the study is opened when there is something to say.

        Args:
            metric: What is reported: ``val/qwk``.
            trial: Its number.
            study: Its study's name.
            storage: Database of the study, an URL.
            pruner: Decides; None: nothing is pruned, but every epoch is reported.
        """
        self.metric, self.number, self.pruned = metric, trial, False
        self._study, self._storage, self._pruner = study, storage, pruner
        self._trial: Trial | None = None
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that this epoch has been validated: metrics of an earlier one stay with the trainer."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and end the trial if the pruner says so."""
        if not self._validated or not isinstance(pl_module, GradingTask):
            return
        self._validated = False
        # Asked by all processes: reading a metric may gather it, and all of them take part in that.
        metrics = trainer.callback_metrics
        if self.metric not in metrics:
            raise ConfigError(f"the search looks at {self.metric}, which validation does not give")
        decision = trainer.is_global_zero and self._report(trainer, float(metrics[self.metric]))
        # All processes have to leave after the same epoch.
        self.pruned = bool(trainer.strategy.broadcast(decision))
        if self.pruned:
            trainer.should_stop = True

    def _report(self, trainer: pl.Trainer, value: float) -> bool:
        """Tell the study; whether this is the trial's end."""
        trial = self._open()
        trial.report(value, step=trainer.current_epoch)
        if _is_last_epoch(trainer) or not trial.should_prune():
            return False
        log.info("the search ends this trial after epoch %d", trainer.current_epoch + 1)
        return True

    def _open(self) -> "Trial":
        if self._trial is None:
            self._trial = open_trial(self._storage, self._study, self.number, self._pruner)
        return self._trial


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Whether the run ends here anyway: then it is finished, whatever the pruner thinks."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step


def is_pruned(trainer: pl.Trainer) -> bool:
    """Whether a run was ended by the pruner of its search.

    Args:
        trainer: After training.

    Returns:
        False for a run that is no trial.
    """
    return any(isinstance(each, Pruning) and each.pruned for each in trainer.callbacks)  # type: ignore[attr-defined]
