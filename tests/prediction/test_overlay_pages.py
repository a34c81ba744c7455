"""Overlays and pages show all photographs, with all kinds of names and results."""

import shutil
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import drgrade
from drgrade.cli.predict import work
from drgrade.config import compose
from drgrade.errors import ConfigError, DataError
from drgrade.prediction.inputs import Inputs
from drgrade.prediction.job_state import ProgressDatabase
from drgrade.prediction.overlay_pages import OverlayPages, delete_overlays, image_name
from drgrade.prediction.prediction import BatchJob, Predictor

HOSTILE = "<img src=x onerror=alert(1)>&amp;"


@pytest.fixture(scope="module")
def predictor(finished_run):
    return drgrade.load(finished_run(), device="cpu")


@pytest.fixture
def inputs(demo_source, tmp_path):
    """Five synthetic photographs, a black one, an unreadable one, and one with a hostile name."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [demo_source.root / path for path in demo_source.read().manifest["path"][:6]]
    for number, path in enumerate(paths[:5]):
        shutil.copy(path, folder / f"{number}.jpg")
    shutil.copy(paths[5], folder / f"{HOSTILE}.jpg")
    cv2.imwrite(str(folder / "black.png"), np.zeros((300, 300, 3), np.uint8))
    (folder / "text.jpg").write_text("no photograph")
    return folder


def _run(predictor, inputs, out, abstain=False, **settings):
    """Write the pages as drgrade predict does."""
    out.mkdir(exist_ok=True)
    pages = OverlayPages(out, predictor.explainer(), max_pixels=10**8, **settings)
    with closing(ProgressDatabase(out)) as database:
        job = BatchJob(Predictor(predictor.grader, abstain=abstain), database, batch_size=3, workers=1)
        job.run(Inputs([str(inputs)], leave_out=out), [pages])
    return out / "overlays"


class _Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.text, self.tags = [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_each_graded_photograph_has_an_overlay_and_all_are_on_the_page(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out")
    assert len(list(folder.glob("*.png"))) == 6
    page = _Page(folder / "index.html")
    for name in ("0", "1", "2", "3", "4", "black", "text", HOSTILE):
        assert name in page.text
    assert "not readable" in page.text
    assert page.tags.count("article") == 8
    assert page.tags.count("img") == len([link for link in page.links if link.endswith((".png", ".jpg"))]) / 2
    assert all((folder / link).is_file() for link in page.links)
    assert page.tags.count("script") == 0


def test_the_overlay_shows_photograph_heat_and_legend(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out", longest=0)
    original = cv2.imread(str(inputs / "0.jpg"))
    (path,) = folder.glob("0-*.png")
    overlay = cv2.imread(str(path))
    height, width = original.shape[:2]
    assert overlay.shape[1] == width
    assert overlay.shape[0] > height
    # The corners are outside the disc.
    np.testing.assert_array_equal(overlay[:3, :3], original[:3, :3])
    small = _run(predictor, inputs, tmp_path / "small", longest=40)
    (path,) = small.glob("0-*.png")
    assert cv2.imread(str(path)).shape[1] == 40


def test_abstained_photographs_are_shown_with_their_reason_and_without_heat(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out", abstain=True)
    page = _Page(folder / "index.html")
    assert "not graded" in page.text
    assert "all black: no fundus to be seen" in " ".join(page.text.split())
    assert not list(folder.glob("black-*.png"))
    assert list(folder.glob("black-*.jpg"))


def test_many_photographs_are_split_into_pages(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out", per_page=3)
    names = [f"page-000{number}.html" for number in (1, 2, 3)]
    assert [path.name for path in sorted(folder.glob("page-*.html"))] == names
    index = _Page(folder / "index.html")
    assert [link for link in index.links if link.startswith("page")] == names
    assert index.tags.count("article") == 0
    pages = [_Page(folder / name) for name in names]
    assert [page.tags.count("article") for page in pages] == [3, 3, 2]
    assert names[2] in pages[1].links
    assert names[0] in pages[1].links
    (inputs / "0.jpg").unlink()
    (inputs / "1.jpg").unlink()
    _run(predictor, inputs, tmp_path / "out", per_page=3)
    assert [path.name for path in sorted(folder.glob("page-*.html"))] == names[:2]


def test_an_interrupted_job_resumes_to_the_same_pages(predictor, inputs, tmp_path, monkeypatch):
    whole = _run(predictor, inputs, tmp_path / "whole")
    batches = []

    def stop(self, batch):
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return add_batch(self, batch)

    add_batch = OverlayPages.add_batch
    with monkeypatch.context() as patched:
        patched.setattr(OverlayPages, "add_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            _run(predictor, inputs, tmp_path / "out")
    folder = _run(predictor, inputs, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    # Batches differ, and with them the last digits of heat; the pages do not.
    assert (folder / "index.html").read_text() == (whole / "index.html").read_text()


def test_a_page_without_photographs(predictor, tmp_path):
    (tmp_path / "in").mkdir()
    page = _Page(_run(predictor, tmp_path / "in", tmp_path / "out") / "index.html")
    assert "There were no photographs" in page.text


def test_a_deleted_overlay_is_not_linked(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out")
    (path,) = folder.glob("0-*.png")
    path.unlink()
    _run(predictor, inputs, tmp_path / "out")
    page = _Page(folder / "index.html")
    assert "No overlay" in page.text
    assert path.name not in page.links


def test_image_names_are_safe_and_unique():
    names = [image_name(path, "../a/ü ") for path in ("a/ü .jpg", "a/ü .png", "b\udcff.jpg")]
    assert len(set(names)) == 3
    assert all(name.isascii() and "/" not in name and not name.startswith(".") for name in names)
    assert len(image_name("x", "y" * 500)) < 80


def test_names_that_are_not_valid_text_are_shown_with_escapes(predictor, demo_source, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    source = demo_source.root / demo_source.read().manifest["path"].iloc[0]
    shutil.copy(source, bytes(folder) + b"/\xff\xfe.jpg")
    page = _Page(_run(predictor, folder, tmp_path / "out") / "index.html")
    assert "\\udcff" in page.text


def test_delete_overlays_keeps_other_files(predictor, inputs, tmp_path):
    folder = _run(predictor, inputs, tmp_path / "out", per_page=3)
    (folder / "notes.txt").write_text("mine")
    delete_overlays(tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_created_is_an_error(predictor, inputs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "overlays").write_text("a file")
    with pytest.raises(DataError, match="overlays cannot be written"):
        _run(predictor, inputs, out)


def test_predict_writes_overlays_on_request(predictor, inputs, tmp_path, finished_run, capsys):
    out = tmp_path / "out"
    settings = {"checkpoint": finished_run(), "input": inputs, "out": out, "device": "cpu", "abstain": False}
    work(compose("predict", **settings, overlays=True, map="c2", target="referable"))
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "overlays" / "index.html")
    text = _Page(out / "overlays" / "index.html").text
    assert "referable retinopathy" in text
    assert "c2" in text
    with pytest.raises(ConfigError, match="overlays was True and is False"):
        work(compose("predict", **settings))
    work(compose("predict", **settings, overwrite=True))
    assert not (out / "overlays").exists()
    with pytest.raises(ConfigError, match="maps=c9"):
        work(compose("predict", **settings, overlays=True, map="c9", overwrite=True))
