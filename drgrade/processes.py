"""Signals that end this process, and child processes that end with it."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, NoReturn

from drgrade.progress import say

SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
"""Signals that interrupt a command."""

_PARENT = "DRGRADE_PARENT"
"""Variable with the number of the parent process, and of the signal that the child gets when it has ended."""

_received: list[tuple[int, float]] = []
"""Signals that have interrupted this process, with the times at which they did."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt; :func:`exit_interrupted` tells which.

    Signals that are ignored (``nohup``) and handlers of other programs (submitit's) stay. Outside the main
    thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {each: handler for each in SIGNALS if (handler := signal.getsignal(each)) in default}
    if before:
        _received.clear()
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_interruptible(number: int) -> bool:
    """Return True if this signal raises KeyboardInterrupt in the main thread (:func:`interruptible`)."""
    return signal.getsignal(number) is _interrupt


def count_interruptions() -> int:
    """Return how many signals have interrupted this process so far."""
    return len(_received)


def exit_interrupted() -> NoReturn:
    """Exit with status 143 after SIGTERM, 129 after SIGHUP, else 130."""
    if hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
        signal.alarm(10)  # at its end the interpreter may wait for other processes
    sys.exit(128 + (_received[0][0] if _received else signal.SIGINT))


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP in this process, but not in its children."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _ignore)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append((number, time.monotonic()))
    # A batch system signals the processes of a group, and their parents pass it on.
    if len(_received) == 1 or _received[-1][1] - _received[-2][1] > 1:
        raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def _forget_handlers() -> None:
    """Undo :func:`interruptible` in a forked worker, whose parent tells it to end."""
    if any(map(is_interruptible, SIGNALS)):
        signal.set_wakeup_fd(-1)
    for number in filter(is_interruptible, SIGNALS):
        # Ctrl-C reaches all processes of a terminal.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_handlers)


def start(
    command: Sequence[str], stdout: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of drgrade in a session of its own, so that Ctrl-C reaches this process only.

    It ends with this process (:func:`end_with_parent`). Errors go to ``stdout`` as well, if it is given.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
        env={**(os.environ if env is None else env), **parent_environment(signal.SIGTERM)},
        start_new_session=True,
    )


def stop(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Terminate processes from :func:`start`, and kill the group of one that does not end within ``seconds``.

    This process ignores further signals from here on, so that a second Ctrl-C leaves nothing running.
    """
    ignore_signals()
    for process in processes:
        with suppress(ProcessLookupError):  # it may have ended just now
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_child(
    command: Sequence[str], *, stdout: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> int:
    """Run a command of drgrade, and return its exit status; output and environment default to this process's.

    Raises:
        KeyboardInterrupt: If this process was interrupted; the command has been terminated and has ended.
    """
    with interruptible():
        process = start(command, stdout, env)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                say("stopping the running command; it saves its state")
                sys.stdout.flush()
                stop([process], seconds=60)  # a sweep gives its cells 30 s


def parent_environment(number: int) -> dict[str, str]:
    """Return variables for a child process that gets a signal when this process has ended."""
    return {_PARENT: f"{os.getpid()}:{int(number)}"}


def end_with_parent() -> None:
    """Send this process a signal when its parent has ended, even if by SIGKILL.

    Without effect in a process that did not get :func:`parent_environment`; the variable is not passed on.
    """
    parent, _, number = os.environ.pop(_PARENT, "").partition(":")
    if not (parent.isdigit() and number.isdigit()) or os.name != "posix":
        return
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0) != 0:  # PR_SET_PDEATHSIG
        threading.Thread(target=_follow, args=(int(parent), int(number)), daemon=True).start()
    elif os.getppid() != int(parent):  # it has ended before that call
        os.kill(os.getpid(), int(number))


def _follow(parent: int, number: int) -> None:
    """Poll whether the parent is still the same, for systems without the call of Linux."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), number)


def end_with_pool() -> None:
    """End this worker of a process pool when the process of the pool has ended.

    A worker whose parent was killed would wait for work indefinitely.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
