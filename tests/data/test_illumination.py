import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from synthetic_photographs import disc_photograph

from drgrade.data.crops import ILLUMINATIONS, ben_graham, check_illumination, clahe, illuminate, reflected
from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import Disc, crop_disc, recorded_mask
from drgrade.data.image_reader import read_photograph
from drgrade.errors import ConfigError

REAL = Path(os.environ.get("DRGRADE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
SIDE = 96


@pytest.fixture(scope="module")
def photograph():
    """Crop and disc of a photograph that is cut off at top and bottom and lit from one side."""
    pixels = disc_photograph((300, 200), (148, 101), 118, background=9, noise=2)
    pixels = np.clip(pixels * np.linspace(1.3, 0.4, 300)[:, None], 0, 255).astype(np.uint8)
    disc = find_disc(pixels)
    return crop_disc(pixels, disc, SIDE), disc


@pytest.fixture(scope="module")
def cut_off(photograph):
    """Crop and mask of that photograph."""
    return photograph[0], recorded_mask(photograph[1], SIDE)


def inner(mask, share=0.97):
    offset = (np.arange(len(mask)) + 0.5) / (len(mask) / 2) - 1
    return mask & (np.hypot(offset[:, None], offset) <= share)


def test_unknown_illumination_error_lists_the_choices(photograph, cut_off):
    crop, disc = photograph
    assert np.array_equal(illuminate("none", crop, disc), crop)
    assert np.array_equal(illuminate("ben_graham", crop, disc), ben_graham(*cut_off))
    assert np.array_equal(illuminate("clahe", crop, disc), clahe(*cut_off))
    for wrong in (lambda: check_illumination("grahm"), lambda: illuminate("grahm", crop, disc)):
        with pytest.raises(ConfigError, match=r"data\.illumination=grahm.*none, ben_graham, clahe"):
            wrong()
    for name in ILLUMINATIONS:
        check_illumination(name)


@pytest.mark.parametrize("function", [ben_graham, clahe])
def test_pixels_outside_the_mask_are_ignored_and_black(cut_off, function):
    crop, mask = cut_off
    result = function(crop, mask)
    assert result.shape == crop.shape
    assert result.dtype == np.uint8
    assert not result[~mask].any()
    other = np.where(mask[..., None], crop, np.uint8(200))
    assert np.array_equal(function(other, mask), result)


@pytest.mark.parametrize("function", [ben_graham, clahe])
def test_illumination_is_deterministic_and_keeps_its_input(cut_off, function):
    crop, mask = cut_off
    before = crop.copy()
    first = function(crop, mask)
    assert np.array_equal(first, function(crop, mask))
    assert np.array_equal(crop, before)


def test_ben_graham_subtracts_the_mean_over_the_disc(cut_off):
    crop, mask = cut_off
    sigma = SIDE / 2 / 30
    weight = inner(mask).astype(float)
    result = ben_graham(crop, mask)
    y, x = np.indices(mask.shape)
    for row, column in np.argwhere(inner(mask))[::97]:
        kernel = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2)) * weight
        mean = (kernel[..., None] * crop).sum(axis=(0, 1)) / kernel.sum()
        expected = np.clip(4 * (crop[row, column] - mean) + 128, 0, 255)
        assert np.abs(result[row, column] - expected).max() <= 1


def test_ben_graham_flattens_a_brightness_ramp():
    ramp = np.broadcast_to(np.linspace(60, 200, SIDE)[:, None, None], (SIDE, SIDE, 3)).astype(np.uint8)
    offset = np.arange(SIDE) + 0.5 - SIDE / 2
    mask = np.hypot(offset[:, None], offset) <= SIDE / 2
    result = ben_graham(np.where(mask[..., None], ramp, np.uint8(0)), mask)
    assert np.abs(result[mask].astype(int) - 128).max() <= 20
    # Without the weights the black surround would be part of the mean at the rim.
    plain = 4.0 * ramp * mask[..., None] - 4 * ndimage.gaussian_filter(
        (ramp * mask[..., None]).astype(float), (SIDE / 60, SIDE / 60, 0)
    )
    assert np.abs(plain[mask]).max() > 100


def test_clahe_raises_contrast_and_keeps_colour(cut_off):
    crop, mask = cut_off
    crop = (crop // 3 + 20).astype(np.uint8)
    lab, result = (cv2.cvtColor(x, cv2.COLOR_RGB2LAB).astype(int) for x in (crop, clahe(crop, mask)))
    core = inner(mask, 0.9)
    assert result[core][:, 0].std() > 1.2 * lab[core][:, 0].std()
    assert np.median(np.abs(result[core][:, 1:] - lab[core][:, 1:])) <= 2


def test_clahe_without_surround_equals_opencv():
    rng = np.random.default_rng(0)
    crop = ndimage.gaussian_filter(rng.uniform(0, 255, (64, 64, 3)), (3, 3, 0))
    crop = np.clip(4 * (crop - 127) + 127, 0, 255).astype(np.uint8)
    mask = recorded_mask(Disc(50, 50, 50, -1, -1, 101, 101), 64)
    lab = cv2.cvtColor(reflected(crop, inner(mask)), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[..., 0].copy())
    expected = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    assert np.array_equal(clahe(crop, mask)[mask], expected[mask])


def test_reflection_mirrors_at_the_nearest_pixel():
    size = 24
    crop = np.random.default_rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), bool)
    mask[5:20, 3:22] = True
    result = reflected(crop, mask)
    for row in range(size):
        for column in range(size):
            y, x = min(max(row, 5), 19), min(max(column, 3), 21)
            assert np.array_equal(result[row, column], crop[2 * y - row, 2 * x - column])


def test_reflection_never_shows_the_surround(cut_off):
    crop, mask = cut_off
    marked = np.where(mask[..., None], np.uint8(100), np.uint8(0)) * np.ones_like(crop)
    assert (reflected(marked, mask) == 100).all()
    assert np.array_equal(reflected(crop, np.zeros_like(mask)), crop)


@pytest.mark.skipif(not (REAL / "idrid").is_dir(), reason=f"no IDRiD in {REAL}")
def test_rim_does_not_glow_on_idrid():
    """Near rim and cuts the level is that of the centre; with the plain formula it is not."""
    for path in sorted((REAL / "idrid").rglob("*.jpg"))[::60]:
        pixels = read_photograph(path).pixels
        disc = find_disc(pixels)
        crop, mask = crop_disc(pixels, disc, 224), recorded_mask(disc, 224)
        core = ndimage.binary_erosion(inner(mask), iterations=4)
        ring = inner(mask) & ~core
        result = ben_graham(crop, mask).mean(axis=2)
        blurred = cv2.GaussianBlur(crop, (0, 0), 224 / 60)
        plain = np.clip(4.0 * crop - 4.0 * blurred + 128, 0, 255).mean(axis=2)
        assert abs(np.median(result[ring]) - 128) < 8, path
        assert np.median(plain[ring]) - 128 > 8, path
