"""Hydra's launcher of drgrade: every cell is a process of its own on this machine."""

import json
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from drgrade.errors import ConfigError, DrgradeError
from drgrade.runs.run_dir import PROVENANCE
from drgrade.sweeps.cells import FINISHED, OUTPUT, error_line, progress
from drgrade.sweeps.children import hear_nothing, interruptible
from drgrade.sweeps.command import cell_command
from drgrade.sweeps.estimate import duration
from drgrade.sweeps.slots import Gpu, Slot, Slots, find_gpus

log = logging.getLogger("drgrade")

AUTO = "auto"
_PAUSE = 0.2
_PATIENCE = 60.0
"""Seconds that a stopped cell has to write down that it was stopped."""


@dataclass
class _Running:
    """A cell at work."""

    number: int
    name: str
    folder: Path
    place: int
    process: subprocess.Popen[bytes]
    started: float
    printed: int = 0
    """Bytes of ``output.log`` that earlier attempts have left."""

    @property
    def ending(self) -> str:
        """What is known of its end beside what its folder says; empty if that is all."""
        with (self.folder / OUTPUT).open("rb") as output:
            output.seek(self.printed)
            said = error_line(output.read().decode("utf-8", errors="replace"))
        if said or not self.process.returncode or progress(self.folder).reason:
            return said if self.process.returncode else ""
        code = self.process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class LocalLauncher(Launcher):
    """Runs cells on this machine, each in a process of its own, several at a time if asked to."""

    def __init__(
        self, n_jobs: int | str = AUTO, cells_per_gpu: int | str = AUTO, most_per_gpu: int = 8
    ) -> None:
        """Keep the settings (``conf/hydra/launcher/local.yaml``).

        Args:
            n_jobs: Cells at the same time; ``auto``: one without GPUs, else as many as the GPUs take.
            cells_per_gpu: Cells that share a GPU; ``auto``: as many as fit, by what the first took.
            most_per_gpu: Upper limit of ``auto``.
        """
        self._settings = {"n_jobs": n_jobs, "cells_per_gpu": cells_per_gpu}
        self._most = most_per_gpu
        self._endings: dict[Path, str] = {}
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's ``Launcher``."""
        self._config, self._context = config, hydra_context

    def at_a_time(self, cells: int) -> int:
        """How many cells would run at the same time.

        Args:
            cells: To be run.

        Returns:
            At least 1; as far as is known before any has run.

        Raises:
            ConfigError: If the settings make no sense.
        """
        return min(self._slots().parallel, cells)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; one that fails does not stop the others.

        Args:
            job_overrides: Of each cell.
            initial_job_idx: Number of the first.

        Returns:
            Of each cell, in their order: its metrics, or what it failed of.

        Raises:
            ConfigError: If the settings make no sense.
        """
        assert self._config is not None
        slots, total = self._slots(), len(job_overrides)
        assert self._context is not None
        cells = compose_cells(self._context, self._config, job_overrides, initial_job_idx)
        jobs = [(each.number, each.overrides, each.folder) for each in cells]
        waiting = deque(jobs)
        log.info("%d to run, %s", total, _at_a_time(min(slots.parallel, total)))
        board = Board(total)
        running: list[_Running] = []
        with interruptible():
            try:
                while waiting or running:
                    while waiting and (taken := slots.take()):
                        running.append(self._start(*waiting.popleft(), *taken, min(slots.parallel, total)))
                    for cell in [each for each in running if each.process.poll() is not None]:
                        running.remove(cell)
                        self._endings[cell.folder] = cell.ending
                        slots.give_back(cell.place, _gpu_memory(cell.folder))
                        took = time.monotonic() - cell.started
                        board.ended(cell.folder, took, min(slots.parallel, total))
                    time.sleep(_PAUSE)
            finally:
                _stop(running)
        return [self._returned(job, folder) for _, job, folder in jobs]

    def _slots(self) -> Slots:
        assert self._config is not None
        trainer = self._config.trainer
        gpus: list[Gpu] = [] if trainer.accelerator == "cpu" else find_gpus()
        devices = trainer.get("devices", 1)
        several = "strategy" in trainer
        each = (len(gpus) if devices in (AUTO, -1, "-1") else int(devices)) if several and gpus else 1
        numbers = {name: _number(name, value) for name, value in self._settings.items()}
        return Slots(gpus, **numbers, gpus_per_cell=each, most_per_gpu=self._most)

    def _start(
        self, number: int, overrides: list[str], folder: Path, place: int, slot: Slot, parallel: int
    ) -> _Running:
        assert self._config is not None
        folder.mkdir(parents=True, exist_ok=True)
        command = cell_command([*self._config.hydra.overrides.hydra, *overrides], folder)
        with (folder / OUTPUT).open("ab") as output:
            printed = output.tell()
            # A session of its own: Ctrl-C reaches this process alone, which then stops the cells in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(slot, parallel),
                start_new_session=True,
            )
        return _Running(number, folder.name, folder, place, process, time.monotonic(), printed)

    def _returned(self, overrides: list[str], folder: Path) -> JobReturn:
        """What became of a cell, from its folder."""
        found = progress(folder)
        done = JobReturn(overrides=overrides, working_dir=str(folder))
        if found.status == FINISHED:
            done.status, done.return_value = JobStatus.COMPLETED, dict(found.record)
        else:
            done.status = JobStatus.FAILED
            done.return_value = DrgradeError(self._endings.get(folder) or found.reason or found.status)
        return done


@dataclass(frozen=True)
class Composed:
    """A cell that is to be launched.

    Attributes:
        number: Of the cell.
        overrides: As the sweeper gave them.
        config: Composed, with Hydra's part.
        folder: The cell's.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path


def compose_cells(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> Iterator[Composed]:
    """Compose cells, which says where each of them lies.

    Args:
        context: Hydra's.
        config: The sweep's.
        job_overrides: Of each cell.
        first: Number of the first.

    Yields:
        The cells, in their order.
    """
    for number, overrides in enumerate(job_overrides, start=first):
        cfg = context.config_loader.load_sweep_config(config, list(overrides))
        OmegaConf.set_struct(cfg, False)
        cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        folder = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
        yield Composed(number, list(overrides), cfg, folder)


class Board:
    """Tells how far a sweep is."""

    def __init__(self, total: int) -> None:
        """Begin.

        Args:
            total: Cells to be run.
        """
        self._total, self._done, self._seconds = total, 0, 0.0

    def ended(self, folder: Path, took: float, parallel: int) -> None:
        """Say what became of a cell, and how long the others will take.

        Args:
            folder: The cell's.
            took: Seconds.
            parallel: Cells at the same time.
        """
        self._done, self._seconds = self._done + 1, self._seconds + took
        found = progress(folder)
        qwk = found.record.get("test/qwk", found.record.get("val/qwk"))
        figure = "" if qwk is None else f"  qwk {qwk:.4f}"
        left = (self._total - self._done) * self._seconds / self._done / parallel
        rest = f", about {duration(left)} left" if self._done < self._total else ""
        log.info(
            "[%d/%d] %s  %s%s  (%s%s)",
            self._done,
            self._total,
            folder.name,
            found.status,
            figure,
            duration(took),
            rest,
        )
        if found.reason and found.status != FINISHED:
            log.info("        %s", " ".join(found.reason.split())[:300])


def _at_a_time(parallel: int) -> str:
    return "one after the other" if parallel == 1 else f"{parallel} at a time"


def _number(name: str, value: int | str | None) -> int | None:
    if value in (None, AUTO):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"hydra.launcher.{name}={value} is not a whole number of at least 1, or auto")
    return value


def _environment(slot: Slot, parallel: int) -> dict[str, str]:
    """The environment of a cell: its GPUs, and its share of the cores."""
    environment = share_of_cores(parallel)
    if slot.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    return environment


def share_of_cores(parallel: int) -> dict[str, str]:
    """This process's environment, as one of several cells gets it.

    Args:
        parallel: Cells at the same time.

    Returns:
        With a limit to the number of threads, unless it has one already.
    """
    environment = dict(os.environ)
    if parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // parallel)))
    return environment


def _cores() -> int:
    """Cores that this process may use: fewer than there are, in a container or a job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_memory(folder: Path) -> int:
    """Bytes of GPU memory that a cell took, or the pre-training that it needs; 0 if not known.

    The encoder may have been there already, but the next cell may have to make its own.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return 0
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    own = int(record.get("peak_memory") or 0) if record.get("machine", {}).get("gpu") else 0
    return max(own, _gpu_memory(Path(record["encoder"]))) if record.get("encoder") else own


def _stop(running: Sequence[_Running]) -> None:
    """Interrupt what still runs, so that it can say so in its folder; kill what does not listen."""
    hear_nothing()
    for cell in running:
        with suppress(ProcessLookupError):  # one has just ended; the others have to hear of it all the same
            os.killpg(cell.process.pid, signal.SIGINT)
    for cell in running:
        try:
            cell.process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(cell.process.pid, signal.SIGKILL)
            cell.process.wait()
