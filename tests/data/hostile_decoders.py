"""Functions for the decoder process of `test_reading.py`."""

import os
import signal


def decode(work):
    """Loop without end, crash, allocate too much memory, or answer."""
    while work == "loop":
        pass
    if work == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if work == "allocate":
        try:
            bytearray(2**31)
        except MemoryError:
            return None, "MemoryError"
    return None, "hello"
