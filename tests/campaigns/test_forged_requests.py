"""Forged requests to ``drgrade app``: nothing is copied or disclosed, and the page keeps answering."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from drgrade.app.page import draw_example

pytestmark = pytest.mark.campaign
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'drgrade[app]'")

SECRET = "a secret of the owner of the page"
BOUNDARY = "boundary"
LIMIT = 700_000_000  # bytes: uploads that are kept, and one that is received


@pytest.fixture
def server(finished_run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "drgrade.cli.app", f"checkpoint={finished_run()}", "port=0", "device=cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
        text=True,
    )
    try:
        port = int(process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])
        folder = Path(re.search(r"uploads are kept in (\S+)", (tmp_path / "errors").read_text())[1])
        yield SimpleNamespace(port=port, folder=folder, process=process, errors=tmp_path / "errors")
    finally:
        process.kill()
        process.wait()


def ask(port, method, path, body=b"", headers=None, timeout=20):
    """Return status and body of the answer; (None, b"") if the connection was closed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(1_000_000)
    except (http.client.HTTPException, ConnectionError, ValueError):
        return None, b""
    finally:
        connection.close()


def upload(port, *files):
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        for name, content in files
    ]
    body = b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return ask(port, "POST", "/gradio_api/upload", body, kind)


def join(port, job):
    return ask(
        port, "POST", "/gradio_api/queue/join", json.dumps(job).encode(), {"Content-Type": "application/json"}
    )


def job(path, **more):
    file = {"path": path, "orig_name": "eye.jpg", "meta": {"_type": "gradio.FileData"}}
    return {"data": [[file | more]], "fn_index": 0, "session_hash": "forged", "event_data": None}


def forgeries(rng, folder):
    """Return one function for each kind of forged request."""
    secret, fifo = folder / "secret.jpg", folder / "fifo"
    secret.write_text(SECRET)
    os.mkfifo(fifo)
    paths = [
        secret,
        fifo,
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "/etc/passwd",
        "file:///etc/passwd",
    ]
    paths += [
        "http://127.0.0.1:1/",
        "http://192.0.2.1/eye.jpg",
        f"{folder}/../{folder.name}/secret.jpg",
        "",
        "\0",
    ]

    def path():
        return str(rng.choice(paths))

    def nested(depth):
        return "[" * depth + "]" * depth

    routes = [
        "file=",
        "file/",
        "proxy=http://",
        "stream/",
        "component_server",
        "process_recording",
        "vibe-edit",
    ]
    routes += [
        "run/predict",
        "api/predict",
        "call/predict",
        "cancel",
        "reset",
        "deep_link",
        "openapi.json",
        "info",
    ]
    noise = rng.randbytes(rng.randint(1, 3000))
    return [
        lambda port: join(port, job(path())),
        lambda port: join(port, job(path(), is_stream=rng.random() < 0.5, url=path())),
        lambda port: join(port, job(path()) | {"fn_index": rng.randint(-3, 9), "batched": True}),
        lambda port: join(port, {"data": [job(path())["data"][0][0]], "fn_index": 0, "session_hash": "a"}),
        lambda port: join(port, {"data": [{"a": [job(path())["data"][0][0]]}] * 3, "fn_index": 1}),
        lambda port: join(port, {"data": [], "fn_index": 0, "session_hash": "x" * rng.randint(0, 99)}),
        lambda port: join(port, {"data": [[{"path": 5}]], "fn_index": 0, "session_hash": ["a"]}),
        lambda port: ask(port, "POST", "/gradio_api/queue/join", nested(rng.randint(1, 99_999)).encode()),
        lambda port: ask(port, "POST", "/gradio_api/queue/join", noise),
        lambda port: ask(
            port, rng.choice(["GET", "POST", "PUT"]), f"/gradio_api/{rng.choice(routes)}{path()!r}"
        ),
        lambda port: ask(port, "GET", f"/gradio_api/{rng.choice(routes[:4])}{secret}"),
        lambda port: ask(port, "GET", f"/{rng.choice(['static', 'assets'])}/..%2f..%2f..%2f{path()[:60]!r}"),
        lambda port: ask(port, "GET", f"/gradio_api/queue/data?session_hash={rng.randint(0, 99)}"),
        lambda port: ask(port, "GET", "/", headers={"Host": rng.choice(["evil.example", "", "127.0.0.1:1"])}),
        lambda port: ask(port, "POST", "/gradio_api/upload", b"x", {"Origin": "https://evil.example"}),
        lambda port: ask(port, "POST", "/gradio_api/upload", noise, {"Content-Type": "multipart/form-data"}),
        lambda port: ask(
            port,
            "POST",
            "/gradio_api/upload",
            noise,
            {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        ),
        lambda port: ask(
            port, "POST", "/gradio_api/upload", b"x", {"Content-Length": "9" * rng.randint(1, 30)}, 2
        ),
        lambda port: upload(port, (path().replace("\0", ""), rng.randbytes(5_000_000))),
        lambda port: upload(port, *[(f"../{number}.jpg", b"") for number in range(rng.randint(1, 99))]),
    ]


def grade(port):
    """Upload a photograph, request its grade, and return the HTML of the page."""
    status, body = upload(port, ("eye.jpg", draw_example(3)[1]))
    assert status == 200, body
    assert join(port, job(json.loads(body)[0]) | {"session_hash": "honest"})[0] == 200
    status, events = ask(port, "GET", "/gradio_api/queue/data?session_hash=honest", timeout=300)
    assert status == 200
    return events.decode()


def test_forged_requests_copy_nothing_and_the_page_keeps_answering(server, scale, rng, tmp_path):
    kinds = forgeries(rng, tmp_path)
    tried = [kinds[number % len(kinds)] for number in range(20 * scale)]
    rng.shuffle(tried)
    slowest, largest = 0.0, 0
    for forge in tried:
        try:
            _, body = forge(server.port)
        except TimeoutError:  # it waits for a body that never comes, and the page must answer meanwhile
            body = b""
        assert SECRET.encode() not in body
        start = time.monotonic()
        assert ask(server.port, "GET", "/config", timeout=300)[0] == 200
        slowest = max(slowest, time.monotonic() - start)
        kept = [path for path in server.folder.rglob("*") if path.is_file()]
        largest = max(largest, sum(path.stat().st_size for path in kept))
        assert not any(path.stat().st_size < 1000 and SECRET in path.read_text("latin-1") for path in kept)
    assert "dg-grade" in grade(server.port)
    errors = server.errors.read_text()
    assert "Traceback" not in errors, errors
    assert largest <= LIMIT
    print(
        f"forged requests: {len(tried)} tried, all survived, nothing copied; slowest answer of the page "
        f"{slowest:.2f} s, uploads kept at most {largest / 1e6:.0f} MB"
    )
