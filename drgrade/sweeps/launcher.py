"""Hydra launcher that runs each cell as a process on this machine, and the allocation of GPUs to cells."""

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from drgrade.errors import ConfigError, DrgradeError
from drgrade.processes import interruptible, start, stop
from drgrade.progress import format_duration
from drgrade.runs.run_dir import read_provenance
from drgrade.sweeps.cells import OUTPUT, cell_command, error_line, progress

log = logging.getLogger("drgrade")

AUTO = "auto"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0
"""Time that an interrupted cell has to write its state."""

_CONTEXT = 600 * 2**20
"""Bytes of GPU memory that CUDA takes per process beside what torch reserves."""

_SHARE = 0.9
"""Fraction of a GPU's memory that is allocated; peaks of several processes fragment the rest."""


@dataclass(frozen=True)
class Gpu:
    """Name as in ``CUDA_VISIBLE_DEVICES`` and memory in bytes, 0 if unknown."""

    name: str
    memory: int


def find_gpus() -> list[Gpu]:
    """List the NVIDIA GPUs that this process may use, in the order of their numbers.

    CUDA is not initialised. Without a driver the list is empty.

    Raises:
        ConfigError: If the output of nvidia-smi cannot be parsed.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [] if done.returncode else visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listed: str, allowed: str | None) -> list[Gpu]:
    """Parse the output of nvidia-smi and keep the GPUs that the environment allows.

    Args:
        listed: Lines of index, UUID and memory in MiB, separated by commas.
        allowed: ``CUDA_VISIBLE_DEVICES``, whose order the result has; None: all.

    Raises:
        ConfigError: If a line cannot be parsed.
    """
    gpus: dict[str, Gpu] = {}
    for line in listed.strip().splitlines():
        try:
            index, uuid, mebibytes = (part.strip() for part in line.split(","))
            gpus[index] = gpus[uuid] = Gpu(index, int(mebibytes) * 2**20)
        except ValueError as error:
            raise ConfigError(
                f"nvidia-smi printed {line!r}, which cannot be parsed; set hydra.launcher.n_jobs"
            ) from error
    if allowed is None:
        return list(dict.fromkeys(gpus.values()))
    names = [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    # A MIG slice or an unlisted device is passed on by its name; its memory is unknown.
    return [gpus.get(name, Gpu(name, 0)) for name in names]


class GpuPool:
    """Places for cells that run at the same time.

    Without GPUs there are ``n_jobs`` places. With GPUs a place is one GPU, or as many as a cell has devices.

    Args:
        gpus: GPUs to allocate.
        n_jobs: Maximum number of cells at the same time; None: one without GPUs, else no maximum.
        cells_per_gpu: Cells that share a GPU; None: one until a finished cell has reported its peak memory,
            from then on as many as fit.
        gpus_per_cell: Devices of each cell.
        most_per_gpu: Upper limit of the cells that share a GPU if ``cells_per_gpu`` is None.

    Raises:
        ConfigError: If a cell needs more GPUs than there are.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        n_jobs: int | None = None,
        cells_per_gpu: int | None = None,
        gpus_per_cell: int = 1,
        most_per_gpu: int = 8,
    ) -> None:
        if gpus and gpus_per_cell > len(gpus):
            raise ConfigError(
                f"trainer.devices={gpus_per_cell}, but {len(gpus)} GPUs are available (CUDA_VISIBLE_DEVICES)"
            )
        self._n_jobs = n_jobs or (None if gpus else 1)
        self._fixed, self._most = cells_per_gpu, most_per_gpu
        self._fit: int | None = None
        self._busy = 0
        starts = range(0, len(gpus) - gpus_per_cell + 1, gpus_per_cell) if gpus else ()
        self._sets = [tuple(gpus[first : first + gpus_per_cell]) for first in starts]
        self._load = [0] * len(self._sets)

    @property
    def parallel(self) -> int:
        """Number of cells that can run at the same time, as far as it is known."""
        places = len(self._sets) * self._each if self._sets else (self._n_jobs or 1)
        return min(places, self._n_jobs or places)

    @property
    def _each(self) -> int:
        return self._fixed or self._fit or 1

    def take(self) -> tuple[int, tuple[str, ...]] | None:
        """Take the least loaded place.

        Returns:
            Number of the place and names of its GPUs (empty without GPUs); None if no place is free.
        """
        if self._n_jobs is not None and self._busy >= self._n_jobs:
            return None
        if not self._sets:
            self._busy += 1
            return -1, ()
        number = self._load.index(min(self._load))
        if self._load[number] >= self._each:
            return None
        self._busy += 1
        self._load[number] += 1
        return number, tuple(gpu.name for gpu in self._sets[number])

    def give_back(self, number: int, peak_memory: int = 0) -> None:
        """Return a place, and update the number of cells that fit on a GPU.

        Args:
            number: Number from :meth:`take`.
            peak_memory: Bytes of GPU memory that the cell used; 0 if unknown.
        """
        self._busy -= 1
        if number < 0:
            return
        self._load[number] -= 1
        if peak_memory > 0:
            memory = min(gpu.memory for gpus in self._sets for gpu in gpus)
            fit = int(_SHARE * memory // (peak_memory + _CONTEXT))
            # A larger cell may follow a small one, so this number only decreases once it is known.
            self._fit = max(1, min(fit, self._fit or self._most))


class MissingLauncher(Launcher):
    """Raises an error that names the package of a Hydra plugin that is not installed (``needs``)."""

    needs = ""

    def __init__(self, **settings: Any) -> None:
        raise ConfigError(f"this launcher needs a package that is not installed: pip install {self.needs}")

    def setup(self, **arguments: Any) -> NoReturn:
        """Unreachable; required by the base class."""
        raise NotImplementedError

    def launch(self, *arguments: Any) -> NoReturn:
        """Unreachable; required by the base class."""
        raise NotImplementedError


@dataclass(frozen=True)
class ComposedCell:
    """A cell that is ready to be launched; ``config`` includes the ``hydra`` node."""

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
    """Runs cells on this machine, each in its own process (``conf/hydra/launcher/local.yaml``).

    Args:
        n_jobs: Cells at the same time; ``auto``: one without GPUs, else as many as fit on the GPUs.
        cells_per_gpu: Cells that share a GPU; ``auto``: as many as fit, estimated from the first cell.
        most_per_gpu: Upper limit of ``auto``.
    """

    def __init__(
        self, n_jobs: int | str = AUTO, cells_per_gpu: int | str = AUTO, most_per_gpu: int = 8
    ) -> None:
        self._settings = {"n_jobs": n_jobs, "cells_per_gpu": cells_per_gpu}
        self._most = most_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.launcher.Launcher`."""
        self._config, self._context = config, hydra_context

    def parallel(self, cells: int) -> int:
        """Return how many of ``cells`` cells would run at the same time."""
        return min(self._pool().parallel, cells)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a failure does not stop the others.

        Raises:
            ConfigError: If a setting is invalid.
        """
        pool, total = self._pool(), len(job_overrides)
        cells = list(compose_cells(self._context, self._config, job_overrides, initial_job_idx))
        waiting, running, errors = deque(cells), list[_RunningCell](), dict[Path, str]()
        parallel = min(pool.parallel, total)
        log.info("%d to run, %s", total, "one after the other" if parallel == 1 else f"{parallel} at a time")
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
        result = progress(folder)
        qwk = result.record.get("test/qwk", result.record.get("val/qwk"))
        figure = "" if qwk is None else f"  qwk {qwk:.4f}"
        left = (self._total - self._done) * self._seconds / self._done / parallel
        rest = f", about {format_duration(left)} left" if self._done < self._total else ""
        line = f"{folder.name}  {result.status}{figure}  ({format_duration(seconds)}{rest})"
        log.info("[%d/%d] %s", self._done, self._total, line)
        if result.reason and not result.is_finished:
            log.info("        %s", " ".join(result.reason.split())[:300])


def cell_environment(parallel: int, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of one of ``parallel`` cells, with its GPUs and its share of the cores.

    ``OMP_NUM_THREADS`` stays if it is set; ``CUDA_VISIBLE_DEVICES`` stays without ``gpus``.
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
    record = read_provenance(folder)
    encoder = read_provenance(Path(record["encoder"])) if record.get("encoder") else {}
    return max(_gpu_memory(record), _gpu_memory(encoder))


def _gpu_memory(record: Mapping[str, Any]) -> int:
    machine = record.get("machine")
    return int(record.get("peak_memory") or 0) if isinstance(machine, dict) and machine.get("gpu") else 0


def _job_return(cell: ComposedCell, error: str) -> JobReturn:
    result = progress(cell.folder)
    done = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder))
    if result.is_finished:
        done.status, done.return_value = JobStatus.COMPLETED, dict(result.record)
    else:
        done.status = JobStatus.FAILED
        done.return_value = DrgradeError(error or result.reason or result.status)
    return done


def _number(name: str, value: int | str | None) -> int | None:
    if value in (None, AUTO):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"hydra.launcher.{name}={value} is not a whole number of at least 1, or auto")
    return value
