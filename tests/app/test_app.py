"""Parts of the app, without a browser: uploads, isolation, cards, settings."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from drgrade.app import uploads as uploads_module
from drgrade.app.analysis import UploadAnalyzer, UploadResult
from drgrade.app.isolation import is_local
from drgrade.app.page import GRADES, build_page, draw_example, render_about, render_cards
from drgrade.app.server import listen
from drgrade.app.uploads import MAX_BYTES, Uploads
from drgrade.cli import app
from drgrade.config import compose
from drgrade.data.fundus_check import Verdict
from drgrade.errors import ConfigError
from drgrade.prediction.grader import GradedBatch, Grader


@pytest.fixture
def uploads(tmp_path):
    with Uploads(tmp_path) as uploads:
        yield uploads


@pytest.fixture(scope="session")
def analyzer(finished_run):
    return UploadAnalyzer(Grader.load([finished_run()], device="cpu"))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def keep(uploads, name, content=b"content"):
    return uploads.keep(name, io.BytesIO(content), len(content))


def test_upload_can_be_taken_once(uploads):
    upload = keep(uploads, "eye.jpg")
    with uploads.take(upload.path) as kept:
        assert kept.path.read_bytes() == b"content"
    assert files(uploads.folder) == []
    with uploads.take(upload.path) as kept:
        assert kept is None


def test_upload_is_deleted_after_an_error(uploads):
    upload = keep(uploads, "eye.jpg")
    with pytest.raises(RuntimeError), uploads.take(upload.path):
        raise RuntimeError
    assert files(uploads.folder) == []


def test_same_file_of_two_users_is_two_uploads(uploads):
    first, second = keep(uploads, "eye.jpg"), keep(uploads, "eye.jpg")
    with uploads.take(first.path):
        pass
    assert second.path.read_bytes() == b"content"


def test_run_trained_on_drawings_warns_beside_every_grade_and_in_the_notice(analyzer, uploads):
    warning = analyzer.grader.warning
    assert "TRAINED ON DRAWINGS (demo)" in warning
    results = [UploadResult("eye.jpg", Verdict("good"), _graded(probability)) for probability in (0.1, 0.9)]
    assert render_cards(results, analyzer).count(warning) == 2
    page = build_page(analyzer, uploads)
    (notice,) = (
        block.value for block in page.blocks.values() if getattr(block, "elem_id", "") == "dg-notice"
    )
    assert notice.index(warning) < notice.index("For research only")


def test_other_files_cannot_be_taken(uploads, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"not yours")
    with uploads.take(secret) as kept:
        assert kept is None
    assert secret.exists()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", ".", "..", "", "a\0b", "ü" * 500, "a b.tif"]
)
def test_file_name_cannot_leave_the_folder(uploads, name):
    path = keep(uploads, name).path
    assert path.resolve().parent.parent == uploads.folder.resolve()
    assert path.read_bytes() == b"content"


def test_too_large_file_is_not_stored(uploads):
    upload = uploads.keep("big.tif", io.BytesIO(b"x" * 1000), MAX_BYTES + 1)
    assert upload.is_too_large
    assert upload.path.stat().st_size == 0


def test_old_uploads_are_deleted(uploads):
    forgotten = keep(uploads, "eye.jpg")
    uploads.delete_older(seconds=3600)
    assert forgotten.path.exists()
    uploads.delete_older(seconds=0)
    assert files(uploads.folder) == []


def test_folder_is_deleted_at_the_end(tmp_path):
    with Uploads(tmp_path) as uploads:
        keep(uploads, "eye.jpg")
        assert uploads.folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_deleted(tmp_path):
    killed = tmp_path / "drgrade-app-0123456789abcdef"
    (killed / "deep").mkdir(parents=True)
    (killed / "deep" / "eye.jpg").write_bytes(b"content")
    other = tmp_path / "drgrade"
    other.mkdir()
    with Uploads(tmp_path) as living:
        mine = keep(living, "eye.jpg")
        with Uploads(tmp_path):
            assert not killed.exists()
            assert mine.path.exists()
            assert other.exists()


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="uploads cannot be stored there"):
        Uploads(tmp_path / "file")


def test_uploads_are_on_disk_without_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads_module, "_IN_MEMORY", tmp_path / "missing")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Uploads() as uploads:
        assert uploads.folder.parent == tmp_path


@pytest.mark.parametrize("host", ["127.0.0.1", b"127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", ""])
def test_local_addresses_are_local(host):
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fe80::1%eth0", "gradio.app", "localhost.evil.org"]
)
def test_other_addresses_are_not_local(host):
    assert not is_local(host)


def test_connections_to_other_machines_are_refused():
    script = """
        import asyncio, socket, urllib.request
        from drgrade.app.isolation import ExternalConnectionError, block_external_connections
        block_external_connections()
        listening = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(listening.getsockname()).close()  # local connections work
        def refused(work):
            try:
                work()
            except ExternalConnectionError:
                return True
            except OSError as error:
                return isinstance(getattr(error, "reason", None), ExternalConnectionError)
            return False
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        async def connect():
            await asyncio.open_connection("192.0.2.1", 80)
        print([refused(work) for work in (
            lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
            lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
            lambda: socket.getaddrinfo("gradio.app", 443),
            lambda: udp.sendto(b"hello", ("192.0.2.1", 53)),
            lambda: urllib.request.urlopen("http://192.0.2.1/", timeout=1),
            lambda: asyncio.run(connect()),
        )])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([True] * 6)


def test_file_names_are_escaped(analyzer):
    html = render_cards([UploadResult("<img src=x onerror=alert(1)>.jpg", failure="<b>no</b>")], analyzer)
    assert "<img src=x" not in html
    assert "&lt;b&gt;no&lt;/b&gt;" in html


def test_photograph_is_referable_from_the_threshold(analyzer):
    point = analyzer.grader.members[0].calibration.point(0.9)
    threshold = point.threshold
    assert analyzer.rule == analyzer.grader.referral(0.9)
    for probability, answer in ((threshold, "yes"), (threshold - 1e-3, "no")):
        html = render_cards([UploadResult("eye.jpg", Verdict("good"), _graded(probability))], analyzer)
        assert f"<strong>{answer}</strong>" in html
        reached = f"reached {100 * point.sensitivity:.1f} %, specificity {100 * point.specificity:.1f} %"
        assert reached in html


def test_unknown_maps_and_too_many_maps_are_refused(analyzer):
    with pytest.raises(ConfigError, match="maps=dream"):
        UploadAnalyzer(analyzer.grader, maps=("dream",))
    with pytest.raises(ConfigError, match="at most 8"):
        UploadAnalyzer(analyzer.grader, maps=("c5",) * 9)


def test_other_pictures_get_a_reason_instead_of_a_grade(analyzer):
    result = UploadResult("cat.jpg", Verdict("not_fundus", "no disc, no vessels", abstains=True))
    html = render_cards([result], analyzer)
    assert "Not graded: not a fundus photograph." in html
    assert "no disc, no vessels" in html
    assert "dg-grade" not in html
    assert "dg-bars" not in html


def _graded(referable):
    one = torch.tensor([0.5])
    probabilities = torch.tensor([[1 - referable, 0, referable, 0, 0]])
    return GradedBatch(
        torch.tensor([2]),
        probabilities,
        probabilities,
        one,
        torch.tensor([referable]).double(),
        one,
        one * 0,
        None,
    )


def test_run_without_operating_points_refers_from_one_half_with_a_reason(finished_run, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(finished_run(), folder)
    (folder / "calibration.json").unlink()
    grader = Grader.load([folder], device="cpu")
    analyzer = UploadAnalyzer(grader)
    html = render_cards([UploadResult("eye.jpg", Verdict("good"), _graded(0.9))], analyzer)
    assert "default 0.5, no operating point (the run was made before" in html
    assert "<strong>yes</strong>" in html
    with pytest.raises(ConfigError, match="no operating points"):
        UploadAnalyzer(grader, sensitivity=0.9)


def test_ensemble_shows_members_and_disagreement(finished_run, uploads):
    folders = [finished_run(), finished_run("seed=1")]
    analyzer = UploadAnalyzer(Grader.load(folders, device="cpu", tta="flips"))
    name, content = draw_example(3)
    with uploads.take(keep(uploads, name, content).path) as upload:
        html = render_cards([analyzer.analyse(upload)], analyzer)
    assert "including disagreement" in html
    assert "mean threshold of 2 members, 90 % sensitivity" in html
    about = render_about(analyzer.grader, "flips")
    assert all(folder.name in about for folder in folders)
    assert "tta=flips" in about


def test_probe_without_heat_maps_is_graded(finished_run, uploads):
    analyzer = UploadAnalyzer(Grader.load([finished_run("protocol=knn")], device="cpu"))
    name, content = draw_example(3)
    with uploads.take(keep(uploads, name, content).path) as upload:
        result = analyzer.analyse(upload)
    assert result.graded is not None
    assert bool(result.maps) != bool(result.note)


def test_poor_photograph_is_graded_with_abstain_false(finished_run, uploads):
    import cv2
    import numpy as np

    from drgrade.synthetic.drawing import draw_photograph, plan_photographs

    drawing = draw_photograph(plan_photographs(5, 1)[0], 256, 1)
    blurred = cv2.GaussianBlur(np.asarray(drawing.pixels), (0, 0), 8)
    content = cv2.imencode(".png", blurred[..., ::-1])[1].tobytes()
    grader = Grader.load([finished_run()], device="cpu")
    results = []
    for abstain in (True, False):
        with uploads.take(keep(uploads, "blurred.png", content).path) as upload:
            results.append(UploadAnalyzer(grader, abstain=abstain).analyse(upload))
    assert results[0].verdict.abstains
    assert results[0].graded is None
    assert results[0].photograph is not None
    assert results[1].graded is not None
    assert "Caution" in render_cards(results[1:], UploadAnalyzer(grader))


def test_synthetic_photograph_is_named_with_its_grade():
    name, content = draw_example(7)
    assert content == draw_example(7)[1]
    grade = int(re.search(r"as grade (\d)", name)[1])
    assert GRADES[grade] in name
    assert "synthetic" in name


def test_missing_run_is_named(monkeypatch):
    from drgrade.app import isolation

    for name in ("block_external_connections", "disable_telemetry"):  # they would affect other tests
        monkeypatch.setattr(isolation, name, lambda: None)
    with pytest.raises(ConfigError, match="not a run's folder"):
        app.work(compose("app", checkpoint="/nowhere"))


def test_missing_gradio_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'drgrade\[app\]'"):
        app.work(compose("app", checkpoint="run"))


def test_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port} is not available"):
            listen(port)


def test_default_port_in_use_is_replaced_by_a_free_one(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("drgrade.app.server.PORT", port)
        with listen(None) as listening:
            address, other = listening.getsockname()
    assert address == "127.0.0.1"
    assert other != port
    assert f"port {port} is in use; the page is on port {other}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signal_ends_the_app_and_deletes_the_uploads(finished_run, tmp_path, number):
    command = ["-m", "drgrade.cli.app", f"checkpoint={finished_run()}", "port=0", "device=cpu"]
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert "TRAINED ON DRAWINGS" in process.stderr.readline()
        folder = Path(re.search(r"uploads are kept in (\S+)", process.stderr.readline())[1])
        assert folder.is_dir()
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        with Uploads(folder.parent):  # the next process deletes it
            assert not folder.exists()
        return
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert not folder.exists()
    assert not folder.with_name(f"{folder.name}.lock").exists()
