"""A second process that decodes photographs with a limit of time and memory.

Decoders are written in C: nothing inside the process can end one that takes hours, or bound its memory. The
process starts with the first photograph that needs it and ends with this one. Only POSIX systems have it;
elsewhere photographs are decoded in this process, without limits.
"""

import atexit
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drgrade.errors import DataError

DECODE_SECONDS = 10
"""Limit of processor time for one photograph."""

DECODE_BYTES = 2 * 2**30
"""Limit of memory of the process."""

_EXPIRED = "takes more than {:g} s to decode: damaged, or made to do so"
_KILLED = "damaged: the process that decodes it was ended by signal {}"
_ENDED = "damaged: the process that decodes it has ended with status {}"
_FAILED = "damaged: {}: {}"
_COMMAND = "import sys; from drgrade.data.decoder_process import serve; serve(*sys.argv[1:])"

Pixels = npt.NDArray[np.uint8]


class DecoderEnded(Exception):
    """The process has ended while it decoded, or the function has failed; the message is the reason."""


class DecoderProcess:
    """Calls one function in a process of its own, started again after it has ended.

    Args:
        function: ``module:name`` of a function of picklable arguments; returns pixels, uint8, or None, and a
            picklable value.
        seconds: Limit of processor time for one call.
        memory: Limit of memory of the process in bytes.
    """

    def __init__(self, function: str, seconds: float = DECODE_SECONDS, memory: int = DECODE_BYTES) -> None:
        self._arguments, self._seconds = (function, str(seconds), str(memory)), seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def call(self, *arguments: Any) -> tuple[Pixels | None, Any]:
        """Call the function.

        Returns:
            Its result.

        Raises:
            DecoderEnded: If it took too long, crashed, or raised an exception.
            DataError: If the process does not start.
        """
        if os.name != "posix":
            return _call(_function(self._arguments[0]), arguments)
        with self._lock:
            try:
                return self._exchange(arguments)
            except (EOFError, ConnectionError):
                raise DecoderEnded(self._reason()) from None
            except DecoderEnded:
                raise
            except BaseException:  # Ctrl-C: the answer to this call must not be read by the next one
                if self._process is not None:
                    self._process.kill()
                raise
            finally:
                if self._process is not None and self._process.poll() is not None:
                    self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _exchange(self, arguments: tuple[Any, ...]) -> tuple[Pixels | None, Any]:
        connection = self._connection or self._start()
        connection.send(arguments)
        shape, value, fault = connection.recv()
        if fault:
            raise DecoderEnded(fault)
        if shape is None:
            return None, value
        pixels = np.empty(shape, np.uint8)
        if pixels.size:
            connection.recv_bytes_into(pixels.data.cast("B"))
        return pixels, value

    def _start(self) -> Connection:
        self._connection, theirs = Pipe()
        # The folder of this package is first: with "" in the path, it may be the working directory.
        paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
        # Threads of numerical libraries would count as memory.
        settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # warnings of C libraries
                pass_fds=[theirs.fileno()],
                env=os.environ | settings,
            )
        try:
            self._connection.recv()  # its imports are done: from here on, an end is due to a photograph
        except (EOFError, ConnectionError):
            status = self._process.wait()
            raise DataError(
                f"the process that decodes photographs does not start (status {status})"
            ) from None
        return self._connection

    def _reason(self) -> str:
        status = self._process.wait() if self._process is not None else 0
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return _EXPIRED.format(self._seconds)
        return _ENDED.format(status) if status >= 0 else _KILLED.format(signal.Signals(-status).name)

    def _forget(self) -> None:
        """Leave the process to the parent after a fork."""
        self._process = self._connection = None
        self._lock = threading.Lock()


def serve(descriptor: str, function: str, seconds: str, memory: str) -> None:
    """Answer the calls of :class:`DecoderProcess` until its end; the kernel enforces the limits."""
    import resource  # not on Windows

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent closes the pipe
    with suppress(OSError, ValueError):  # a lower limit is in force
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    decode = _function(function)
    connection = Connection(int(descriptor))
    with suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            arguments, pixels, value, fault = connection.recv(), None, None, ""
            signal.setitimer(signal.ITIMER_PROF, float(seconds))
            try:
                pixels, value = _call(decode, arguments)
            except DecoderEnded as error:
                fault = str(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send((None if pixels is None else pixels.shape, value, fault))
            if pixels is not None and pixels.size:
                connection.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))
            del pixels, value


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Pixels | None, Any]:
    """Call a decoder; any exception is a property of the file, and becomes its reason."""
    try:
        pixels, value = function(*arguments)
    except Exception as error:
        raise DecoderEnded(
            _FAILED.format(type(error).__name__, " ".join(str(error).split())[:200])
        ) from error
    return pixels, value
