"""Requests to the app that its page does not send."""

import asyncio
import json
import os
import threading

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'drgrade[app]'")

from starlette.testclient import TestClient

from drgrade.app.analysis import UploadAnalyzer
from drgrade.app.page import build_page
from drgrade.app.request_filter import RequestFilter
from drgrade.app.server import build_app
from drgrade.app.uploads import MAX_FILES, MAX_KEPT, Uploads
from drgrade.prediction.grader import Grader

PORT = 7860


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    (tmp_path / "uploads").mkdir()
    with Uploads(tmp_path / "uploads") as uploads:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads.folder))
        yield uploads


@pytest.fixture
def client(finished_run, uploads):
    analyzer = UploadAnalyzer(Grader.load([finished_run()], device="cpu"))
    app = build_app(build_page(analyzer, uploads), uploads)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        yield client


def upload(client, *contents):
    return client.post("/gradio_api/upload", files=[("files", ("eye.jpg", each)) for each in contents])


def job(*paths, **more):
    files = [{"path": str(path), "meta": {"_type": "gradio.FileData"}} for path in paths]
    return {"data": [files], "fn_index": 0, "session_hash": "abc", "event_data": None} | more


def test_file_that_was_not_uploaded_is_not_copied(client, uploads, tmp_path):
    secret, fifo = tmp_path / "secret.jpg", tmp_path / "fifo"
    secret.write_text("secret")
    os.mkfifo(fifo)
    mine = upload(client, b"content").json()[0]
    before = sorted(uploads.folder.rglob("*"))
    for path in (
        secret,
        fifo,
        "/dev/zero",
        "/proc/self/environ",
        f"{mine}/..",
        "http://127.0.0.1/",
        "",
        "\0",
    ):
        for forged in (job(path), job(mine, path), job(path, fn_index=1)):
            assert client.post("/gradio_api/queue/join", json=forged).status_code in (404, 422)
    assert sorted(uploads.folder.rglob("*")) == before
    assert client.post("/gradio_api/queue/join", json=job(mine)).status_code == 200


@pytest.mark.parametrize(
    "forged",
    [
        {},
        job(fn_index=7),
        job(session_hash="../x"),
        job() | {"data": []},
        job() | {"data": [[], []]},
        job() | {"data": [{"path": "x"}]},
        job() | {"data": [[{"path": 5}]]},
    ],
)
def test_malformed_job_is_refused(client, forged):
    assert client.post("/gradio_api/queue/join", json=forged).status_code == 422


def test_deeply_nested_and_large_jobs_are_refused(client):
    assert client.post("/gradio_api/queue/join", content="[" * 90_000).status_code == 422
    assert client.post("/gradio_api/queue/join", content=b" " * 1_000_001).status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://192.0.2.1/"),
        ("GET", "/gradio_api/stream/a/b/c/playlist-file"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("PUT", "/config"),
    ],
)
def test_routes_that_the_page_does_not_use_are_refused(client, method, path):
    assert client.request(method, path).status_code == 404


def test_error_within_gradio_is_one_line(client):
    assert client.get("/gradio_api/queue/data?session_hash=unknown").status_code in (200, 500)


def test_sixty_uploads_are_not_all_kept(client, uploads):
    for _ in range(60):
        assert upload(client, b"content").status_code == 200
    kept = [path for path in uploads.folder.rglob("*") if path.is_file()]
    assert len(kept) == MAX_KEPT


def test_total_of_uploads_is_bounded(uploads, monkeypatch):
    from io import BytesIO

    monkeypatch.setattr("drgrade.app.uploads.MAX_BYTES", 10)
    stored = [uploads.keep("eye.jpg", BytesIO(b"x" * 10), 10) for _ in range(MAX_FILES + 3)]
    assert [each.path in uploads for each in stored] == [False] * 3 + [True] * MAX_FILES
    assert [each.path.exists() for each in stored] == [False] * 3 + [True] * MAX_FILES


def scope(path, length):
    headers = [(b"host", b"127.0.0.1:7860"), (b"content-length", str(length).encode())]
    return {"type": "http", "method": "POST", "path": path, "server": ("127.0.0.1", PORT), "headers": headers}


def test_uploads_that_never_end_are_bounded_and_dropped(uploads, monkeypatch):
    monkeypatch.setattr("drgrade.app.request_filter._STALLED_SECONDS", 0.2)

    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def never():
        await asyncio.Event().wait()

    async def statuses():
        sent = []

        async def send(message):
            sent.append(message.get("status"))

        filtered = RequestFilter(app, uploads, {}, "127.0.0.1")
        request = scope("/gradio_api/upload", 500_000_000)
        await asyncio.gather(*(filtered(request, never, send) for _ in range(4)))
        first = [each for each in sent if each]
        await filtered(request, never, send)  # the stalled ones have been given up
        return first, [each for each in sent if each]

    assert asyncio.run(statuses()) == ([503, 503], [503, 503])


def test_upload_is_stored_outside_the_event_loop(client, uploads, monkeypatch):
    threads, keep = [], uploads.keep

    def noted(*arguments):
        threads.append(threading.current_thread())
        return keep(*arguments)

    monkeypatch.setattr(uploads, "keep", noted)
    loop = client.portal.call(threading.current_thread)
    assert json.loads(upload(client, b"content").text)
    assert threads[0] is not loop
