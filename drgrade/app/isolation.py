"""Isolation of the app from other machines. Imports the standard library only, so that it can run first."""

import ipaddress
import os
import sys
from typing import Any

_ENVIRONMENT = {
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
_REMOVED = ("GRADIO_HISTORY_BUCKET", "GRADIO_ALLOWED_PATHS", "GRADIO_WATCH_DIRS", "GRADIO_ROOT_PATH")

_CONNECT_EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_LOOKUP_EVENTS = ("socket.getaddrinfo", "socket.gethostbyname")


class ExternalConnectionError(OSError):
    """A connection to another machine was refused."""


def disable_telemetry() -> None:
    """Disable telemetry and remote features of libraries; call it before they are imported."""
    os.environ.update(_ENVIRONMENT)
    for name in _REMOVED:
        os.environ.pop(name, None)


def block_external_connections() -> None:
    """Refuse connections to other machines for the rest of the process (audit hook, PEP 578).

    This cannot be undone. Connections of this machine with itself, and sockets that are not internet sockets,
    are not affected.
    """
    sys.addaudithook(_refuse_external)


def _refuse_external(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECT_EVENTS:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # otherwise a path
    elif event in _LOOKUP_EVENTS:
        host = arguments[0]
    else:
        return
    if host is not None and not is_local(host):
        raise ExternalConnectionError(f"drgrade app refuses connections to other machines: {host!r}")


def is_local(host: str | bytes) -> bool:
    """Return True for names and addresses of this machine, without a lookup.

    Args:
        host: A name or an address.

    Example:
        >>> is_local("127.0.0.1"), is_local("example.org")
        (True, False)
    """
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name.lower() in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
