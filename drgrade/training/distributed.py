"""Processes of a distributed run: their count, messages from the first one, and the lock of the run's folder.

Lightning starts the further processes of a run itself, after the first process has begun, and passes them its
environment. torchrun and ``srun`` start all processes at once, on one machine or several.
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

_PORT_OFFSET = 10_000
"""Offset between the port of the process group and that of the key-value store."""

_LOCK_SECONDS = 30.0
"""Time in which an interrupted run ends; loader processes of a killed one hold its lock for some seconds."""

_PRETRAINING_KEY = "DRGRADE_PRETRAINING"

_message_number = itertools.count()


def started_by_torchrun() -> bool:
    """Return True if torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_slurm() -> bool:
    """Return True if SLURM has started several processes; in a step of one task Lightning starts them."""
    return not started_by_torchrun() and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def started_together() -> bool:
    """Return True if all processes of the run have been started, so that Lightning must not start any."""
    return started_by_torchrun() or started_by_slurm()


def is_main_process() -> bool:
    """Return True in the first process of a run; Lightning, torchrun and SLURM set the environment."""
    if started_together():
        return os.environ["RANK" if started_by_torchrun() else "SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def cluster_environment() -> "ClusterEnvironment":
    """Return Lightning's description of the environment, which it would otherwise guess.

    Lightning's automatic requeueing under SLURM is off: ``resume=auto`` resumes from ``last.ckpt``, and the
    launcher or SLURM decides whether a job is requeued.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if started_by_torchrun():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if started_by_slurm() else LightningEnvironment()


def check_process_count(trainer: "DictConfig") -> None:
    """Compare the number of processes that torchrun or SLURM has started with the trainer's.

    Raises:
        ConfigError: If several processes would each do a whole run in one folder, or if the processes would
            wait for others that do not exist.
    """
    if not started_together():
        return
    starter, variable = (
        ("torchrun", "WORLD_SIZE") if started_by_torchrun() else ("SLURM", "SLURM_STEP_NUM_TASKS")
    )
    count, nodes = int(os.environ[variable]), int(trainer.get("num_nodes", 1))
    if count > 1 and "strategy" not in trainer:
        raise ConfigError(
            f"{starter} has started {count} processes, but the trainer is configured for one: use "
            "trainer=ddp or trainer=ddp_cpu, or start one process"
        )
    if isinstance(trainer.devices, int) and trainer.devices * nodes != count:
        raise ConfigError(
            f"{starter} has started {count} processes, but trainer.devices={trainer.devices} on "
            f"trainer.num_nodes={nodes} makes {trainer.devices * nodes}: trainer.devices is the number of "
            "processes of each node"
        )


def require_single_process() -> None:
    """Raise ConfigError if torchrun or SLURM has started several processes of a command."""
    if started_together():
        raise ConfigError(
            "a sweep is started once, without torchrun and without srun: it starts the processes of its "
            "cells itself (docs/cluster.md)"
        )


def broadcast(message: str | None = None) -> str:
    """Return the message of the first process; every process must call, in the same order.

    Raises:
        DrgradeError: If the first process has ended.
    """
    from torch.distributed import DistError

    key = str(next(_message_number))
    try:
        if is_main_process():
            assert message is not None
            _store().set(key, message)
            return message
        return str(_store().get(key).decode())
    except DistError as error:
        raise DrgradeError(
            f"the first process of this run does not answer; see its output ({error})"
        ) from error


@functools.cache
def _store() -> "Store":
    """Connect to a key-value store that all processes of the run can read.

    torchrun's agent hosts one. Under SLURM the first process does, until it ends.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    environment = cluster_environment()
    address, port = environment.main_address, environment.main_port
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = TCPStore(address, port, is_master=False)
    else:
        port += _PORT_OFFSET if port + _PORT_OFFSET < 65_536 else -_PORT_OFFSET
        store = TCPStore(address, port, is_master=is_main_process(), wait_for_workers=False)
    store.set_timeout(timedelta(days=365))  # another run may be pre-training the encoder of this one
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"drgrade/{attempt}", store)


@contextmanager
def announce_pretraining(key: str) -> Iterator[None]:
    """Tell the other processes of the run that an encoder is being pre-trained, so that they join.

    Processes that Lightning starts run the same script from its beginning and read the key from their
    environment; processes that were started together wait for it (:func:`announced_pretraining`).
    """
    if started_together():
        broadcast(key)
        yield
        return
    os.environ[_PRETRAINING_KEY] = key
    try:
        yield
    finally:
        del os.environ[_PRETRAINING_KEY]


def announce_no_pretraining() -> None:
    """Tell the other processes of the run that no encoder is pre-trained."""
    if started_together():
        broadcast("")


def announced_pretraining() -> str | None:
    """Return the key of the encoder that the main process is pre-training; None if there is none.

    The key is returned once: a later call belongs to a later training.
    """
    if started_together():
        return broadcast() or None
    return os.environ.pop(_PRETRAINING_KEY, None)


@contextmanager
def lock_run_dir(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a run's folder against a second run; the lock of a killed process is free again.

    Args:
        folder: The run's folder.
        wait: Wait up to 30 s for an earlier process, which may just have been told to end.

    Raises:
        ConfigError: If another process holds the lock.
    """
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_LOCK_SECONDS if wait else 0)
    except Timeout as error:
        raise ConfigError(f"another process is using {folder}: wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()


def wait_for_all() -> None:
    """Wait until every process of the run has called; return at once in a run of one process."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
