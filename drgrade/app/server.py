"""Serves the page on 127.0.0.1, to nobody else, and takes the files."""

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from io import BytesIO
from types import FrameType
from typing import TYPE_CHECKING, Any

from drgrade.app.page import look_and_feel
from drgrade.app.result_html import stylesheet
from drgrade.app.uploads import MAX_BYTES, MAX_FILES, Uploads
from drgrade.errors import ConfigError
from drgrade.progress import say

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

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


HOST = "127.0.0.1"
PORT = 7860

_ALL_FILES = (MAX_FILES + 2) * MAX_BYTES
"""Bytes of one request; more is refused unread. More than can be looked at, so that a file that is too large
is met with a sentence on the page, not with a broken connection."""

_MANY_FILES = 1000
_SECONDS_TO_FINISH = 2

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's pages have scripts in them
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""By this the browser itself refuses to ask any other machine for anything."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Shield:
    """Lets only the page itself talk to its server, and has the browser ask nobody else.

    Pages of other sites that are open in the same browser can send requests to 127.0.0.1, under its name or
    under one of their own that they point at it. Those are refused.
    """

    def __init__(self, app: Asgi) -> None:
        """Stand before an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        if refusal is not None:
            from starlette.responses import PlainTextResponse

            status, reason = refusal
            await PlainTextResponse(reason, status_code=status)(scope, receive, send)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in _HEADERS}
                others = [each for each in message.get("headers", []) if each[0].lower() not in ours]
                message["headers"] = [*others, *_HEADERS]
            await send(message)

        await self._app(scope, receive, sending)


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason, if a request is to be refused."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    own = {f"{name}:{scope['server'][1]}" for name in (HOST, "localhost")}
    if headers.get(b"host") not in own:
        return 421, "this page is served to this computer only, as 127.0.0.1"
    origin = headers.get(b"origin")
    if origin is not None and origin.removeprefix("http://") not in own:
        return 403, "other pages are not served"
    length = headers.get(b"content-length", "0")
    if not length.isdigit() or int(length) > _ALL_FILES:
        return 413, f"too much at once: {_ALL_FILES // 1_000_000} MB at most"
    if b"transfer-encoding" in headers:
        return 411, "say how long it is"
    return None


def make_app(page: "gradio.Blocks", uploads: Uploads) -> "FastAPI":
    """Make the application: the page, and a place to send files to.

    Args:
        page: As :func:`drgrade.app.page.make_page` made it.
        uploads: Keeps the files.
    """
    import gradio as gr
    from fastapi import FastAPI, Request, Response

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def upload(request: Request) -> list[str]:
        """In place of Gradio's, which gives the same path to the same file of two people."""
        async with request.form(max_files=_MANY_FILES, max_fields=1) as form:
            files = [each for each in form.getlist("files") if not isinstance(each, str)]
            few = len(files) <= MAX_FILES  # of too many nothing but their number is needed
            return [
                str(
                    uploads.keep(
                        each.filename or "file", each.file if few else BytesIO(), each.size or 0
                    ).path
                )
                for each in files
            ]

    async def progress() -> Response:
        """Files come from this computer: there is nothing to wait for. 204 ends the asking."""
        return Response(status_code=204)

    app.add_api_route("/gradio_api/upload", upload, methods=["POST"], response_model=None)
    app.add_api_route("/gradio_api/upload_progress", progress, methods=["GET"], response_model=None)
    app.add_middleware(Shield)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=_ALL_FILES,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=look_and_feel(),
        css=stylesheet(),
    )
    return app


def listen(port: int | None) -> socket.socket:
    """Take a port of 127.0.0.1.

    Args:
        port: Which; 0 for any that is free; None for :data:`PORT`, or any other if that is taken.

    Returns:
        The socket, listening.

    Raises:
        ConfigError: If the one that was asked for cannot be had.
    """
    if port is not None and not 0 <= port < 2**16:
        raise ConfigError(f"port={port} is no port: 0 to {2**16 - 1}")
    try:
        return _bound(PORT if port is None else port)
    except OSError as error:
        if port is not None:
            raise ConfigError(
                f"port={port} cannot be had ({error.strerror}); port=0 takes one that is free"
            ) from error
    other = _bound(0)
    say(f"port {PORT} is taken, so it is {other.getsockname()[1]}")
    return other


def _bound(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def serve(app: "FastAPI", listening: socket.socket, uploads: Uploads) -> None:
    """Serve until somebody says stop.

    Args:
        app: As :func:`make_app` made it.
        listening: Where; is closed in the end.
        uploads: Has a folder for what comes in, before it is a file.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    with listening, _temporary_files_in(uploads):
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Have the signals that would end the process at once end it with its tidying up done."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _temporary_files_in(uploads: Uploads) -> Iterator[None]:
    """What is larger than a megabyte is received into a file without a name; that is to be in memory too."""
    before = tempfile.tempdir
    tempfile.tempdir = str(uploads.folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
