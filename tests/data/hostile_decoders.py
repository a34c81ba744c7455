"""Functions for the decoder process of `test_reading.py`."""

import os
import signal


def decode(work):
    """Loop without end, crash, fail, allocate too much memory, or answer."""
    while work == "loop":
        pass
    if work == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if work == "exit":
        os._exit(3)
    if work == "fail":
        raise ZeroDivisionError("division\nby zero")
    if work == "allocate":
        try:
            bytearray(2**31)
        except MemoryError:
            return None, "MemoryError"
    return None, "hello"
