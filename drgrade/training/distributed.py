"""Processes of a distributed run: count, messages from the first one, lock of the folder, and supervision.

Lightning starts the further processes of a run itself, after the first process has begun, and passes them its
environment. torchrun and ``srun`` start all processes at once, on one machine or several.
"""

import functools
import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from drgrade.errors import ConfigError, DrgradeError
from drgrade.processes import SIGNALS, count_interruptions, is_interruptible, parent_environment

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from omegaconf import DictConfig
    from torch.distributed import Store  # type: ignore[attr-defined]

_PORT_OFFSET = 10_000
"""Offset between the port of the process group and that of the key-value store."""

_LOCK_SECONDS = 120.0
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
        wait: Wait up to 120 s for an earlier process, which may just have been told to end.

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


_LIMIT = 15.0
"""Seconds that an interrupted process has; a call of NCCL or gloo may wait for a process that is dead."""

_GRACE = 5.0
"""Seconds that the process has to notice by itself that another one has died."""

_launchers: list[object] = []
"""Those of Lightning, which start the further processes of a run."""

_started: list[subprocess.Popen[bytes]] = []
"""The further processes of this run."""


def supervise(trainer: "pl.Trainer") -> None:
    """Replace Lightning's reactions to signals and to dead processes by those of :func:`supervised`.

    Lightning answers SIGTERM with a broadcast, which hangs if not all processes are signalled, and ends with
    exit status 0; and if a process has died, it kills this one before the outcome is written.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    _launchers.append(trainer.strategy.launcher)


@contextmanager
def supervised(record: Callable[[BaseException], None]) -> Iterator[None]:
    """Watch for signals and dead processes while the main process of a run works.

    After a signal the main process ends within 15 s, in whatever call it waits, and all others end with it.

    Args:
        record: Writes the outcome of the run. It is called in a thread of its own as soon as a signal or a
            dead process is noticed.

    Raises:
        KeyboardInterrupt: If a signal has ended any process of the run.
        DrgradeError: If another process of the run has died.
    """
    if not is_main_process() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = count_interruptions()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    outer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.environ |= (parent := parent_environment(signal.SIGKILL))
    thread = threading.Thread(target=_watch, args=(reader, record), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if count_interruptions() > before and isinstance(error, Exception):
            raise KeyboardInterrupt from error
        if isinstance(error, RuntimeError):
            _raise_cause(error)
        raise
    finally:
        for name in parent:
            os.environ.pop(name, None)
        signal.set_wakeup_fd(outer)
        writer.close()
        thread.join()
        reader.close()


def _watch(reader: socket.socket, record: Callable[[BaseException], None]) -> None:
    """Record signals and dead processes until the other end of the socket is closed."""
    end, status, outcome = float("inf"), 1, BaseException()
    while True:
        received = reader.recv(64) if select.select([reader], [], [], 0.2)[0] else None
        if received == b"":
            return
        for number in SIGNALS:
            if number in (received or b"") and not isinstance(outcome, KeyboardInterrupt):
                record(outcome := KeyboardInterrupt())
                if is_interruptible(number):
                    end, status = time.monotonic() + _LIMIT, 128 + number
        _adopt()
        if end == float("inf") and (died := _find_dead()):
            end, outcome = time.monotonic() + _GRACE, DrgradeError(_describe(*died))
            if -died[1] in SIGNALS:
                os.kill(os.getpid(), -died[1])
        if time.monotonic() > end:
            record(outcome)
            _kill_started()
            os._exit(status)


def _adopt() -> None:
    """Take the started processes over from Lightning, whose observer would kill this one."""
    for launcher in _launchers:
        started = getattr(launcher, "procs", [])
        while started:
            _started.append(started.pop(0))


def _find_dead() -> tuple[int, int] | None:
    """Return rank and return code of a process that has failed."""
    codes = enumerate((process.poll() for process in _started), start=1)
    return next(((rank, code) for rank, code in codes if code), None)


def _describe(rank: int, code: int) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    return f"process {rank} of this run {how}; its messages are above. resume=FOLDER continues the run"


def _raise_cause(error: RuntimeError) -> None:
    """Raise what has ended another process, if that is the cause of an error of this one.

    A collective fails as soon as another process has ended, and a loader process may have been killed.

    Raises:
        KeyboardInterrupt: If a signal ended the other process.
        DrgradeError: If it died otherwise.
    """
    import torch

    if str(error).startswith("DataLoader worker"):
        raise DrgradeError(f"a process that loads photographs has died (out of memory?): {error}") from error
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    end = time.monotonic() + 3
    while time.monotonic() < end:
        time.sleep(0.1)  # here a signal is raised, that of torchrun for example
        _adopt()
        if (died := _find_dead()) and -died[1] not in SIGNALS:
            raise DrgradeError(_describe(*died)) from error
    if started_together():
        raise DrgradeError(f"another process of this run has ended; see its output ({error})") from error


def _kill_started() -> None:
    for process in _started:
        process.kill()
