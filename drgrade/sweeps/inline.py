"""Hydra's launcher of drgrade for probes: cells one after the other, in the process of the sweep.

A probe takes less time than the start of a process. What cells have in common (photographs, encoder) is read
and made once.
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
from omegaconf import DictConfig

from drgrade.config import refuse_new_settings
from drgrade.errors import ConfigError, DrgradeError
from drgrade.sweeps.cells import OUTPUT
from drgrade.sweeps.children import interruptible
from drgrade.sweeps.launcher import Board, Composed, compose_cells

if TYPE_CHECKING:  # heavy, and every command looks at the launchers that there are
    from drgrade.training.cache import Shared

log = logging.getLogger("drgrade")


class InlineLauncher(Launcher):
    """Runs cells that fit probes, one after the other, in this process."""

    def __init__(self) -> None:
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's ``Launcher``."""
        self._config, self._context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; one that fails does not stop the others.

        Args:
            job_overrides: Of each cell.
            initial_job_idx: Number of the first.

        Returns:
            Of each cell, in their order: its metrics, or what it failed of.

        Raises:
            ConfigError: If a cell trains something, before any is run.
        """
        from drgrade.training.cache import Shared

        assert self._config is not None
        assert self._context is not None
        cells = list(compose_cells(self._context, self._config, job_overrides, initial_job_idx))
        for cell in cells:
            _refuse_training(cell)
        log.info("%d to run, one after the other in this process", len(cells))
        shared, board, returns = Shared(), Board(len(cells)), []
        with interruptible():
            for cell in cells:
                began = time.monotonic()
                returns.append(_run(cell, shared))
                board.ended(cell.folder, time.monotonic() - began, 1)
        return returns


def _refuse_training(cell: Composed) -> None:
    """Lightning is made for one training in a process, and starts others by repeating the command line."""
    refuse_new_settings("train", cell.config.hydra.overrides.task)
    probe = cell.config.protocol.get("probe")
    if cell.config.task != "grading" or probe is None:
        what = f"task={cell.config.task}, protocol={cell.config.protocol.name}"
        raise ConfigError(
            f"hydra/launcher=inline runs probes only (protocol=linear, knn, few_shot or majority), and "
            f"{cell.folder.name} is a training ({what}), which needs its own process: hydra/launcher=local"
        )


def _run(cell: Composed, shared: "Shared") -> JobReturn:
    """Run one cell; what it says goes into its folder."""
    from drgrade.model_card.card import leave_card
    from drgrade.training.run import train

    cfg = cell.config.copy()
    cfg.pop("hydra")
    cfg.paths.run = str(cell.folder.absolute())
    done = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder))
    cell.folder.mkdir(parents=True, exist_ok=True)
    with _output_in(cell.folder / OUTPUT):
        try:
            record = train(cfg, shared)
            leave_card(cell.folder, record)
            done.return_value = record
            done.status = JobStatus.COMPLETED
        except Exception as error:  # whatever it is: the other cells are not to be lost by it
            done.status = JobStatus.FAILED
            done.return_value = _explained(error)
    return done


def _explained(error: Exception) -> DrgradeError:
    """What the table of failures says of an error; an error of the program leaves its trace in the output."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DrgradeError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, DrgradeError):
        log.error("error: %s", cause)
        return cause
    log.error("error: %r", error, exc_info=error)
    return DrgradeError(repr(error))


@contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """Let what is logged go to a file instead of the terminal, where the sweep says how far it is."""
    root = logging.getLogger()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(message)s"))
    before, root.handlers = root.handlers, [file]
    try:
        yield
    finally:
        root.handlers = before
        file.close()
