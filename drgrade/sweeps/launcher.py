"""Hydra launcher that runs each cell as a process on this machine."""

import json
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from drgrade.errors import ConfigError, DrgradeError
from drgrade.progress import format_duration
from drgrade.runs.run_dir import PROVENANCE
from drgrade.sweeps.cells import FINISHED, OUTPUT, error_line, progress
from drgrade.sweeps.gpu_pool import Gpu, GpuPool, find_gpus
from drgrade.sweeps.overrides import cell_command
from drgrade.sweeps.subprocesses import interruptible, start, stop

log = logging.getLogger("drgrade")

AUTO = "auto"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0
"""Time that an interrupted cell has to write its state."""


@dataclass(frozen=True)
class ComposedCell:
    """A cell that is ready to be launched.

    Attributes:
        overrides: Overrides from the sweeper.
        config: Composed config, including the ``hydra`` node.
        folder: The cell's folder.
    """

    overrides: list[str]
    config: DictConfig
    folder: Path


@dataclass
class _RunningCell:
    cell: ComposedCell
    place: int
    process: subprocess.Popen[bytes]
    started: float
    log_start: int
    """Bytes of ``output.log`` written by earlier attempts."""

    def error(self) -> str:
        """Return the error of the ended process; empty if its folder already contains the reason."""
        code = self.process.returncode
        if not code:
            return ""
        with (self.cell.folder / OUTPUT).open("rb") as output:
            output.seek(self.log_start)
            message = error_line(output.read().decode("utf-8", errors="replace"))
        if message or progress(self.cell.folder).reason:
            return message
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class LocalLauncher(Launcher):
    """Runs cells on this machine, each in its own process (``conf/hydra/launcher/local.yaml``)."""

    def __init__(
        self, n_jobs: int | str = AUTO, cells_per_gpu: int | str = AUTO, most_per_gpu: int = 8
    ) -> None:
        """Store the settings.

        Args:
            n_jobs: Cells at the same time; ``auto``: one without GPUs, else as many as the GPUs take.
            cells_per_gpu: Cells that share a GPU; ``auto``: as many as fit, estimated from the first cell.
            most_per_gpu: Upper limit of ``auto``.
        """
        self._settings = {"n_jobs": n_jobs, "cells_per_gpu": cells_per_gpu}
        self._most = most_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.launcher.Launcher`."""
        self._config, self._context = config, hydra_context

    def parallel(self, cells: int) -> int:
        """Return how many of ``cells`` cells would run at the same time.

        Raises:
            ConfigError: If a setting is invalid.
        """
        return min(self._pool().parallel, cells)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a failure does not stop the others.

        See :class:`hydra.plugins.launcher.Launcher`.

        Raises:
            ConfigError: If a setting is invalid.
        """
        pool, total = self._pool(), len(job_overrides)
        cells = list(compose_cells(self._context, self._config, job_overrides, initial_job_idx))
        waiting, running, errors = deque(cells), list[_RunningCell](), dict[Path, str]()
        log.info("%d to run, %s", total, _at_a_time(min(pool.parallel, total)))
        progress_log = ProgressLog(total)
        with interruptible():
            try:
                while waiting or running:
                    while waiting and (taken := pool.take()):
                        running.append(self._start(waiting.popleft(), *taken, min(pool.parallel, total)))
                    for each in [each for each in running if each.process.poll() is not None]:
                        running.remove(each)
                        folder = each.cell.folder
                        errors[folder] = each.error()
                        pool.give_back(each.place, peak_gpu_memory(folder))
                        seconds = time.monotonic() - each.started
                        progress_log.add(folder, seconds, min(pool.parallel, total))
                    time.sleep(_POLL_SECONDS)
            finally:
                stop([each.process for each in running], _STOP_SECONDS)
        return [_job_return(each, errors[each.folder]) for each in cells]

    def _pool(self) -> GpuPool:
        trainer = self._config.trainer
        gpus: list[Gpu] = [] if trainer.accelerator == "cpu" else find_gpus()
        devices = trainer.get("devices", 1)
        several = "strategy" in trainer
        each = (len(gpus) if devices in (AUTO, -1, "-1") else int(devices)) if several and gpus else 1
        numbers = {name: _number(name, value) for name, value in self._settings.items()}
        return GpuPool(gpus, **numbers, gpus_per_cell=each, most_per_gpu=self._most)

    def _start(self, cell: ComposedCell, place: int, gpus: tuple[str, ...], parallel: int) -> _RunningCell:
        cell.folder.mkdir(parents=True, exist_ok=True)
        command = cell_command([*self._config.hydra.overrides.hydra, *cell.overrides], cell.folder)
        with (cell.folder / OUTPUT).open("ab") as output:
            log_start = output.tell()
            process = start(command, output, cell_environment(parallel, gpus))
        return _RunningCell(cell, place, process, time.monotonic(), log_start)


def compose_cells(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> Iterator[ComposedCell]:
    """Compose the configs of cells, which contain their folders; cells are numbered from ``first``."""
    for number, overrides in enumerate(job_overrides, start=first):
        cfg = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        folder = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
        yield ComposedCell(list(overrides), cfg, folder)


class ProgressLog:
    """Logs each cell that ends, and extrapolates the remaining time from the cells so far."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._seconds = total, 0, 0.0

    def add(self, folder: Path, seconds: float, parallel: int) -> None:
        """Log the result of a cell that took ``seconds``, and the remaining time."""
        self._done, self._seconds = self._done + 1, self._seconds + seconds
        found = progress(folder)
        qwk = found.record.get("test/qwk", found.record.get("val/qwk"))
        figure = "" if qwk is None else f"  qwk {qwk:.4f}"
        left = (self._total - self._done) * self._seconds / self._done / parallel
        rest = f", about {format_duration(left)} left" if self._done < self._total else ""
        log.info(
            "[%d/%d] %s  %s%s  (%s%s)",
            self._done,
            self._total,
            folder.name,
            found.status,
            figure,
            format_duration(seconds),
            rest,
        )
        if found.reason and found.status != FINISHED:
            log.info("        %s", " ".join(found.reason.split())[:300])


def cell_environment(parallel: int, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return this process's environment with the share of GPUs and cores of one cell.

    Args:
        parallel: Number of cells that run at the same time.
        gpus: Names of the cell's GPUs; empty: no restriction.

    Returns:
        Environment with ``CUDA_VISIBLE_DEVICES`` and, unless already set, ``OMP_NUM_THREADS``.
    """
    environment = dict(os.environ)
    if parallel > 1:
        # sched_getaffinity respects the limits of a container or a job.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // parallel)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


def peak_gpu_memory(folder: Path) -> int:
    """Return the peak GPU memory of a run, or of the pre-training of its encoder if that is larger, in bytes.

    The encoder may have existed already, but the next cell may have to pre-train its own. 0 if unknown.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return 0
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    own = int(record.get("peak_memory") or 0) if record.get("machine", {}).get("gpu") else 0
    return max(own, peak_gpu_memory(Path(record["encoder"]))) if record.get("encoder") else own


def _job_return(cell: ComposedCell, error: str) -> JobReturn:
    found = progress(cell.folder)
    done = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder))
    if found.status == FINISHED:
        done.status, done.return_value = JobStatus.COMPLETED, dict(found.record)
    else:
        done.status = JobStatus.FAILED
        done.return_value = DrgradeError(error or found.reason or found.status)
    return done


def _at_a_time(parallel: int) -> str:
    return "one after the other" if parallel == 1 else f"{parallel} at a time"


def _number(name: str, value: int | str | None) -> int | None:
    if value in (None, AUTO):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"hydra.launcher.{name}={value} is not a whole number of at least 1, or auto")
    return value
