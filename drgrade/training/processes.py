"""Which of several processes this is, before and after Lightning has started the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from drgrade.errors import ConfigError
from drgrade.training.together import agree, first_of_all, started_together

_ANNOUNCEMENT = "DRGRADE_PRETRAINING"


def is_main_process() -> bool:
    """Whether this process is the first of its run; Lightning, torchrun and SLURM all set the environment."""
    if started_together():
        return first_of_all()
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


@contextmanager
def announced(key: str) -> Iterator[None]:
    """Tell the other processes of the run which encoder is being pre-trained from here on.

    They must join the same training instead of looking for its result. Those that Lightning starts run the
    same script from its beginning and find the key in their environment; those that have been started
    together with this one are waiting for it (:func:`announcement`).

    Args:
        key: Key of the encoder.
    """
    if started_together():
        agree(key)
        yield
        return
    os.environ[_ANNOUNCEMENT] = key
    try:
        yield
    finally:
        del os.environ[_ANNOUNCEMENT]


def announce_none() -> None:
    """Tell the other processes of the run that nothing is to be pre-trained."""
    if started_together():
        agree("")


def announcement() -> str | None:
    """Key of the encoder that the main process is pre-training, if this process is to join it (once)."""
    if started_together():
        return agree() or None
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
