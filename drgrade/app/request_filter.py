"""Filter of requests: those of the page are passed on; everything else is refused before Gradio sees it."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from drgrade.app.uploads import MAX_BYTES, MAX_FILES, Uploads

MAX_REQUEST = (MAX_FILES + 2) * MAX_BYTES
"""Largest upload in bytes. It exceeds the limits of files, which are reported on the page."""

_MAX_JOB = 1_000_000  # bytes of other requests
_MAX_RECEIVING = 2 * MAX_REQUEST  # bytes of uploads that are received at the same time
_STALLED_SECONDS = 10.0

_UPLOAD, _JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
_ROUTES = {
    "GET": re.compile(
        r"/|/config/?|/favicon\.ico|/manifest\.json|/(gradio_api/)?theme\.css|/(static|assets|svelte)/.+"
        r"|/gradio_api/(startup-events|queue/data|upload_progress|heartbeat/\w{1,64})"
    ),
    "POST": re.compile(rf"{_UPLOAD}|{_JOIN}"),
}
_ROUTES["HEAD"] = _ROUTES["GET"]

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


Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)


class _File(BaseModel):
    path: Annotated[str, Field(max_length=4096)]


class _Job(BaseModel):
    """The part of Gradio's job that the page needs; other fields are dropped."""

    session_hash: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
    fn_index: int
    trigger_id: int | None = None
    data: Annotated[list[list[_File] | None], Field(max_length=1)]


class Refused(Exception):
    """A request was refused, with an HTTP status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        """Store status and reason."""
        super().__init__(reason)
        self.status, self.reason = status, reason


class RequestFilter:
    """ASGI middleware that accepts the requests of the page only, and adds security headers.

    Pages of other sites in the same browser can send requests to 127.0.0.1, also by a name that resolves to
    it. Those are refused by their ``Host`` and ``Origin`` headers. Other programs of this computer can send
    anything: routes that the page does not use, files that were not uploaded, bodies of any size, and
    uploads that never end are refused.
    """

    def __init__(self, app: Asgi, uploads: Uploads, inputs: Mapping[int, int], host: str) -> None:
        """Wrap an application.

        Args:
            app: The application.
            uploads: Files that jobs may name.
            inputs: Number of inputs of each function of the page.
            host: Address that it is served on.
        """
        self._app, self._uploads, self._inputs, self._host = app, uploads, inputs, host
        self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, _Receiver(receive), _Sender(send))

    async def _answer(self, scope: Scope, receive: "_Receiver", send: "_Sender") -> None:
        length = 0
        try:
            length = self._check(scope)
            self._receiving += length
            await self._app(scope, await self._checked_body(scope, receive), send)
        except Refused as refused:
            await send.answer(refused.status, refused.reason)
        except Exception as error:  # the boundary of the server, which no request may end
            _log.debug("a request failed", exc_info=True)
            await send.answer(500, f"the request failed: {type(error).__name__}")
        finally:
            self._receiving -= length

    def _check(self, scope: Scope) -> int:
        """Check everything but the body, and return the length of an upload, otherwise 0."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        allowed = {f"{name}:{scope['server'][1]}" for name in (self._host, "localhost")}
        if headers.get(b"host") not in allowed:
            raise Refused(421, "this page is available on this computer only, as 127.0.0.1")
        origin = headers.get(b"origin")
        if origin is not None and origin.removeprefix("http://") not in allowed:
            raise Refused(403, "requests from other pages are refused")
        route = _ROUTES.get(scope["method"])
        if route is None or not route.fullmatch(scope["path"]):
            raise Refused(404, "the page has no such address")
        if b"transfer-encoding" in headers:
            raise Refused(411, "Content-Length is required")
        text = headers.get(b"content-length", "0")
        most = MAX_REQUEST if scope["path"] == _UPLOAD else _MAX_JOB
        if not re.fullmatch("[0-9]{1,12}", text) or int(text) > most:
            raise Refused(413, f"the request is larger than {most // 1_000_000} MB")
        if scope["path"] != _UPLOAD:
            return 0
        if self._receiving + int(text) > _MAX_RECEIVING:
            raise Refused(503, "too many uploads at the same time: try again later")
        return int(text)

    async def _checked_body(self, scope: Scope, receive: "_Receiver") -> Receive:
        """Return the receiver of the body; that of a job is read, checked and reduced to what is needed."""
        if scope["path"] != _JOIN:
            return receive
        body = b""
        while not receive.is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(408, "the request is incomplete")
            body += message.get("body", b"")
        content = self._checked_job(body)
        length = (b"content-length", str(len(content)).encode())
        others = [
            each for each in scope["headers"] if each[0].lower() not in (b"content-length", b"content-type")
        ]
        scope["headers"] = [*others, length, (b"content-type", b"application/json")]
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        return replay

    def _checked_job(self, body: bytes) -> bytes:
        try:
            job = _Job.model_validate_json(body)
        except ValidationError:
            raise Refused(422, "the request is not one of the page") from None
        if len(job.data) != self._inputs.get(job.fn_index):
            raise Refused(422, "the request is not one of the page")
        files = [[each.path for each in dropped or ()] for dropped in job.data]
        if any(Path(path) not in self._uploads for paths in files for path in paths):
            raise Refused(404, "the file was not uploaded here, or has been deleted: choose it again")
        kind = {"_type": "gradio.FileData"}
        data = [[{"path": path, "meta": kind} for path in paths] for paths in files]
        return json.dumps(job.model_dump(exclude={"data"}) | {"data": data}).encode()


class _Receiver:
    """Receives a request; a body that stalls ends as if the client had disconnected."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_complete = False

    async def __call__(self) -> Message:
        if self.is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _STALLED_SECONDS)
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self.is_complete = not message.get("more_body", False)
        return message


class _Sender:
    """Sends a response with the security headers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            ours = {name for name, _ in _HEADERS}
            others = [each for each in message.get("headers", []) if each[0].lower() not in ours]
            message["headers"] = [*others, *_HEADERS]
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def answer(self, status: int, reason: str) -> None:
        """Send a reason, or end a response that has started."""
        if not self._started:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await self({"type": "http.response.start", "status": status, "headers": headers})
            await self({"type": "http.response.body", "body": reason.encode()})
        elif not self._ended:
            await self({"type": "http.response.body", "body": b""})
