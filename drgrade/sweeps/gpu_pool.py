"""Allocation of this machine's GPUs to cells that run at the same time."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from drgrade.errors import ConfigError

_CONTEXT = 600 * 2**20
"""Bytes of GPU memory that CUDA takes per process beside what torch reserves."""

_SHARE = 0.9
"""Fraction of a GPU's memory that is allocated; peaks of several processes fragment the rest."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: Name as in ``CUDA_VISIBLE_DEVICES``.
        memory: Size of its memory in bytes; 0 if unknown.
    """

    name: str
    memory: int


def find_gpus() -> list[Gpu]:
    """List the NVIDIA GPUs that this process may use, without initialising CUDA.

    Returns:
        GPUs in the order of their numbers; empty without a driver.

    Raises:
        ConfigError: If the output of nvidia-smi cannot be parsed.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    if done.returncode:
        return []
    return visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listed: str, allowed: str | None) -> list[Gpu]:
    """Parse the output of nvidia-smi and keep the GPUs that the environment allows.

    Args:
        listed: Lines of index, UUID and memory in MiB, separated by commas.
        allowed: ``CUDA_VISIBLE_DEVICES``; None: all.

    Returns:
        The GPUs, in the order of ``allowed`` if it is given.

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
    Several cells share a GPU if ``cells_per_gpu`` is above 1. If it is None, one cell runs per GPU until a
    finished cell has reported its peak memory; from then on as many as fit.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        n_jobs: int | None = None,
        cells_per_gpu: int | None = None,
        gpus_per_cell: int = 1,
        most_per_gpu: int = 8,
    ) -> None:
        """Divide the GPUs into places.

        Args:
            gpus: GPUs to allocate.
            n_jobs: Maximum number of cells at the same time; None: one without GPUs, else no maximum.
            cells_per_gpu: Cells that share a GPU; None: as many as fit.
            gpus_per_cell: Devices of each cell.
            most_per_gpu: Upper limit of the cells that share a GPU if ``cells_per_gpu`` is None.

        Raises:
            ConfigError: If a cell needs more GPUs than there are.
        """
        if gpus and gpus_per_cell > len(gpus):
            raise ConfigError(
                f"trainer.devices={gpus_per_cell}, but {len(gpus)} GPUs are available (CUDA_VISIBLE_DEVICES)"
            )
        self._n_jobs = n_jobs or (None if gpus else 1)
        self._fixed = cells_per_gpu
        self._most = most_per_gpu
        self._each = cells_per_gpu or 1
        self._fit: int | None = None
        self._busy = 0
        starts = range(0, len(gpus) - gpus_per_cell + 1, gpus_per_cell)
        self._sets = [tuple(gpus[start : start + gpus_per_cell]) for start in starts] if gpus else []
        self._load = dict.fromkeys(range(len(self._sets)), 0)

    @property
    def parallel(self) -> int:
        """Number of cells that can run at the same time, as far as it is known."""
        places = len(self._sets) * self._each if self._sets else (self._n_jobs or 1)
        return min(places, self._n_jobs or places)

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
        number = min(self._load, key=lambda each: self._load[each])
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
        if self._fixed is None and peak_memory > 0:
            memory = min(gpu.memory for gpus in self._sets for gpu in gpus)
            fit = int(_SHARE * memory // (peak_memory + _CONTEXT))
            # A larger cell may follow a small one, so this number only decreases once it is known.
            self._fit = max(1, min(fit, self._most if self._fit is None else self._fit))
            self._each = self._fit
