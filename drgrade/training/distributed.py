"""Processes of one run that torchrun or SLURM has started all at once: which is first, and what it decides.

Lightning starts the further processes of a run by itself, one after the first has begun, and hands them what
the first has decided. torchrun and ``srun`` start all of them side by side, on one machine or many.
"""

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from drgrade.errors import ConfigError, DrgradeError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from omegaconf import DictConfig
    from torch.distributed import Store  # type: ignore[attr-defined]

_APART = 10_000
"""Between the port of our store and that of the process group."""

_number = itertools.count()


def by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def by_slurm() -> bool:
    """Whether SLURM has started this process as one of several of a job step.

    A step of one task is an ordinary process: there, Lightning starts the others itself.
    """
    return not by_torchrun() and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def started_together() -> bool:
    """Whether all processes of the run have been started, so that Lightning must not start any."""
    return by_torchrun() or by_slurm()


def first_of_all() -> bool:
    """Whether this is the first of the processes; ask only where they have been started together."""
    return os.environ["RANK" if by_torchrun() else "SLURM_PROCID"] == "0"


def cluster_environment() -> "ClusterEnvironment":
    """What Lightning has to know of the processes; it would guess otherwise, by what is installed.

    Lightning's own requeueing under SLURM stays off: a run goes on from ``last.ckpt`` with ``resume=auto``,
    and whether a job is requeued is the business of the launcher or of SLURM.

    Returns:
        Lightning's description of the environment.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if by_torchrun():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if by_slurm() else LightningEnvironment()


def check_processes(trainer: "DictConfig") -> None:
    """Refuse several processes for a run of one, and fewer or more than the run is set to have.

    Args:
        trainer: Config of the trainer.

    Raises:
        ConfigError: If each of the processes would do the whole run in the same folder, or they would wait
            for others that nobody starts.
    """
    if not started_together():
        return
    starter, name = ("torchrun", "WORLD_SIZE") if by_torchrun() else ("SLURM", "SLURM_STEP_NUM_TASKS")
    count, nodes = int(os.environ[name]), int(trainer.get("num_nodes", 1))
    if count > 1 and "strategy" not in trainer:
        raise ConfigError(
            f"{starter} has started {count} processes, but the trainer is made for one: use trainer=ddp or "
            "trainer=ddp_cpu, or start one process"
        )
    if isinstance(trainer.devices, int) and trainer.devices * nodes != count:
        raise ConfigError(
            f"{starter} has started {count} processes, but trainer.devices={trainer.devices} on "
            f"trainer.num_nodes={nodes} makes {trainer.devices * nodes}: trainer.devices is the number of "
            "processes of each node"
        )


def refuse_several() -> None:
    """Refuse to be one of several processes, for a command that must be run once.

    Raises:
        ConfigError: If this is one of several.
    """
    if started_together():
        raise ConfigError(
            "a sweep is started once, without torchrun and without srun: it starts the processes of its "
            "cells itself (docs/cluster.md)"
        )


def agree(decision: str | None = None) -> str:
    """The first process decides, and all others get to know it. Every process has to ask, in the same order.

    Args:
        decision: Of the first process; the others' does not count.

    Returns:
        The first one's decision.

    Raises:
        DrgradeError: If the first process is gone.
    """
    from torch.distributed import DistError

    key = str(next(_number))
    try:
        if first_of_all():
            assert decision is not None
            _store().set(key, decision)
            return decision
        return str(_store().get(key).decode())
    except DistError as error:
        raise DrgradeError(
            f"the first process of this run does not answer; see its output ({error})"
        ) from error


@functools.cache
def _store() -> "Store":
    """A table that all processes of the run can read.

    torchrun's agent keeps one. Under SLURM the first process does, until it ends.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    environment = cluster_environment()
    address, port = environment.main_address, environment.main_port
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = TCPStore(address, port, is_master=False)
    else:
        port += _APART if port + _APART < 65_536 else -_APART
        store = TCPStore(address, port, is_master=first_of_all(), wait_for_workers=False)
    store.set_timeout(timedelta(days=365))  # another run may be pre-training what this one needs
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"drgrade/{attempt}", store)


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
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
