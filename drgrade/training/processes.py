"""Which of several processes this is, before and after Lightning has started the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from drgrade.errors import ConfigError

_ANNOUNCEMENT = "DRGRADE_PRETRAINING"


def is_main_process() -> bool:
    """Whether this process is the first of its run; Lightning, torchrun and SLURM all set the environment."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


@contextmanager
def announced(key: str) -> Iterator[None]:
    """Tell the processes that Lightning starts from here on which encoder is being pre-trained.

    They run the same script from its beginning, and must join the same training instead of looking for its
    result.

    Args:
        key: Key of the encoder.
    """
    os.environ[_ANNOUNCEMENT] = key
    try:
        yield
    finally:
        del os.environ[_ANNOUNCEMENT]


def announcement() -> str | None:
    """Key of the encoder that the main process is pre-training if it started this one for that (once)."""
    return os.environ.pop(_ANNOUNCEMENT, None)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a run's folder; what a killed run held is free again.

    Args:
        folder: The run's folder, made if it is not there.

    Raises:
        ConfigError: If another run is at work in it.
    """
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another process is at work in {folder}: wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()


def wait_for_all() -> None:
    """Wait until every process of the run is here; does nothing for a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
