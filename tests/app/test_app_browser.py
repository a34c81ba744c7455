"""``drgrade app`` in headless Chromium: results, refusals, no stored files, no external connections."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from html_page import CHROMIUM

from drgrade.app.isolation import is_local
from drgrade.app.page import GRADES, NOTICE
from drgrade.prediction.grader import Grader
from drgrade.stats.formatting import decimal, percent
from drgrade.synthetic.drawing import draw_photograph, plan_photographs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'drgrade[app]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

INPUT = "#dg-drop input[type=file]"
CARD = "#dg-results .dg-card"

RECORDED_APP = """
    import json, os, runpy, sys
    log = open(sys.argv.pop(1), "a", buffering=1)
    def note(*what):
        log.write(json.dumps(what) + "\\n")
    def watch(event, arguments):
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            if isinstance(arguments[1], tuple):
                note("connected", arguments[1][0])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            note("connected", str(arguments[0] or ""))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                note("written", os.path.abspath(os.fsdecode(arguments[0])))
        elif event in ("os.mkdir", "os.rename"):
            note("written", os.path.abspath(os.fsdecode(arguments[event == "os.rename"])))
    sys.addaudithook(watch)
    sys.argv[0] = "drgrade"
    runpy.run_module("drgrade.cli.app", run_name="__main__", alter_sys=True)
"""
"""Runs the command and records every connection, name lookup and written file."""


@pytest.fixture(scope="session")
def run(finished_run):
    return finished_run()


@pytest.fixture(scope="session")
def grader(run):
    return Grader.load([run], device="cpu")


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    """Run the command in its own process until Ctrl-C."""
    log = tmp_path_factory.mktemp("app") / "watched"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(RECORDED_APP),
            str(log),
            f"checkpoint={run}",
            "port=0",
            "device=cpu",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "True"},
        # Background jobs of a shell, as these tests may be, ignore Ctrl-C; so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url), process.stderr.read()
        assert "TRAINED ON DRAWINGS" in process.stderr.readline()
        folder = Path(re.search(r"uploads are kept in (\S+)", process.stderr.readline())[1])
        started = len(log.read_text())  # libraries make folders for themselves when they are imported
        port = int(url.split(":")[2].strip("/"))
        yield SimpleNamespace(url=url, port=port, folder=folder, log=log, started=started)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines() == ["interrupted"]
    assert not folder.exists()


@pytest.fixture(scope="module")
def browser():
    # Module scope: no other test can use an event loop while Playwright runs.
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def requested():
    """Collect the addresses that the browser requests in all tests."""
    return []


@pytest.fixture(scope="module")
def open_page(browser, server, requested):
    """``open_page(width=1280)``: the page in a new browser context."""
    contexts = []

    def open_one(width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.goto(server.url)
        page.wait_for_selector(INPUT, state="attached")
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(open_page):
    """Return a page shared by tests, so that it handles one file after the other."""
    return open_page()


@pytest.fixture(scope="session")
def pixels():
    """Return a drawn photograph, (256, W, 3) uint8."""
    return np.asarray(draw_photograph(plan_photographs(20, 1)[3], 256, 1).pixels)


@pytest.fixture(scope="session")
def photograph(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "left eye, Ünal <b>.jpg"
    path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    return path


def drop(page, *paths, cards=None):
    """Drop files and return their cards."""
    send(page, *paths)
    return received(page, len(paths) if cards is None else cards)


def send(page, *paths):
    page.evaluate(f"document.querySelectorAll('{CARD}').forEach((card) => card.classList.remove('dg-card'))")
    page.set_input_files(INPUT, [str(path) for path in paths])


def received(page, count):
    page.wait_for_function(f"document.querySelectorAll('{CARD}').length == {count}")
    return page.query_selector_all(CARD)


def remaining_files(server):
    return [path for path in server.folder.rglob("*") if path.is_file()]


def assert_agrees(card, path, grader):
    """Compare a card with the output of the grader."""
    graded = grader.grade(grader.preparation.prepare(path).crop.pixels[None])
    grade = int(graded.grades[0])
    assert card.query_selector(".dg-grade").inner_text().split("\n") == [str(grade), GRADES[grade]]
    written = [each.inner_text() for each in card.query_selector_all(".dg-bars .dg-figure")]
    assert written == [percent(p, 1) for p in graded.probabilities[0].tolist()]
    facts = card.query_selector(".dg-facts").inner_text()
    assert f"expected grade\n{decimal(float(graded.expected[0]), 2)}" in facts
    threshold = grader.referral().threshold
    assert ("yes" if float(graded.referable[0]) >= threshold else "no") in facts
    assert "can be graded" in facts


def test_photograph_is_graded_as_by_the_grader(page, photograph, grader, server):
    (card,) = drop(page, photograph)
    assert_agrees(card, photograph, grader)
    assert card.query_selector(".dg-name").inner_text() == photograph.name
    assert remaining_files(server) == []
    # Visible are the photograph and the chosen map.
    shown = "[...document.querySelectorAll('.dg-pictures img')].filter((each) => each.offsetParent)"
    page.wait_for_function(f"{shown}.length == 2 && {shown}.every((each) => each.naturalWidth > 200)")
    first = page.evaluate(f"{shown}[1].src")
    page.focus(".dg-maps input:checked")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{shown}.length") == 2
    assert page.evaluate(f"{shown}[1].src") != first
    # The notice stays visible.
    page.mouse.wheel(0, 5000)
    page.wait_for_function("scrollY > 0")
    assert NOTICE in page.inner_text("#dg-notice")
    assert "TRAINED ON DRAWINGS" in page.inner_text("#dg-notice")
    assert page.evaluate("document.querySelector('#dg-notice').getBoundingClientRect().top") >= 0


def test_16_bit_png_and_tiff_are_graded(page, pixels, grader, server, tmp_path):
    deep = pixels[..., ::-1].astype(np.uint16) * 257
    paths = [tmp_path / "deep.png", tmp_path / "eye.tif"]
    cv2.imwrite(str(paths[0]), deep)
    cv2.imwrite(str(paths[1]), pixels[..., ::-1])
    for card, path in zip(drop(page, *paths), paths, strict=True):
        assert_agrees(card, path, grader)
    assert remaining_files(server) == []


def test_bad_files_get_a_reason_instead_of_a_grade(page, photograph, pixels, server, tmp_path):
    bad = {
        "notes.jpg": (b"a letter, not a photograph", "looks like text"),
        "empty.png": (b"", "empty file"),
        "cut.jpg": (photograph.read_bytes()[:3000], "truncated"),
        "blur.png": (cv2.imencode(".png", cv2.GaussianBlur(pixels, (0, 0), 9))[1].tobytes(), "out of focus"),
        "black.png": (cv2.imencode(".png", np.zeros((200, 200, 3), np.uint8))[1].tobytes(), "black"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    cards = drop(page, *[tmp_path / name for name in bad])
    for card, (_, reason) in zip(cards, bad.values(), strict=True):
        assert "Not graded" in card.inner_text()
        assert reason in card.inner_text()
        assert card.query_selector(".dg-grade, .dg-bars") is None
    assert remaining_files(server) == []


def test_file_of_100_mb_is_refused_and_the_next_one_is_graded(page, photograph, grader, server, tmp_path):
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(100_000_000)
    (card,) = drop(page, large)
    assert "the file has 100 MB, the limit is 60 MB" in card.inner_text()
    assert card.query_selector(".dg-grade, .dg-bars") is None
    assert remaining_files(server) == []
    (card,) = drop(page, photograph)
    assert_agrees(card, photograph, grader)


def test_too_many_files_are_refused(page, photograph, server):
    (card,) = drop(page, *[photograph] * 9, cards=1)
    assert card.inner_text().strip() == "too many files: the limit is 8"
    assert remaining_files(server) == []


def test_two_browsers_get_their_own_results(page, open_page, photograph, grader, server, tmp_path):
    other = tmp_path / photograph.name  # of the same name
    drawing = draw_photograph(plan_photographs(20, 2)[5], 256, 2)
    other.write_bytes(cv2.imencode(".jpg", np.asarray(drawing.pixels)[..., ::-1])[1].tobytes())
    pages = [page, open_page()]
    for paths in ((photograph, other), (photograph, photograph)):
        for each, path in zip(pages, paths, strict=True):
            send(each, path)
        for each, path in zip(pages, paths, strict=True):
            (card,) = received(each, 1)
            assert_agrees(card, path, grader)
    assert remaining_files(server) == []


def test_synthetic_photograph_on_a_narrow_dark_page(open_page, server):
    page = open_page(width=360, color_scheme="dark")
    page.click("#dg-example")
    page.wait_for_selector(CARD)
    assert "synthetic photograph, drawn as grade" in page.inner_text(CARD)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.dg-card')).backgroundColor")
        == "rgb(27, 33, 40)"
    )
    assert remaining_files(server) == []


def test_other_pages_and_other_files_are_not_served(server, run):
    def status(method, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(
            method, path, headers={name.replace("_", "-"): each for name, each in headers.items()}
        )
        return connection.getresponse().status

    assert status("GET", "/") == 200
    other_name = f"evil.example:{server.port}"  # may resolve to this machine
    assert status("GET", "/", Host=other_name) == 421
    assert status("POST", "/gradio_api/upload", Origin="https://evil.example") == 403
    assert status("POST", "/gradio_api/upload", Content_Length="900000000") == 413
    assert status("POST", "/gradio_api/upload", Transfer_Encoding="chunked") == 411
    for path in ("/etc/passwd", run / "config.yaml", Path(__file__)):
        assert status("GET", f"/gradio_api/file={path}") in (403, 404)


def test_no_external_connection_and_no_stored_file(page, photograph, server, requested):
    drop(page, photograph)
    assert len(requested) > 20
    assert {url for url in requested if not url.startswith((server.url, "data:", "blob:"))} == set()
    watched = server.log.read_text()
    records = [json.loads(line) for line in watched.splitlines()]
    assert {what for kind, what in records if kind == "connected" and not is_local(what)} == set()
    since = [json.loads(line) for line in watched[server.started :].splitlines()]
    written = {Path(what) for kind, what in since if kind == "written"}
    assert any(what.name.endswith(".jpg") for what in written)
    elsewhere = {what for what in written if not what.is_relative_to(server.folder)}
    assert {
        what for what in elsewhere if "__pycache__" not in what.parts and what != Path(os.devnull)
    } == set()
