"""Hydra launcher that fits probes in the process of the sweep: starting a process would take longer.

Photographs and encoders are loaded once for all cells.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from drgrade.config import refuse_new_settings
from drgrade.errors import ConfigError, DrgradeError, describe_disk_error
from drgrade.processes import interruptible
from drgrade.settings import TrainSettings
from drgrade.sweeps.cells import OUTPUT
from drgrade.sweeps.launcher import ComposedCell, ProgressLog, compose_cells

if TYPE_CHECKING:  # slow to import, and Hydra imports every launcher in every command
    from drgrade.training.frozen_encoder import RunCache

log = logging.getLogger("drgrade")


class InlineLauncher(Launcher):
    """Runs cells that fit probes in this process (``conf/hydra/launcher/inline.yaml``)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.launcher.Launcher`."""
        self._config, self._context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a failure does not stop the others.

        Raises:
            ConfigError: If a cell trains a model; nothing has run by then.
        """
        from drgrade.training.frozen_encoder import RunCache

        cells = list(compose_cells(self._context, self._config, job_overrides, initial_job_idx))
        for cell in cells:
            _refuse_training(cell)
        log.info("%d to run, one after the other in this process", len(cells))
        cache, progress_log, returns = RunCache(), ProgressLog(len(cells)), []
        with interruptible():
            for cell in cells:
                started = time.monotonic()
                returns.append(run_cell(cell, cache))
                progress_log.add(cell.folder, time.monotonic() - started, 1)
        return returns


def _refuse_training(cell: ComposedCell) -> None:
    """Raise an error for a cell that trains: Lightning expects one training per process."""
    refuse_new_settings("train", cell.config.hydra.overrides.task)
    if cell.config.task != "grading" or cell.config.protocol.get("probe") is None:
        raise ConfigError(
            f"hydra/launcher=inline runs probes only (protocol=linear, knn, few_shot or majority), but "
            f"{cell.folder.name} trains a model (task={cell.config.task}, "
            f"protocol={cell.config.protocol.name}), which needs its own process: hydra/launcher=local"
        )


def run_cell(cell: ComposedCell, cache: "RunCache") -> JobReturn:
    """Run one cell in this process, with its log in its folder, and return its metrics or error."""
    from drgrade.training.run import train

    cfg = cell.config.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    cfg.paths.run = str(cell.folder.absolute())
    done = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder))
    cell.folder.mkdir(parents=True, exist_ok=True)
    with _log_to(cell.folder / OUTPUT):
        try:
            TrainSettings.read(cfg)
            done.status, done.return_value = JobStatus.COMPLETED, train(cfg, cache)
        except Exception as error:  # any error: it must not stop the other cells
            done.status, done.return_value = JobStatus.FAILED, _log_error(error)
    return done


def _log_error(error: Exception) -> DrgradeError:
    """Log an error and return it for the table of failures; errors of the program with their stack trace."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DrgradeError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, DrgradeError):
        log.error("error: %s", cause)
        return cause
    message = describe_disk_error(error)
    log.error("error: %s", message or repr(error), exc_info=None if message else error)
    return DrgradeError(message or repr(error))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Redirect the log from the terminal to a file."""
    root = logging.getLogger()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(message)s"))
    before, root.handlers = root.handlers, [file]
    try:
        yield
    finally:
        root.handlers = before
        file.close()
