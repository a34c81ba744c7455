import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic_photographs import disc_photograph

from drgrade.data.geometry import Disc, NoFundus, crop_disc, find_disc
from drgrade.data.reading import read_photograph

REAL = Path(os.environ.get("DRGRADE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
real = pytest.mark.skipif(not (REAL / "idrid").is_dir(), reason=f"no IDRiD in {REAL}")


def close_to(disc, centre, radius, tolerance=0.02):
    misses = (disc.x - centre[0], disc.y - centre[1], disc.radius - radius)
    return max(map(abs, misses)) < tolerance * radius


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(250, 900), st.integers(250, 900)),
    shift=st.tuples(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08)),
    share=st.floats(0.3, 0.6),
    background=st.integers(0, 18),
    noise=st.floats(0, 4),
    brightness=st.integers(60, 250),
)
def test_the_circle_is_recovered(size, shift, share, background, noise, brightness):
    centre = (size[0] * (0.5 + shift[0]), size[1] * (0.5 + shift[1]))
    radius = share * min(size) if share < 0.5 else min(share * min(size), 0.47 * max(size))
    assume(radius < 0.6 * min(size))
    pixels = disc_photograph(size, centre, radius, background, noise, brightness)
    disc = find_disc(pixels)
    assert close_to(disc, centre, radius)
    assert (disc.left, disc.top, disc.right, disc.bottom) == (0, 0, *size)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    top=st.integers(0, 90),
    bottom=st.integers(0, 90),
    background=st.integers(0, 12),
    flip=st.booleans(),
)
def test_bands_that_cut_the_disc_inside_the_file_are_not_recorded(top, bottom, background, flip):
    pixels = disc_photograph((600, 480), (300, 240), 225, background, noise=2)
    pixels[:top] = pixels[480 - bottom :] = background
    if flip:
        pixels = pixels.transpose(1, 0, 2)
    disc = find_disc(np.ascontiguousarray(pixels))
    assert close_to(disc, (240, 300) if flip else (300, 240), 225, 0.03)
    first, last = (disc.left, 480 - disc.right) if flip else (disc.top, 480 - disc.bottom)
    for band, edge in ((top, first), (bottom, last)):
        if band > 35:  # the disc begins at 15; thinner slices of it are too short to tell
            assert band - 1 <= edge <= band + 5


def test_the_clear_circle_is_inside_disc_and_recorded_rectangle():
    disc = Disc(x=50, y=40, radius=45, left=0, top=10, right=100, bottom=80)
    assert disc.clear_radius == 30
    assert Disc(50, 50, 40, 0, 0, 100, 100).clear_radius == 40


@pytest.mark.parametrize("level", [0, 3, 12])
def test_a_black_photograph_shows_no_fundus(level):
    pixels = np.random.default_rng(0).integers(0, level + 1, (300, 400, 3)).astype(np.uint8)
    with pytest.raises(NoFundus, match="black"):
        find_disc(pixels)


@pytest.mark.parametrize("level", [40, 128, 255])
def test_a_blank_photograph_shows_no_fundus(level):
    with pytest.raises(NoFundus, match="one colour"):
        find_disc(np.full((300, 400, 3), level, np.uint8))


def test_a_crop_inside_the_disc_gives_the_inscribed_circle():
    pixels = disc_photograph((900, 900), radius=440)[300:560, 250:650]
    disc = find_disc(np.ascontiguousarray(pixels))
    assert disc == Disc(x=200, y=130, radius=130, left=0, top=0, right=400, bottom=260)


def test_a_square_crop_that_touches_the_disc_on_all_sides():
    disc = find_disc(disc_photograph((512, 512), radius=256))
    assert close_to(disc, (256, 256), 256, 0.01)
    assert disc.clear_radius > 0.98 * disc.radius


def test_text_in_a_corner_and_a_flare_do_not_move_the_circle():
    pixels = disc_photograph((771, 512), radius=230)
    cv2.putText(pixels, "OD 12/03", (5, 500), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 3)
    cv2.ellipse(pixels, (630, 250), (40, 60), 0, 0, 360, (120, 110, 100), -1)
    assert close_to(find_disc(pixels), (385.5, 256), 230)


@pytest.mark.parametrize("centre", [(800, 800), (700, 950)])
def test_a_small_disc_in_a_wide_surround_is_found(centre):
    disc = find_disc(disc_photograph((1600, 1600), centre, radius=260, background=8, noise=3))
    assert close_to(disc, centre, 260)


def test_vignetting_does_not_shrink_the_circle():
    pixels = disc_photograph((771, 512), radius=230).astype(float)
    y, x = np.mgrid[:512, :771]
    distance = np.minimum(np.hypot(x - 385, y - 255.5) / 230, 1)
    dark_rim = (pixels * (1 - 0.8 * distance**4)[..., None]).astype(np.uint8)
    assert close_to(find_disc(dark_rim), (385.5, 256), 230)


def test_light_from_one_side_does_not_shift_the_circle():
    pixels = disc_photograph((771, 512), radius=230) * np.linspace(1.4, 0.2, 771)[None, :, None]
    assert close_to(find_disc(np.clip(pixels, 0, 255).astype(np.uint8)), (385.5, 256), 230)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 40), (17, 900)])
def test_tiny_and_odd_shapes_give_a_disc_or_a_reason(shape):
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    try:
        disc = find_disc(pixels)
    except NoFundus:
        return
    assert disc.radius > 0
    assert crop_disc(pixels, disc, 32).shape == (32, 32, 3)


def test_the_same_photograph_gives_the_same_disc_at_any_size():
    large = disc_photograph((2400, 1600), (1180, 810), 760)
    small = cv2.resize(large, (600, 400), interpolation=cv2.INTER_AREA)
    big, little = find_disc(large), find_disc(small)
    assert close_to(little.scaled(4, 4), (big.x, big.y), big.radius, 0.005)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(200, 700), st.integers(200, 700)),
    shift=st.floats(-0.1, 0.1),
    share=st.floats(0.3, 0.7),
    side=st.sampled_from([64, 224, 299]),
)
def test_the_crop_is_centred_and_keeps_circles_round(size, shift, share, side):
    centre = (size[0] * (0.5 + shift), size[1] * (0.5 - shift))
    radius = share * min(size)
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    spot = np.hypot(x - centre[0], y - centre[1]) < 0.5 * min(radius, 0.4 * min(size))
    pixels = np.repeat(np.where(spot, 255, 40).astype(np.uint8)[..., None], 3, axis=2)
    crop = crop_disc(pixels, Disc(*centre, radius, 0, 0, *size), side)
    assert crop.shape == (side, side, 3)
    rows, columns = np.nonzero(crop[..., 0] > 147)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1 + 2 * side / (2 * radius)
    assert abs(rows.mean() + 0.5 - side / 2) < 1 + side / (2 * radius)
    assert abs(columns.mean() + 0.5 - side / 2) < 1 + side / (2 * radius)


def test_outside_the_photograph_the_crop_is_black():
    pixels = np.full((100, 200, 3), 200, np.uint8)
    crop = crop_disc(pixels, Disc(100, 50, 100, 0, 0, 200, 100), 80)
    assert not crop[:19].any()
    assert not crop[61:].any()
    assert (crop[21:59] == 200).all()


@real
def test_every_idrid_disc_is_found_alike():
    """One camera: radius and height of the centre barely vary."""
    paths = sorted((REAL / "idrid").rglob("*.jpg"))[::6]
    discs = [find_disc(read_photograph(path).pixels) for path in paths]
    assert np.allclose([disc.radius for disc in discs], 307, atol=1.5)
    assert np.allclose([disc.x for disc in discs], 356, atol=5)
    assert np.allclose([disc.clear_radius / disc.radius for disc in discs], 0.83, atol=0.01)


@real
def test_no_pixel_under_the_pretext_mask_is_padding_or_black_on_idrid():
    """Marked pixels show where padding gets to; a real dark lesion is not padding."""
    side = 224
    y, x = np.ogrid[:side, :side]
    distance = np.hypot(x - (side - 1) / 2, y - (side - 1) / 2)
    for path in sorted((REAL / "idrid").rglob("*.jpg"))[::12]:
        pixels = read_photograph(path).pixels
        disc = find_disc(pixels)
        mask = distance <= 0.92 * disc.clear_radius / disc.radius * side / 2
        recorded = crop_disc(np.full_like(pixels, 255), disc, side)
        assert (recorded[mask] == 255).all(), path
        level = crop_disc(pixels, disc, side).max(axis=2)
        ring = mask & (distance > 0.9 * 0.92 * disc.clear_radius / disc.radius * side / 2)
        assert np.percentile(level[ring], 1) > 15, path


@real
@pytest.mark.parametrize("bands", [(60, 60), (0, 100), (90, 20)])
def test_no_pixel_under_the_mask_is_black_when_the_file_has_bands(bands):
    side = 224
    y, x = np.ogrid[:side, :side]
    distance = np.hypot(x - (side - 1) / 2, y - (side - 1) / 2)
    for path in sorted((REAL / "idrid").rglob("*.jpg"))[::40]:
        pixels = read_photograph(path).pixels.copy()
        content = np.full_like(pixels, 255)
        for photo in (pixels, content):
            photo[: bands[0]] = photo[len(photo) - bands[1] :] = 0
        disc = find_disc(pixels)
        mask = distance <= 0.92 * disc.clear_radius / disc.radius * side / 2
        assert (crop_disc(content, disc, side)[mask] == 255).all(), path


@real
def test_the_disc_of_a_full_size_photograph_is_that_of_its_small_copy():
    path = sorted((REAL / "idrid_originals").glob("*.jpg"))[0]
    small = find_disc(read_photograph(path, at_least=448).pixels)
    full = find_disc(read_photograph(path).pixels)
    assert close_to(small.scaled(4, 4), (full.x, full.y), full.radius, 0.005)
