"""Commands that this process starts and does not leave behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, NoReturn

from drgrade.progress import say

_PATIENCE = 90.0
"""Seconds that a command has to end; a sweep gives its cells 60."""

_SIGNALS = [
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
]


def run_child(
    command: Sequence[str], *, stdout: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> int:
    """Run a command to its end.

    If this process is interrupted or terminated meanwhile, the command is interrupted, once, however often
    that happens, and has time to stop what it has started itself.

    Args:
        command: Program and arguments.
        stdout: Receives its output and its errors; None: they go where this process's go.
        env: Its environment; None: this process's.

    Returns:
        Its exit status.

    Raises:
        KeyboardInterrupt: If this process was interrupted or terminated; the command has ended.
    """
    with interruptible():
        # A session of its own: Ctrl-C reaches this process alone, which hands it on.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                _stop(process)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal stop as Ctrl-C does; what is ignored (nohup, &) stays so, but here only.

    A command inherits what is ignored, and could then not be interrupted; a handler it does not inherit.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        signal.signal(number, _nothing if handler == signal.SIG_IGN else _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _nothing(number: int, frame: FrameType | None) -> None:
    """Ignore a signal."""


def hear_nothing() -> None:
    """Ignore every further wish to stop: a second Ctrl-C must not leave commands behind."""
    for number in _SIGNALS:
        signal.signal(number, _nothing)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt, wait, and kill what does not listen."""
    hear_nothing()
    say("stopping: what runs writes down how far it is")
    sys.stdout.flush()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
