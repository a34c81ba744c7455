"""Server of the page on 127.0.0.1, for this computer only."""

import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from io import BytesIO
from types import FrameType
from typing import TYPE_CHECKING, Any

from drgrade.app.analysis import UploadAnalyzer
from drgrade.app.page import build_page, theme
from drgrade.app.uploads import MAX_BYTES, MAX_FILES, Uploads
from drgrade.errors import ConfigError
from drgrade.html.templates import resource
from drgrade.prediction.grader import Grader
from drgrade.progress import say
from drgrade.settings import AppSettings

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

HOST = "127.0.0.1"
PORT = 7860

_MAX_REQUEST = (MAX_FILES + 2) * MAX_BYTES
"""Largest request in bytes. It exceeds the limits of files, which are reported on the page."""

_MAX_FORM_FILES = 1000
_SHUTDOWN_SECONDS = 2
_BACKLOG = 128

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's pages contain scripts
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
"""Content-Security-Policy that prevents the browser from contacting other machines."""

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


class RequestFilter:
    """ASGI middleware that accepts requests of the page only, and adds security headers.

    Pages of other sites in the same browser can send requests to 127.0.0.1, also by a name that resolves to
    it. Those are refused by their ``Host`` and ``Origin`` headers.
    """

    def __init__(self, app: Asgi) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        if refusal is not None:
            from starlette.responses import PlainTextResponse

            status, reason = refusal
            await PlainTextResponse(reason, status_code=status)(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in _HEADERS}
                others = [each for each in message.get("headers", []) if each[0].lower() not in ours]
                message["headers"] = [*others, *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """Return status and reason if a request must be refused."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    allowed = {f"{name}:{scope['server'][1]}" for name in (HOST, "localhost")}
    if headers.get(b"host") not in allowed:
        return 421, "this page is available on this computer only, as 127.0.0.1"
    origin = headers.get(b"origin")
    if origin is not None and origin.removeprefix("http://") not in allowed:
        return 403, "requests from other pages are refused"
    length = headers.get(b"content-length", "0")
    if not length.isdigit() or int(length) > _MAX_REQUEST:
        return 413, f"the request is larger than {_MAX_REQUEST // 1_000_000} MB"
    if b"transfer-encoding" in headers:
        return 411, "Content-Length is required"
    return None


def build_app(page: "gradio.Blocks", uploads: Uploads) -> "FastAPI":
    """Build the application: the page, and an endpoint for uploads."""
    import gradio as gr
    from fastapi import FastAPI, Request, Response

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def upload(request: Request) -> list[str]:
        """Replace Gradio's endpoint, which gives the same path to the same file of two users."""
        async with request.form(max_files=_MAX_FORM_FILES, max_fields=1) as form:
            files = [each for each in form.getlist("files") if not isinstance(each, str)]
            empty = len(files) > MAX_FILES  # only the number is needed
            stored = [
                uploads.keep(each.filename or "file", BytesIO() if empty else each.file, each.size or 0)
                for each in files
            ]
        return [str(each.path) for each in stored]

    async def progress() -> Response:
        """End the polling of upload progress with 204: files come from this computer."""
        return Response(status_code=204)

    app.add_api_route("/gradio_api/upload", upload, methods=["POST"], response_model=None)
    app.add_api_route("/gradio_api/upload_progress", progress, methods=["GET"], response_model=None)
    app.add_middleware(RequestFilter)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=_MAX_REQUEST,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=resource("drgrade.app", "templates/page.css"),
    )
    return app


def listen(port: int | None) -> socket.socket:
    """Listen on a port of 127.0.0.1.

    Args:
        port: Port; 0 for any free port; None for :data:`PORT`, or a free port if it is in use.

    Raises:
        ConfigError: If the port is in use.
    """
    try:
        return socket.create_server((HOST, PORT if port is None else port), backlog=_BACKLOG)
    except OSError as error:
        if port is not None:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(
                f"port={port} is not available ({reason}); port=0 selects a free port"
            ) from error
    other = socket.create_server((HOST, 0), backlog=_BACKLOG)
    say(f"port {PORT} is in use; the page is on port {other.getsockname()[1]}")
    return other


def serve(app: "FastAPI", listening: socket.socket, uploads: Uploads) -> None:
    """Serve until the process is interrupted, and close the socket."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    with listening, _temporary_files_in(uploads):
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Convert SIGTERM and SIGHUP to SystemExit, so that context managers clean up."""

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
    """Keep temporary files of large uploads in the folder of the uploads, which may be in memory."""
    before = tempfile.tempdir
    tempfile.tempdir = str(uploads.folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def run_app(settings: AppSettings) -> None:
    """Build and serve the page until the process is interrupted.

    Call :func:`drgrade.app.isolation.disable_telemetry` before this module is imported.

    Args:
        settings: Settings of ``drgrade app``.

    Raises:
        DrgradeError: If a run cannot be loaded, or the port is in use.
    """
    grader = Grader.load(settings.checkpoint, settings.device, settings.tta)
    analyzer = UploadAnalyzer(grader, settings.sensitivity, settings.abstain, settings.maps)
    with exit_on_signals(), listen(settings.port) as listening, Uploads() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)  # before Gradio is imported by build_page
        app = build_app(build_page(analyzer, uploads, settings.tta), uploads)
        address = "http://{}:{}/".format(*listening.getsockname())
        say(f"uploads are kept in {uploads.folder} until they are analysed; Ctrl-C ends the app")
        print(address, flush=True)
        if settings.open:
            webbrowser.open(address)
        serve(app, listening, uploads)
