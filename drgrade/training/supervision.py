"""End the processes of a run together: after a signal, and when one of them has died."""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl

from drgrade.errors import DrgradeError
from drgrade.processes import SIGNALS, count_interruptions, is_interruptible, parent_environment
from drgrade.training.distributed import is_main_process, started_together

_LIMIT = 15.0
"""Seconds that an interrupted process has; a call of NCCL or gloo may wait for a process that is dead."""

_GRACE = 5.0
"""Seconds that the process has to notice by itself that another one has died."""

_launchers: list[object] = []
"""Those of Lightning, which start the further processes of a run."""

_started: list[subprocess.Popen[bytes]] = []
"""The further processes of this run."""


def supervise(trainer: pl.Trainer) -> None:
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
