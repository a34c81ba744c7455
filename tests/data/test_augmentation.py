"""Tests of augmentation: reproducible with its seed, geometrically correct, and a lazy import."""

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from scipy.stats import chi2_contingency, chisquare

from drgrade.data.transforms import FundusAugmentation
from drgrade.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "augment"
STRONG = {
    "zoom": (0.85, 1.15),
    "rotate": 180.0,
    "horizontal_flip": True,
    "vertical_flip": True,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.1,
    "hue": 0.02,
}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def drawn_circle(size, radius):
    offset = np.arange(size) - (size - 1) / 2
    inside = np.hypot(offset[:, None], offset[None, :]) <= radius
    return np.repeat((inside * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def published():
    settings = yaml.safe_load((CONF / "published.yaml").read_text())
    assert settings.pop("_target_") == "drgrade.data.transforms.FundusAugmentation"
    return settings


def augment_all(augmentation, image, seeds):
    """Augment in another process."""
    return [augmentation(image, seed).tobytes() for seed in seeds]


def test_augmentation_is_reproducible_with_a_seed(image):
    augmentation, other = FundusAugmentation(**STRONG), FundusAugmentation(**STRONG)
    first = [augmentation(image, seed) for seed in range(20)]
    for seed in reversed(range(20)):  # whatever came before
        np.testing.assert_array_equal(augmentation(image, seed), first[seed])
        np.testing.assert_array_equal(other(image, seed), first[seed])
    assert len({picture.tobytes() for picture in first}) == 20


def test_augmentation_does_not_use_global_generators(image):
    augmentation = FundusAugmentation(**STRONG)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one = augmentation(image, 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(augmentation(image, 5), one)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**63 - 1])
def test_augmentation_accepts_63_bit_seeds(image, seed):
    assert FundusAugmentation(**STRONG)(image, seed).shape == image.shape


def test_augmentation_does_not_modify_its_input(image):
    before = image.copy()
    augmentation = FundusAugmentation(**STRONG)
    for seed in range(5):
        result = augmentation(image, seed)
        assert (result.shape, result.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


def test_default_augmentation_returns_the_input(image):
    settings = yaml.safe_load((CONF / "none.yaml").read_text())
    del settings["_target_"]
    np.testing.assert_array_equal(FundusAugmentation(**settings)(image, 3), image)


def test_flips_are_independent_and_equally_common(image):
    """With ``set_random_seed`` of albumentations both flips would coincide."""
    augmentation = FundusAugmentation(horizontal_flip=True, vertical_flip=True)
    names = {
        image[::h, ::v].tobytes(): (h, v) for h in (1, -1) for v in (1, -1)
    }  # raises KeyError below if it is anything else
    counts = Counter(names[augmentation(image, seed).tobytes()] for seed in range(2000))
    assert len(counts) == 4
    table = np.array([[counts[h, v] for v in (1, -1)] for h in (1, -1)])
    assert chisquare(table.ravel()).pvalue > 0.01
    assert chi2_contingency(table).pvalue > 0.01


def test_flips_do_not_depend_on_the_zoom():
    size = 33
    image = drawn_circle(size, 10)
    image[:, : size // 2, 1] = 0  # left half magenta
    image[: size // 2, :, 2] = 0  # upper half without blue
    augmentation = FundusAugmentation(zoom=(0.85, 1.15), horizontal_flip=True, vertical_flip=True)
    counts: Counter[tuple[bool, bool, bool]] = Counter()  # mirrored, upside down, enlarged
    for seed in range(800):
        result = augmentation(image, seed)
        green, blue, area = result[:, :, 1], result[:, :, 2], (result[:, :, 0] > 127).sum()
        mirrored, upside_down = green[:, :16].sum() > green[:, 17:].sum(), blue[:16].sum() > blue[17:].sum()
        counts[bool(mirrored), bool(upside_down), bool(area > np.pi * 100)] += 1
    table = [[counts[h, v, large] for h in (False, True) for v in (False, True)] for large in (False, True)]
    assert min(map(min, table)) > 30
    assert chi2_contingency(table).pvalue > 0.01


@pytest.mark.parametrize("size", [64, 65])
def test_zoom_keeps_circles_round_and_in_place(size):
    radius = size * 0.3
    circle = drawn_circle(size, radius)
    augmentation = FundusAugmentation(zoom=(0.85, 1.15))
    scales = []
    for seed in range(100):
        inside = augmentation(circle, seed)[:, :, 0].astype(float) / 255
        area = inside.sum()
        y, x = np.indices(inside.shape)
        centre_y, centre_x = (y * inside).sum() / area, (x * inside).sum() / area
        assert abs(centre_y - (size - 1) / 2) < 0.5
        assert abs(centre_x - (size - 1) / 2) < 0.5
        spread_y = ((y - centre_y) ** 2 * inside).sum() / area
        spread_x = ((x - centre_x) ** 2 * inside).sum() / area
        assert spread_x / spread_y == pytest.approx(1, abs=0.02)
        scales.append(np.sqrt(area / np.pi) / radius)
    assert min(scales) == pytest.approx(0.85, abs=0.03)
    assert max(scales) == pytest.approx(1.15, abs=0.03)
    assert np.mean(scales) == pytest.approx(1, abs=0.03)
    assert min(scales) > 0.84
    assert max(scales) < 1.16


def test_zooming_out_fills_with_black():
    image = np.full((40, 40, 3), 200, np.uint8)
    result = FundusAugmentation(zoom=(0.5, 0.5))(image, 0)
    assert result[0].max() == 0
    assert result[20, 20].tolist() == [200, 200, 200]


def test_zoom_matches_opencv():
    image = cv2.GaussianBlur(
        np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8), (5, 5), 2
    )
    for factor in (0.85, 1.15):
        shift = 23.5 * (1 - factor)
        expected = cv2.warpAffine(image, np.array([[factor, 0, shift], [0, factor, shift]]), (48, 48))
        found = FundusAugmentation(zoom=(factor, factor))(image, 0)
        inner = slice(8, -8)
        difference = np.abs(found[inner, inner].astype(int) - expected[inner, inner])
        assert difference.mean() < 2  # within half a pixel's shift


def test_rotation_goes_both_ways_and_keeps_circles_round():
    size = 65
    image = np.zeros((size, size, 3), np.uint8)
    image[30:35, 50:58] = 255  # a mark to the right of the centre
    augmentation = FundusAugmentation(rotate=20)
    angles = []
    for seed in range(200):
        y, x = np.nonzero(augmentation(image, seed)[:, :, 0] > 127)
        offset_y, offset_x = y.mean() - 32, x.mean() - 32
        assert np.hypot(offset_y, offset_x) == pytest.approx(21.5, abs=0.7)
        angles.append(np.degrees(np.arctan2(offset_y, offset_x)))
    assert -22 < min(angles) < -17
    assert 17 < max(angles) < 22
    assert abs(np.mean(angles)) < 3


def test_colour_stays_within_its_range():
    image = np.full((4, 4, 3), 100, np.uint8)
    levels = [FundusAugmentation(brightness=0.2)(image, seed)[0, 0, 0] for seed in range(200)]
    assert min(levels) in range(80, 84)
    assert max(levels) in range(117, 121)


def test_published_augmentation_is_zoom_and_flips():
    settings = published()
    assert settings.pop("zoom") == [0.85, 1.15]
    assert settings.pop("horizontal_flip") is True
    assert settings.pop("vertical_flip") is True
    assert all(value == 0 for value in settings.values())
    assert set(settings) == {"rotate", "brightness", "contrast", "saturation", "hue"}


def test_published_config_builds_zoom_and_flips(image):
    """Each view is one of the four flips of a zoomed photograph; colours and angles are unchanged."""
    augmentation = FundusAugmentation(**published())
    only_zoom = FundusAugmentation(zoom=(0.85, 1.15))
    for seed in range(30):
        zoomed, found = only_zoom(image, seed), augmentation(image, seed)
        assert any(np.array_equal(zoomed[::h, ::v], found) for h in (1, -1) for v in (1, -1))


@pytest.mark.parametrize("zoom", [(1.15, 0.85), (0.0, 1.0), (-1.0, 1.0), (0.9,), (0.8, 0.9, 1.0)])
def test_invalid_zoom_is_refused(zoom):
    with pytest.raises(ConfigError, match="zoom="):
        FundusAugmentation(zoom=zoom)


@pytest.mark.parametrize(
    ("name", "value"),
    [("brightness", -0.1), ("contrast", 1.5), ("saturation", -1), ("hue", 0.6), ("rotate", -5.0)],
)
def test_strengths_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value} is not in"):
        FundusAugmentation(**{name: value})


def test_import_does_not_load_albumentations():
    code = (
        "import sys, os; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n"
        "import drgrade.data.transforms as a\n"
        "assert 'albumentations' not in sys.modules\n"
        "a.FundusAugmentation()\n"
        "assert 'albumentations' not in sys.modules, 'nothing to do, yet imported'\n"
        "a.FundusAugmentation(horizontal_flip=True)\n"
        "assert 'albumentations' in sys.modules\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pickled_augmentation_gives_the_same_result(image):
    augmentation = FundusAugmentation(**STRONG)
    copy = pickle.loads(pickle.dumps(augmentation))
    assert augment_all(copy, image, range(5)) == augment_all(augmentation, image, range(5))


def test_augmentation_in_a_spawned_process_gives_the_same_result(image):
    augmentation = FundusAugmentation(**STRONG)
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"  # which the worker inherits
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(augment_all, (augmentation, image, range(5)))
    assert found == augment_all(augmentation, image, range(5))
