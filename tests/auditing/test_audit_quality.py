"""Tests of light, contrast and focus of photographs."""

import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from drgrade.auditing.checks import quality_findings
from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import crop_disc, make_thumbnail
from drgrade.data.quality import Quality, measure
from drgrade.settings import AuditThresholds

IDRID = Path(os.environ.get("DRGRADE_TEST_DATA", "../shared/data")) / "idrid"


def look(pixels, size=160, blur=0.0, noise=0.0):
    """Measure a photograph; ``blur`` is in pixels of the prepared one, ``noise`` in grey levels."""
    disc = find_disc(pixels)
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur * 2 * disc.radius / size)
    crop = crop_disc(pixels, disc, size)
    if noise:
        noisy = crop + np.random.default_rng(0).normal(0, noise, crop.shape)
        crop = np.clip(noisy, 0, 255).astype(np.uint8)
    return measure(crop, make_thumbnail(pixels, disc) > 0, 2 * disc.radius)


def kinds(qualities, image_size=96, **settings):
    """(finding, row) of photographs with these qualities."""
    table = pd.DataFrame(qualities, columns=list(Quality._fields), dtype="float64")
    manifest = pd.DataFrame(
        {"image_id": [f"i{row}" for row in range(len(table))], "dataset": "d", "path": ""}
    )
    manifest = manifest.assign(grade=pd.array([1] * len(table), dtype="Int64"), split=pd.NA)
    found = quality_findings(manifest, table, image_size, AuditThresholds(**settings))
    return [(finding.finding, finding.row) for finding in found]


def test_focus_falls_with_blur(drawn_pixels):
    for pixels in drawn_pixels[:6]:
        focus = [look(pixels, blur=blur).focus for blur in (0, 0.75, 1.5, 2.5, 4)]
        assert focus == sorted(focus, reverse=True)
        assert focus[0] > 0.6
        assert focus[3] < 0.5


def test_focus_does_not_depend_on_exposure(drawn_pixels):
    for pixels in drawn_pixels[:6]:
        darker = np.clip(pixels * 0.6, 0, 255).astype(np.uint8)
        assert look(darker).focus == pytest.approx(look(pixels).focus, abs=0.08)


def test_noise_does_not_raise_the_focus_of_a_blurred_photograph(drawn_pixels):
    for pixels in drawn_pixels[:6]:
        assert look(pixels, blur=3, noise=3).focus < 0.5
        assert look(pixels, noise=3).focus == pytest.approx(look(pixels).focus, abs=0.1)


def test_focus_and_contrast_agree_with_a_plain_computation(drawn_pixels):
    pixels = drawn_pixels[1]
    disc = find_disc(pixels)
    crop, recorded = crop_disc(pixels, disc, 128), make_thumbnail(pixels, disc) > 0
    logarithm = np.log(crop[..., 1].astype(float) + 8)
    a, b, c = (ndimage.gaussian_filter(logarithm, sigma, mode="mirror") for sigma in (0.8, 1.6, 3.2))
    inside = ndimage.binary_erosion(recorded, np.ones((13, 13)))
    y, x = np.mgrid[:128, :128] - 63.5
    inside &= np.hypot(x, y) < 0.9 * 64
    kernel = np.outer([1, -2, 1], [1, -2, 1])
    noise = np.median(np.abs(ndimage.convolve(logarithm, kernel, mode="mirror")[inside])) / 0.6745 / 6
    impulse = np.zeros((99, 99))
    impulse[49, 49] = 1
    p, q, r = (ndimage.gaussian_filter(impulse, sigma) for sigma in (0.8, 1.6, 3.2))
    fine = np.sqrt(np.mean((a - b)[inside] ** 2) - noise**2 * np.sum((p - q) ** 2))
    coarse = np.sqrt(np.mean((b - c)[inside] ** 2) - noise**2 * np.sum((q - r) ** 2))
    measured = measure(crop, recorded, 2 * disc.radius)
    assert measured.contrast == pytest.approx(coarse, rel=0.01)
    assert measured.focus == pytest.approx(fine / coarse, rel=0.02)


def test_small_photograph_is_tiny_and_not_out_of_focus(drawn_pixels):
    small = cv2.resize(drawn_pixels[0], None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    enlarged = look(small, size=224)
    assert enlarged.diameter < 128
    assert enlarged.focus > 0.6
    assert kinds([enlarged]) == [("tiny", 0)]


def test_padding_does_not_count_as_detail(drawn_pixels):
    """The edge where the frame cuts the disc is stronger than any other."""
    pixels = drawn_pixels[0]
    disc = find_disc(pixels)
    cut = pixels.copy()
    cut[: int(disc.y - 0.7 * disc.radius)] = 0
    blurred = cv2.GaussianBlur(pixels, (0, 0), 4)
    blurred[: int(disc.y - 0.7 * disc.radius)] = 0
    assert look(blurred).focus < 0.5 < look(cut).focus


def test_unmeasurable_photographs_give_no_finding():
    unknown = measure(np.zeros((96, 96, 3), np.uint8), np.zeros((128, 128), bool), 200.0)
    assert np.isnan([unknown.level, unknown.contrast, unknown.focus]).all()
    assert kinds([unknown]) == []


GOOD = Quality(diameter=500, level=150, over_exposed=0.0, contrast=0.03, focus=0.85)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"level": 31}, ["dark"]),
        ({"level": 33}, []),
        ({"over_exposed": 0.3}, ["over_exposed"]),
        ({"over_exposed": 0.2}, []),
        ({"focus": 0.49}, ["out_of_focus"]),
        ({"focus": 0.51}, []),
        ({"contrast": 0.003}, ["blank"]),
        ({"contrast": 0.003, "focus": 0.1}, ["blank"]),
        ({"diameter": 127}, ["tiny"]),
        ({"diameter": 129}, []),
    ],
)
def test_findings_follow_the_thresholds(change, expected):
    assert [kind for kind, _ in kinds([GOOD._replace(**change)])] == expected


def test_photograph_smaller_than_the_prepared_size_is_tiny():
    assert kinds([GOOD._replace(diameter=200)], image_size=224) == [("tiny", 0)]


def test_outlier_is_out_of_focus_only_in_a_sharp_data_set():
    rng = np.random.default_rng(0)
    sharp = [GOOD._replace(focus=focus) for focus in rng.normal(0.95, 0.02, 60)]
    soft = [GOOD._replace(focus=focus) for focus in rng.normal(0.62, 0.03, 60)]
    candidate = GOOD._replace(focus=0.57)
    assert kinds([*sharp, candidate]) == [("out_of_focus", 60)]
    assert kinds([*soft, candidate]) == []
    assert kinds([*sharp[:5], candidate]) == []


def test_findings_are_sorted_from_the_worst():
    found = kinds([GOOD._replace(focus=focus) for focus in (0.4, 0.2, 0.9, 0.3)])
    assert found == [("out_of_focus", 1), ("out_of_focus", 3), ("out_of_focus", 0)]


@pytest.mark.skipif(not IDRID.is_dir(), reason="no real photographs")
def test_blurred_copies_of_real_photographs_are_out_of_focus():
    paths = sorted(IDRID.glob("**/a. Training Set/*.jpg"))[:60:4]
    pixels = [np.array(Image.open(path)) for path in paths]
    sharp = [look(photograph, size=224) for photograph in pixels]
    assert kinds(sharp, image_size=224) == []
    blurred = [look(photograph, size=224, blur=2) for photograph in pixels]
    assert [kind for kind, _ in kinds(blurred, image_size=224)] == ["out_of_focus"] * len(pixels)
