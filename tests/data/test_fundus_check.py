"""Tests of the quality check: fundus photographs pass, other images and spoilt photographs do not."""

import os
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from drgrade.data.disc_detection import find_disc
from drgrade.data.fundus_check import Appearance, FundusRule, Preparation, fitted_rule, measure_appearance
from drgrade.data.sources.demo import Demo


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[Path]:
    """Twelve drawn photographs of 256 px, of all cameras."""
    source = Demo(tmp_path_factory.mktemp("drawn"), count=12, size=256, workers=1)
    return [source.root / path for path in source.read().manifest["path"]]


@pytest.fixture(scope="module")
def idrid() -> Path:
    default = Path(__file__).parents[2] / "../shared/data"
    root = Path(os.environ.get("DRGRADE_TEST_DATA", default)) / "idrid"
    if not root.is_dir():
        pytest.skip("no real photographs")
    return root


@pytest.fixture(scope="module")
def prepare():
    return Preparation(96).prepare


def _pixels(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def _written(pixels, path, *options):
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), list(options))
    return path


def _as_disc(pixels):
    side = min(pixels.shape[:2])
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return pixels[:side, :side] * (np.hypot(x, y) < 0.48 * side)[..., None].astype(np.uint8)


@pytest.mark.parametrize("size", [32, 96, 224])
def test_drawn_photographs_are_graded_at_every_size(drawn, size):
    flags = [Preparation(size).prepare(path).verdict.flag for path in drawn]
    assert flags == ["good"] * len(drawn)


def test_real_photographs_are_graded(idrid, prepare):
    verdicts = [prepare(path).verdict for path in sorted(idrid.rglob("*.jpg"))[::12]]
    assert sum(verdict.abstains for verdict in verdicts) == 0


@pytest.mark.parametrize(
    "picture",
    [
        "skimage/data/chelsea.png",
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "skimage/data/page.png",
        "sklearn/datasets/images/china.jpg",
        "sklearn/datasets/images/flower.jpg",
    ],
)
@pytest.mark.parametrize("how", ["as it is", "as a disc"])
def test_other_images_are_not_graded(picture, how, prepare, tmp_path):
    package, _, inside = picture.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else Path()
    if not path.is_file():
        pytest.skip(f"{picture} is not installed")
    if how == "as a disc":
        path = _written(_as_disc(_pixels(path)), tmp_path / "disc.png")
    verdict = prepare(path).verdict
    assert verdict.abstains
    assert verdict.reason


def _orange():
    y, x = (np.mgrid[:300, :300] + 0.5) / 300 - 0.5
    return ((1 - 0.8 * (x * x + y * y))[..., None] * [200, 90, 40]).astype(np.uint8)


def _noise():
    return np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)


def _lines():
    picture = _orange()
    for k in range(20, 300, 40):
        cv2.line(picture, (k, 0), (300 - k, 299), (90, 40, 20), 2, cv2.LINE_AA)
    return picture


@pytest.mark.parametrize("draw", [_orange, _noise, _lines])
def test_orange_discs_and_noise_are_not_graded(draw, prepare, tmp_path):
    assert prepare(_written(_as_disc(draw()), tmp_path / "disc.png")).verdict.abstains


def test_grey_and_inverted_photographs_are_not_fundus(drawn, prepare, tmp_path):
    pixels = _pixels(drawn[0])
    grey = np.repeat(pixels[..., 1:2], 3, axis=2)
    assert prepare(_written(grey, tmp_path / "grey.png")).verdict.flag == "not_fundus"
    assert prepare(_written(255 - pixels, tmp_path / "negative.png")).verdict.abstains


def test_blur_is_detected_and_focus_decreases_with_it(drawn, prepare, tmp_path):
    for path in drawn[:4]:
        pixels, focus = _pixels(path), []
        for sigma in (0.0, 1.0, 2.0, 4.0, 8.0):
            blurred = cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma else pixels
            verdict = prepare(_written(blurred, tmp_path / "blurred.png")).verdict
            focus.append(verdict.measures.get("focus", 0.0))
        assert verdict.abstains
        assert focus == sorted(focus, reverse=True)


def test_dark_photographs_are_refused_and_half_exposed_ones_graded(drawn, prepare, tmp_path):
    for path in drawn[:4]:
        pixels = _pixels(path).astype(float)
        flags = [
            prepare(_written((pixels * gain).astype(np.uint8), tmp_path / "dark.png")).verdict.flag
            for gain in (0.5, 0.1)
        ]
        assert flags[0] == "good"
        assert flags[1] in ("too_dark", "blank")


def test_over_exposure_is_detected(drawn, prepare, tmp_path):
    bright = np.clip(_pixels(drawn[0]).astype(float) * 6, 0, 255).astype(np.uint8)
    assert prepare(_written(bright, tmp_path / "bright.png")).verdict.abstains


def test_verdict_does_not_depend_on_format_or_size(drawn, prepare, tmp_path):
    for path in drawn[:4]:
        pixels = _pixels(path)
        as_png = prepare(_written(pixels, tmp_path / "same.png")).verdict
        as_jpeg = prepare(_written(pixels, tmp_path / "same.jpg", cv2.IMWRITE_JPEG_QUALITY, 95)).verdict
        half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        smaller = prepare(_written(half, tmp_path / "half.png")).verdict
        assert (as_png.flag, as_jpeg.flag, smaller.abstains) == ("good", "good", False)
        assert as_jpeg.measures["fundus"] == pytest.approx(as_png.measures["fundus"], abs=2)


@pytest.mark.parametrize(
    ("content", "flag"), [(b"", "unreadable"), (b"no image", "unreadable"), (None, "blank")]
)
def test_unreadable_and_blank_files_have_a_reason(content, flag, prepare, tmp_path):
    path = tmp_path / "photo.png"
    _written(np.zeros((80, 80, 3), np.uint8), path)
    if content is not None:
        path.write_bytes(content)
    prepared = prepare(path)
    assert (prepared.verdict.flag, prepared.verdict.abstains) == (flag, True)
    assert prepared.verdict.reason
    assert prepared.crop.pixels is None


def test_score_is_the_quadratic_function_of_the_file():
    rule = fitted_rule()
    measures = Appearance(*(rule.mean + rule.scale * np.linspace(-2, 9, len(Appearance._fields))))
    z = [
        min(max((value - mean) / scale, -rule.reach), rule.reach)
        for value, mean, scale in zip(measures, rule.mean, rule.scale, strict=True)
    ]
    naive = rule.constant + sum(rule.linear[i] * z[i] for i in range(len(Appearance._fields)))
    naive += sum(
        rule.quadratic[i][j] * z[i] * z[j]
        for i in range(len(Appearance._fields))
        for j in range(len(Appearance._fields))
    )
    assert rule.score(measures) == pytest.approx(naive)
    assert isinstance(rule, FundusRule)


def test_colour_measures_do_not_depend_on_exposure(drawn):
    pixels = _pixels(drawn[0])
    bright = measure_appearance(pixels, find_disc(pixels))
    darker = (pixels * 0.7).astype(np.uint8)
    dark = measure_appearance(darker, find_disc(darker))
    assert dark.red_green == pytest.approx(bright.red_green, abs=0.1)
    assert dark.sparse == pytest.approx(bright.sparse, abs=0.05)
