"""Server of the page on 127.0.0.1, for this computer only."""

import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import FrameType
from typing import TYPE_CHECKING

from drgrade.app.analysis import UploadAnalyzer
from drgrade.app.page import build_page, theme
from drgrade.app.request_filter import MAX_REQUEST, RequestFilter
from drgrade.app.uploads import MAX_FILES, Uploads
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

_SHUTDOWN_SECONDS = 2
_BACKLOG = 128

_CONNECTIONS = 200
_SESSIONS = 32  # open pages whose results are kept


def build_app(page: "gradio.Blocks", uploads: Uploads) -> "FastAPI":
    """Build the application: the page, an endpoint for uploads, and the filter of requests."""
    import gradio as gr
    from fastapi import FastAPI, Response, UploadFile
    from gradio.utils import LRUCache

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    def upload(files: list[UploadFile]) -> list[str]:
        """Replace Gradio's endpoint, which gives the same path to the same file of two users."""
        if len(files) > MAX_FILES:  # one too many without their contents, so that the page says so
            return [str(uploads.keep("file", BytesIO(), 0).path) for _ in range(MAX_FILES + 1)]
        return [str(uploads.keep(each.filename or "file", each.file, each.size or 0).path) for each in files]

    def progress() -> Response:
        """End the polling of upload progress with 204: files come from this computer."""
        return Response(status_code=204)

    app.add_api_route("/gradio_api/upload", upload, methods=["POST"], response_model=None)
    app.add_api_route("/gradio_api/upload_progress", progress, methods=["GET"], response_model=None)
    inputs = {number: len(function.inputs) for number, function in page.fns.items()}
    app.add_middleware(RequestFilter, uploads=uploads, inputs=inputs, host=HOST)
    page.state_session_capacity = _SESSIONS
    page._queue.pending_messages_per_session = LRUCache(_SESSIONS)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=MAX_REQUEST,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=resource("drgrade.app", "templates/page.css"),
    )
    page.has_launched = True  # otherwise Gradio does not check the paths that it copies
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
        limit_concurrency=_CONNECTIONS,
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
    if grader.warning:
        say(f"WARNING: {grader.warning}")
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
