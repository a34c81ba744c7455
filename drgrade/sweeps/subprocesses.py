"""Child processes that end with this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from drgrade.config import as_override
from drgrade.progress import say

_SIGNALS = [
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
]


def start(
    command: Sequence[str], stdout: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that Ctrl-C reaches this process only.

    Errors go to ``stdout`` as well, if it is given.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )


def stop(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Interrupt processes from :func:`start`, and kill the group of one that does not end within ``seconds``.

    This process ignores further signals from here on, so that a second Ctrl-C leaves nothing running.
    """
    ignore_signals()
    for process in processes:
        with suppress(ProcessLookupError):  # it may have ended just now
            os.killpg(process.pid, signal.SIGINT)
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
    """Run a command, and return its exit status; output and environment default to those of this process.

    Raises:
        KeyboardInterrupt: If this process was interrupted; the command has been interrupted and has ended.
    """
    with interruptible():
        process = start(command, stdout, env)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                say("stopping the running command; it saves its state")
                sys.stdout.flush()
                stop([process], seconds=90)  # a sweep gives its cells 60 s


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt; signals that are ignored stay ignored.

    Ignored signals (``nohup``, ``&``) get an empty handler: a child process would inherit SIG_IGN, and could
    not be interrupted, but does not inherit handlers.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        signal.signal(number, _ignore if handler == signal.SIG_IGN else _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP in this process, but not in its children."""
    for number in _SIGNALS:
        signal.signal(number, _ignore)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


_SWEEP_SETTINGS = (
    "hydra.mode",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra/launcher",
)


def cell_command(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the command that runs a cell in its folder, independent of the program that starts it.

    Settings of the sweep itself are dropped from the overrides.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_SWEEP_SETTINGS)]
    # The experiment of a table sets MULTIRUN.
    own = ["hydra.mode=RUN", f"hydra.run.dir={as_override(str(folder))}"]
    return [sys.executable, "-m", "drgrade.cli.train", *kept, *own]
