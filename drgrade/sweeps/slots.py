"""Places in which cells can run at the same time on this machine."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from drgrade.errors import ConfigError

_CONTEXT = 600 * 2**20
"""Bytes that CUDA takes per process beside what torch reserves."""

_SHARE = 0.9
"""Of a GPU's memory that is given out: two cells do not peak in the same shape twice."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As ``CUDA_VISIBLE_DEVICES`` has it.
        memory: Bytes.
    """

    name: str
    memory: int


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use, without starting CUDA in it.

    Returns:
        In the order of their numbers; empty where there is no driver.

    Raises:
        ConfigError: If the driver's tool answers what cannot be read.
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
    """Read what nvidia-smi lists, and keep what the environment allows.

    Args:
        listed: Lines of index, UUID and MiB, with commas.
        allowed: ``CUDA_VISIBLE_DEVICES``; None: all.

    Returns:
        The GPUs, in the order of ``allowed`` if it is given.

    Raises:
        ConfigError: If a line, or ``allowed``, cannot be read.
    """
    gpus: dict[str, Gpu] = {}
    for line in listed.strip().splitlines():
        try:
            index, uuid, mebibytes = (part.strip() for part in line.split(","))
            gpus[index] = gpus[uuid] = Gpu(index, int(mebibytes) * 2**20)
        except ValueError as error:
            raise ConfigError(
                f"nvidia-smi lists {line!r}, which cannot be read; set hydra.launcher.n_jobs"
            ) from error
    if allowed is None:
        return list(dict.fromkeys(gpus.values()))
    names = [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    # A MIG slice or an unlisted device is handed on by its name; its memory is not known.
    return [gpus.get(name, Gpu(name, 0)) for name in names]


@dataclass
class Slot:
    """A place for one cell.

    Attributes:
        gpus: Names of its GPUs; empty: it has none, or takes what it finds.
    """

    gpus: tuple[str, ...]


class Slots:
    """Shares out places for cells.

    Without GPUs there are ``n_jobs`` places. With GPUs a place is one GPU, or as many as a cell has devices;
    several cells share one if they are allowed to: a fixed number, or, with ``auto``, as many as fit by the
    memory that finished cells took; until one has told, a GPU holds one.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        n_jobs: int | None = None,
        cells_per_gpu: int | None = None,
        gpus_per_cell: int = 1,
        most_per_gpu: int = 8,
    ) -> None:
        """Plan the places.

        Args:
            gpus: To be shared out.
            n_jobs: Cells at the same time; None: one without GPUs, else as many as the GPUs take.
            cells_per_gpu: On one GPU; None: as many as fit.
            gpus_per_cell: Devices of each cell.
            most_per_gpu: Upper limit of what fits, so that the processor is not swamped.

        Raises:
            ConfigError: If a cell wants more GPUs than there are.
        """
        if gpus and gpus_per_cell > len(gpus):
            raise ConfigError(
                f"trainer.devices={gpus_per_cell}, but {len(gpus)} GPUs are there (CUDA_VISIBLE_DEVICES)"
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
        """Cells that can run at the same time, as far as is known by now."""
        places = len(self._sets) * self._each if self._sets else (self._n_jobs or 1)
        return min(places, self._n_jobs or places)

    def take(self) -> tuple[int, Slot] | None:
        """Take the least loaded place.

        Returns:
            Its number, to give it back, and the place; None if none is free.
        """
        if self._n_jobs is not None and self._busy >= self._n_jobs:
            return None
        if not self._sets:
            self._busy += 1
            return -1, Slot(())
        number = min(self._load, key=lambda each: self._load[each])
        if self._load[number] >= self._each:
            return None
        self._busy += 1
        self._load[number] += 1
        return number, Slot(tuple(gpu.name for gpu in self._sets[number]))

    def give_back(self, number: int, peak_memory: int = 0) -> None:
        """Give a place back, and learn from what its cell took.

        Args:
            number: As :meth:`take` gave it.
            peak_memory: Bytes of GPU memory that the cell took; 0 if not known.
        """
        self._busy -= 1
        if number < 0:
            return
        self._load[number] -= 1
        if self._fixed is None and peak_memory > 0:
            memory = min(gpu.memory for gpus in self._sets for gpu in gpus)
            fit = int(_SHARE * memory // (peak_memory + _CONTEXT))
            # A larger cell may come later: what fits only ever shrinks once it has been told.
            self._fit = max(1, min(fit, self._most if self._fit is None else self._fit))
            self._each = self._fit
