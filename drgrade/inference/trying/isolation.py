"""Nothing leaves the machine: telemetry is off, and the process cannot connect to another one's address.

Gradio asks a server on the internet for its newest version and reports its use, unless the environment says
otherwise; so do other libraries. To have switched off what is known is not enough to promise anything, so
connections are refused as well, by an audit hook (PEP 578), through which every socket of Python goes.
"""

import ipaddress
import os
import sys
from typing import Any

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_DEBUG": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment that has to be set before Gradio is imported."""

_UNWANTED = ("GRADIO_HISTORY_BUCKET", "GRADIO_ALLOWED_PATHS", "GRADIO_WATCH_DIRS", "GRADIO_ROOT_PATH")
"""Of an environment that somebody set for another page."""

_CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
_LOOKING_UP = ("socket.getaddrinfo", "socket.gethostbyname")


class LeavesTheMachine(OSError):
    """Something tried to reach another machine."""


def silence() -> None:
    """Switch off what libraries report; before they are imported."""
    os.environ.update(QUIET)
    for name in _UNWANTED:
        os.environ.pop(name, None)


def stay() -> None:
    """From now on, and as long as this process lives, refuse connections to other machines.

    It cannot be undone, so it is for a process that does nothing else. Connections of this machine with
    itself, and other kinds of sockets, are left alone.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTING:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # not an internet address: a path
    elif event in _LOOKING_UP:
        host = arguments[0]
    else:
        return
    if host is not None and not is_here(host):
        raise LeavesTheMachine(f"drgrade app connects to no other machine, but something asked for {host!r}")


def is_here(host: str | bytes) -> bool:
    """Whether a host is this machine, without asking anybody.

    Args:
        host: A name or an address.
    """
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name.lower() in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
