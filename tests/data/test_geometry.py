import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic_photographs import disc_photograph

from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import Disc, NoFundus, crop_disc, recorded_mask
from drgrade.data.image_reader import read_photograph

REAL = Path(os.environ.get("DRGRADE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
real = pytest.mark.skipif(not (REAL / "idrid").is_dir(), reason=f"no IDRiD in {REAL}")


def draw(
    size=(640, 480),
    centre=None,
    radius=None,
    stretch=1.0,
    background=(2, 1.0),
    brightness=150,
    falloff=0.4,
    halo=0.0,
    bright_rim=0.0,
    side_light=0.0,
    flares=(),
    notch=None,
    cut=(0, 0, 0, 0),
    text=False,
    seed=0,
):
    """Draw a fundus at a known position, with optic disc, dark macula, blurred rim and artefacts.

    ``centre``, ``radius`` and ``stretch`` as in `Disc`; ``background`` is level and noise; flares are angles
    on the rim; ``cut`` are widths of black bands at left, top, right, bottom.
    """
    (width, height), (cx, cy) = size, centre or (size[0] / 2, size[1] / 2)
    radius = radius or 0.45 * min(size)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    u, v = (x - cx) / (stretch * radius), (y - cy) / radius
    distance = np.hypot(u, v)
    light = (
        brightness * (1 - falloff * np.minimum(distance, 1) ** 2) * (1 + 0.1 * np.sin(9 * u) * np.sin(11 * v))
    )
    light += 0.5 * brightness * np.exp(-((((u - 0.45) / 0.11) ** 2 + (v / 0.13) ** 2) ** 2))
    light *= 1 - 0.5 * np.exp(-((u + 0.1) ** 2 + v**2) / 0.03)
    light *= (1 + side_light * u) * (1 + bright_rim * np.exp(-(((distance - 0.97) / 0.02) ** 2)))
    level = np.clip((1 - distance) * radius / 2 + 0.5, 0, 1) * light
    if notch is not None:
        along, across = u * np.cos(notch) + v * np.sin(notch), v * np.cos(notch) - u * np.sin(notch)
        level[(along > 0.9) & (along < 1.06) & (np.abs(across) < 0.05)] = 0.6 * brightness
    level = np.where(
        distance > 1, np.maximum(level, halo * brightness * np.exp((1 - distance) / 0.08)), level
    )
    for angle in flares:
        fx, fy = cx + stretch * radius * np.cos(angle), cy + radius * np.sin(angle)
        level += 100 * np.exp(-((((x - fx) / (0.2 * radius)) ** 2 + ((y - fy) / (0.26 * radius)) ** 2) ** 2))
    left, top, right, bottom = cut
    level[(x < left) | (y < top) | (x > width - right) | (y > height - bottom)] = 0
    rng = np.random.default_rng(seed)
    pixels = level[..., None] * (1.0, 0.55, 0.25) + rng.normal(*background, (height, width, 3))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if text:
        cv2.putText(pixels, "OD 12/03/2011", (4, height - 8), 0, height / 400, (255, 255, 255), 3)
        cv2.putText(pixels, "R", (width - 50, 50), 0, height / 300, (200, 220, 255), 4)
    return cv2.imdecode(cv2.imencode(".jpg", pixels)[1], cv2.IMREAD_COLOR)


def misses(disc, centre, radius, stretch=1.0):
    """Return the relative errors of centre, radius and stretch."""
    place = (
        max(abs(disc.x - centre[0]) / stretch, abs(disc.y - centre[1]), abs(disc.radius - radius)) / radius
    )
    return place, abs(np.log(disc.stretch / stretch))


HARD = {
    "dark": {"brightness": 22, "background": (1, 0.7)},
    "dark and cut at top and bottom": {"brightness": 22, "background": (1, 0.7), "radius": 270},
    "vignetting": {"falloff": 0.85},
    "bright rim": {"bright_rim": 1.0},
    "halo": {"halo": 0.25},
    "halo and cut at top and bottom": {"halo": 0.25, "radius": 270},
    "cut at top and bottom": {"radius": 280},
    "cut on all sides": {"size": (480, 480), "radius": 280},
    "bands on all sides": {"size": (480, 480), "radius": 215, "cut": (60, 70, 65, 75)},
    "bands of a brighter surround": {"cut": (0, 60, 0, 80), "background": (9, 2)},
    "background": {"background": (28, 7)},
    "background and cut": {"background": (20, 5), "radius": 270},
    "text": {"text": True},
    "text and cut at top and bottom": {"text": True, "radius": 265},
    "flares": {"flares": (0.3, 2.5, 4.4)},
    "flare and cut at top and bottom": {"flares": (0.2, 3.0), "radius": 270},
    "notch": {"notch": 0.7},
    "light from one side": {"side_light": 0.7},
    "touches all four sides": {"size": (480, 480), "radius": 240},
    "off-centre": {"centre": (200, 300), "radius": 200},
    "off-centre and cut on one side": {"centre": (150, 240), "radius": 190},
    "very small in a large frame": {"size": (1500, 1100), "centre": (300, 800), "radius": 110},
    "small file": {"size": (128, 96)},
}


@pytest.mark.parametrize("options", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_difficult_photographs_give_the_true_round_disc(options, seed):
    size = options.get("size", (640, 480))
    centre, radius = (
        options.get("centre", (size[0] / 2, size[1] / 2)),
        options.get("radius", 0.45 * min(size)),
    )
    disc = find_disc(draw(seed=seed, **options))
    assert disc.stretch == 1
    assert misses(disc, centre, radius)[0] < 0.02


SQUASHED = {
    "whole": {},
    "cut at top and bottom": {"cut_off": True},
    "dark": {"brightness": 25, "background": (1, 0.7)},
    "background": {"background": (20, 5)},
    "text": {"text": True},
    "flares": {"flares": (0.8, 3.6)},
    "light from one side": {"side_light": -0.6},
    "halo": {"halo": 0.2},
    "notch": {"notch": 0.6},
}


@pytest.mark.parametrize("options", SQUASHED.values(), ids=SQUASHED.keys())
@pytest.mark.parametrize("stretch", [0.45, 0.664, 0.9, 1.1, 1.5])
def test_stretch_of_squashed_photographs_is_within_one_per_cent(options, stretch):
    options = dict(options)
    radius = 250 if options.pop("cut_off", False) else 200
    size = (round(2.3 * radius * stretch), 430)
    disc = find_disc(draw(size, radius=radius, stretch=stretch, **options))
    place, out_of_round = misses(disc, (size[0] / 2, 215), radius, stretch)
    assert out_of_round < 0.01
    assert place < 0.02


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    width=st.integers(300, 1000),
    aspect=st.floats(0.65, 1.0),
    share=st.floats(0.35, 0.6),
    shift=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
    bands=st.tuples(st.floats(0, 0.12), st.floats(0, 0.12)),
    background=st.tuples(st.floats(0, 20), st.floats(0.3, 5)),
    brightness=st.integers(80, 220),
    seed=st.integers(0, 99),
)
def test_disc_is_accurate_for_all_sizes_cuts_and_backgrounds(
    width, aspect, share, shift, bands, background, brightness, seed
):
    size = (width, round(width * aspect))
    radius = min(share * size[1], 0.46 * width)
    centre = (width * (0.5 + shift[0]), size[1] * (0.5 + shift[1]))
    cut = (0, bands[0] * size[1], 0, bands[1] * size[1])
    pixels = draw(size, centre, radius, background=background, brightness=brightness, cut=cut, seed=seed)
    disc = find_disc(pixels)
    assert disc.stretch == 1
    assert misses(disc, centre, radius)[0] < 0.02


def test_specks_in_a_long_black_frame_give_a_disc():
    pixels = np.zeros((100, 900, 3), np.uint8)
    for x in range(760, 900, 20):
        pixels[40:50, x : x + 10] = 120
    assert find_disc(pixels).radius == pytest.approx(50, rel=0.02)  # nothing found: the inscribed circle


def test_crop_averages_the_pixels_of_the_photograph():
    """Reductions in several steps equal those in one, up to rounding."""
    pixels = draw((900, 700), radius=300)
    disc = Disc(450, 350, 300, 0, 0, 900, 700)
    square = pixels[50:650, 150:750]
    for size in (60, 150, 200, 299):
        direct = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        gaps = np.abs(crop_disc(pixels, disc, size).astype(int) - direct)
        assert gaps.mean() < 0.7
        assert gaps.max() <= 8


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    factor=st.floats(0.35, 1.0),
    stretch=st.sampled_from([0.7, 1.0, 1.4]),
    radius=st.floats(260, 420),
    seed=st.integers(0, 99),
)
def test_crop_of_a_smaller_copy_is_the_same(factor, stretch, radius, seed):
    size = (round(900 * max(stretch, 0.8)), 700)
    pixels = draw(size, radius=radius, stretch=stretch, seed=seed)
    small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    crops = [crop_disc(image, find_disc(image), 64).astype(int) for image in (pixels, small)]
    assert np.abs(crops[0] - crops[1]).mean() < 4


@pytest.mark.parametrize("stretch", [0.664, 1.3])
def test_crop_of_a_squashed_copy_is_the_same(stretch):
    pixels = draw((900, 640), (460, 310), 290)
    squashed = cv2.resize(pixels, None, fx=stretch, fy=1, interpolation=cv2.INTER_AREA)
    crops = [crop_disc(image, find_disc(image), 128).astype(int) for image in (pixels, squashed)]
    assert np.abs(crops[0] - crops[1]).mean() < 4
    stretched = crop_disc(squashed, replace(find_disc(squashed), stretch=1.0), 128)
    assert np.abs(crops[0] - stretched).mean() > 8


def test_stretch_is_one_without_a_visible_rim():
    pixels = draw((900, 900), radius=700)[200:700, 150:750]
    squashed = np.ascontiguousarray(cv2.resize(pixels, (300, 500), interpolation=cv2.INTER_AREA))
    assert find_disc(squashed) == Disc(x=150, y=250, radius=150, left=0, top=0, right=300, bottom=500)


def test_clear_radius_of_a_squashed_disc_is_measured_vertically():
    disc = Disc(x=50, y=100, radius=80, left=10, top=0, right=100, bottom=200, stretch=0.5)
    assert disc.clear_radius == 80
    assert replace(disc, left=20).clear_radius == 60  # 30 of 40 pixels across
    assert replace(disc, top=50).clear_radius == 50
    assert disc.scaled(2, 2) == Disc(100, 200, 160, 20, 0, 200, 400, 0.5)


@pytest.mark.parametrize("stretch", [1.0, 0.6])
def test_recorded_mask_excludes_padding_and_bands(stretch):
    size, disc = 40, Disc(x=60, y=70, radius=60, left=0, top=25, right=200, bottom=130, stretch=stretch)
    mask = recorded_mask(disc, size)
    for row in range(size):
        for column in range(size):
            u, v = (column + 0.5) / 20 - 1, (row + 0.5) / 20 - 1
            x, y = 60 + 60 * stretch * u, 70 + 60 * v
            half_x, half_y = 60 * stretch / size + 0.5, 60 / size + 0.5
            inside = x - half_x >= 0 and x + half_x <= 200 and y - half_y >= 25 and y + half_y <= 130
            assert mask[row, column] == (np.hypot(u, v) <= 1 and inside)
    recorded = np.zeros((140, 200, 3), np.uint8)
    recorded[25:130] = 255
    assert (crop_disc(recorded, disc, size)[mask] == 255).all()


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
def test_drawn_circle_is_recovered(size, shift, share, background, noise, brightness):
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
def test_black_bands_are_outside_the_recorded_rectangle(top, bottom, background, flip):
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


def test_clear_circle_is_inside_disc_and_recorded_rectangle():
    disc = Disc(x=50, y=40, radius=45, left=0, top=10, right=100, bottom=80)
    assert disc.clear_radius == 30
    assert Disc(50, 50, 40, 0, 0, 100, 100).clear_radius == 40


@pytest.mark.parametrize("level", [0, 3, 12])
def test_black_photograph_raises_no_fundus(level):
    pixels = np.random.default_rng(0).integers(0, level + 1, (300, 400, 3)).astype(np.uint8)
    with pytest.raises(NoFundus, match="black"):
        find_disc(pixels)


@pytest.mark.parametrize("level", [40, 128, 255])
def test_blank_photograph_raises_no_fundus(level):
    with pytest.raises(NoFundus, match="one colour"):
        find_disc(np.full((300, 400, 3), level, np.uint8))


def test_photograph_inside_the_disc_gives_the_inscribed_circle():
    pixels = disc_photograph((900, 900), radius=440)[300:560, 250:650]
    disc = find_disc(np.ascontiguousarray(pixels))
    assert disc == Disc(x=200, y=130, radius=130, left=0, top=0, right=400, bottom=260)


def test_disc_that_touches_all_four_sides_is_found():
    disc = find_disc(disc_photograph((512, 512), radius=256))
    assert close_to(disc, (256, 256), 256, 0.01)
    assert disc.clear_radius > 0.98 * disc.radius


def test_text_and_flare_do_not_move_the_circle():
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
def test_tiny_and_odd_shapes_give_a_disc_or_no_fundus(shape):
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    try:
        disc = find_disc(pixels)
    except NoFundus:
        return
    assert disc.radius > 0
    assert crop_disc(pixels, disc, 32).shape == (32, 32, 3)


def test_disc_does_not_depend_on_image_size():
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
def test_crop_is_centred_and_keeps_circles_round(size, shift, share, side):
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


def test_crop_is_black_outside_the_photograph():
    pixels = np.full((100, 200, 3), 200, np.uint8)
    crop = crop_disc(pixels, Disc(100, 50, 100, 0, 0, 200, 100), 80)
    assert not crop[:19].any()
    assert not crop[61:].any()
    assert (crop[21:59] == 200).all()


@real
def test_idrid_discs_have_similar_radius_and_centre():
    """All photographs are from one camera."""
    paths = sorted((REAL / "idrid").rglob("*.jpg"))[::6]
    discs = [find_disc(read_photograph(path).pixels) for path in paths]
    assert np.allclose([disc.radius for disc in discs], 307, atol=1.5)
    assert np.allclose([disc.x for disc in discs], 356, atol=5)
    assert np.allclose([disc.clear_radius / disc.radius for disc in discs], 0.83, atol=0.01)


@real
def test_no_pixel_under_the_pretext_mask_is_padding_or_black_on_idrid():
    """Padding is marked by a colour, because a real dark lesion is not padding."""
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
def test_disc_of_a_full_size_photograph_is_that_of_its_small_copy():
    path = sorted((REAL / "idrid_originals").glob("*.jpg"))[0]
    small = find_disc(read_photograph(path, at_least=448).pixels)
    full = find_disc(read_photograph(path).pixels)
    assert close_to(small.scaled(4, 4), (full.x, full.y), full.radius, 0.005)


@real
@pytest.mark.parametrize(("width", "height"), [(512, 512), (224, 224), (900, 512), (718, 512)])
def test_stretch_of_squashed_idrid_photographs_is_within_one_per_cent(width, height):
    """Only the sides of the ellipse are visible, because it is cut off at top and bottom."""
    for path in sorted((REAL / "idrid").rglob("*.jpg"))[::40]:
        pixels = read_photograph(path).pixels
        disc = find_disc(pixels)
        fx, fy = width / pixels.shape[1], height / pixels.shape[0]
        squashed = find_disc(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
        place, out_of_round = misses(squashed, (fx * disc.x, fy * disc.y), fy * disc.radius, fx / fy)
        assert out_of_round < 0.0125, path
        assert place < 0.012, path
        assert abs(squashed.clear_radius / squashed.radius - disc.clear_radius / disc.radius) < 0.015


@real
def test_idrid_photographs_are_not_squashed():
    for path in sorted((REAL / "idrid").rglob("*.jpg"))[1::6]:
        assert find_disc(read_photograph(path, at_least=200).pixels).stretch == 1, path


def on_paper(pixels, level=255, noise=0.0):
    """Replace the black surround of a drawn photograph by paper, and add margins of 150 px at both sides."""
    around = cv2.morphologyEx((pixels.max(axis=2) > 25).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((15, 15)))
    paper = np.where(around[..., None] > 0, pixels, level)
    wide = np.pad(paper, ((0, 0), (150, 150), (0, 0)), constant_values=level)
    return np.clip(wide + np.random.default_rng(0).normal(0, noise, wide.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("cut", [(0, 0, 0, 0), (0, 40, 0, 40)])
@pytest.mark.parametrize(("level", "noise"), [(255, 0), (200, 0), (235, 3)])
def test_disc_on_paper_is_found(cut, level, noise):
    pixels = draw(radius=200, background=(0, 0))[cut[1] : 480 - cut[3]]
    pixels = draw(radius=260, background=(0, 0)) if any(cut) else pixels
    black = find_disc(np.pad(pixels, ((0, 0), (150, 150), (0, 0))))
    disc = find_disc(on_paper(pixels, level, noise))
    assert disc.framed
    assert not disc.doubt
    assert not black.framed
    assert disc.radius == pytest.approx(black.radius, rel=0.02)
    assert disc.clear_radius / disc.radius == pytest.approx(black.clear_radius / black.radius, rel=0.02)


@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (60, 90, 200)])
def test_disc_in_a_window_is_found(colour):
    pixels = draw(radius=200, background=(0, 0))
    screen = np.full((900, 1400, 3), colour, np.uint8)
    screen[:40] = 40
    screen[200:680, 300:940] = pixels
    cv2.putText(screen, "Patient 1", (1000, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3)
    disc = find_disc(screen)
    assert close_to(disc, (620, 440), 200)
    assert not disc.doubt


@pytest.mark.parametrize("gap", [0, 60])
@pytest.mark.parametrize("level", [0, 255])
def test_two_photographs_side_by_side_are_reported(gap, level):
    one = draw(radius=220, background=(0, 0))
    two = np.concatenate(
        (one, np.zeros((480, gap, 3), np.uint8), draw(radius=215, background=(0, 0), seed=1)), axis=1
    )
    assert find_disc(on_paper(two, level) if level else two).doubt
    assert not find_disc(one).doubt


def test_disc_without_rim_is_reported():
    disc = find_disc(draw((320, 320), radius=400))
    assert "no rim" in disc.doubt
    assert disc.radius == 160
