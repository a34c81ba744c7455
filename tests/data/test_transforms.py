import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import crop_disc
from drgrade.data.transforms import (
    FILL,
    MAX_MASK_RADIUS,
    MaskedView,
    MultiView,
    SquareView,
    circular_mask,
    level_image,
    zoom_about_centre,
)
from drgrade.errors import ConfigError

SENTINEL = (255, 0, 255)
SIZES = (17, 32, 63, 96, 224)


def photograph(size=64, seed=0, low=40, high=200):
    return np.random.default_rng(seed).integers(low, high, (size, size, 3)).astype(np.uint8)


def smooth_photograph(size=64):
    y, x = np.mgrid[:size, :size] / size
    return np.stack((80 + 100 * x, 60 + 90 * y, 40 + 40 * x * y), axis=-1).astype(np.uint8)


def distance(size):
    offset = np.arange(size) - (size - 1) / 2
    return np.hypot(offset[:, None], offset[None, :]) / (size / 2)


def silhouette(view):
    return (view != FILL).any(axis=-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [0.3, 0.8, MAX_MASK_RADIUS])
def test_circular_mask_is_invariant_under_turns_and_mirrors(size, radius):
    mask = circular_mask(size, radius)
    for image in (np.rot90(mask), np.rot90(mask, 2), mask[::-1], mask[:, ::-1], mask.T):
        np.testing.assert_array_equal(image, mask)


@pytest.mark.parametrize("size", SIZES)
def test_circular_mask_is_centred(size):
    mask = circular_mask(size)
    assert distance(size)[mask].max() <= 0.92
    assert mask.sum() == pytest.approx(np.pi * (0.92 * size / 2) ** 2, rel=0.05)


@pytest.mark.parametrize(
    ("transform", "options"),
    [
        *((MaskedView, {"mask_radius": radius}) for radius in (0.0, -1.0, 0.921)),
        *((MaskedView, {"zoom": zoom}) for zoom in ([1.1, 0.9], [0, 1], [1])),
        *((MaskedView, {"band": band}) for band in (0.0, 0.6)),
        *((SquareView, {"area": area}) for area in ([0, 1], [0.5, 1.2], [1])),
        *((SquareView, options) for options in ({"blur": 2}, {"rotate": 200}, {"size": 4})),
    ],
)
def test_settings_out_of_range_are_refused(transform, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        transform(**options)


@pytest.mark.parametrize("seed", [None, 0, 5])
@pytest.mark.parametrize("size", [33, 64, 96])
def test_masked_views_have_the_same_silhouette(size, seed):
    views = [
        photograph(size),
        photograph(size, low=0, high=2),
        np.full((size, size, 3), FILL, np.uint8),
        np.where(photograph(size) > 120, np.array(FILL), photograph(size)).astype(np.uint8),
        np.full((size, size, 3), 255, np.uint8),
        smooth_photograph(size),
    ]
    for level in (False, True):
        for image in views:
            shown = MaskedView(level=level)(image, 0.83, seed)
            np.testing.assert_array_equal(silhouette(shown), circular_mask(size))
            assert (shown[~circular_mask(size)] == FILL).all()


@settings(max_examples=60, deadline=None)
@example(clear=0.5, low=1.0, spread=1.0, seed=None, size=32, radius=0.875)
@given(
    clear=st.floats(0.5, 1.0),
    low=st.floats(0.6, 1.0),
    spread=st.floats(1.0, 1.6),
    seed=st.one_of(st.none(), st.integers(0, 2**63)),
    size=st.sampled_from([32, 63, 96, 224]),
    radius=st.floats(0.5, MAX_MASK_RADIUS),
)
def test_masked_view_shows_recorded_pixels_only(clear, low, spread, seed, size, radius):
    recorded = distance(size) <= clear
    image = np.where(recorded[..., None], np.uint8(90), np.array(SENTINEL, np.uint8))
    view = MaskedView(mask_radius=radius, zoom=(low, low * spread), level=False)(image, clear, seed)
    assert (view[circular_mask(size, radius)] == 90).all()
    levelled = MaskedView(mask_radius=radius, zoom=(low, low * spread))(image, clear, seed)
    np.testing.assert_array_equal(levelled, view)


@settings(max_examples=15, deadline=None)
@given(top=st.floats(0.0, 0.4), bottom=st.floats(0.0, 0.4), seed=st.integers(0, 1000))
def test_masked_view_does_not_show_a_cut(top, bottom, seed):
    y, x = np.mgrid[:240, :240] + 0.5
    inside = np.hypot(x - 120, y - 120) < 110
    frame = slice(round(10 + 110 * top), round(230 - 110 * bottom))
    pixels = (np.where(inside, 150, 0)[..., None] * np.ones(3)).astype(np.uint8)[frame]
    disc = find_disc(pixels)
    view = MaskedView()(crop_disc(pixels, disc, 96), disc.clear_radius / disc.radius, seed)
    assert (np.abs(view[circular_mask(96)].astype(int) - 150) <= 1).all()


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("size", [32, 63, 96, 224])
def test_band_has_the_mean_colour(size, seed):
    view = MaskedView()(photograph(size), 0.9, seed)
    rim = circular_mask(size) & ~circular_mask(size, 0.9 * MAX_MASK_RADIUS)
    colours = np.unique(view[rim], axis=0)
    assert len(colours) == 1
    core = view[circular_mask(size, 0.9 * MAX_MASK_RADIUS)]
    np.testing.assert_allclose(colours[0], core.mean(axis=0), atol=0.6)


def test_masked_view_shows_the_photograph_up_to_the_band():
    size, clear = 224, 0.8
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, y) / (size / 2)
    image = np.repeat((250 * radius)[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)
    view = MaskedView(level=False)(image, clear, None)
    core = circular_mask(size, 0.9 * MAX_MASK_RADIUS)
    shown = clear - 1 / size  # half a pixel less than was recorded
    np.testing.assert_allclose(view[core][:, 0], (250 * radius * shown / MAX_MASK_RADIUS)[core], atol=1.5)


def test_masked_view_is_reproducible_with_a_seed():
    view, image = MaskedView(brightness=0.2, hue=0.1), photograph()
    np.testing.assert_array_equal(view(image, 0.9, 7), MaskedView(brightness=0.2, hue=0.1)(image, 0.9, 7))
    assert len({view(image, 0.9, seed).tobytes() for seed in range(20)}) == 20


def test_masked_view_does_not_modify_its_input():
    image = photograph()
    before = image.copy()
    for seed in (None, 0, 1):
        MaskedView()(image, 1.0, seed)
    np.testing.assert_array_equal(image, before)


def test_masked_view_without_seed_is_the_widest_unmirrored_view():
    image = smooth_photograph()
    plain = MaskedView(zoom=(0.7, 0.7), horizontal_flip=False)
    for clear in (0.6, 1.0):
        np.testing.assert_array_equal(MaskedView()(image, clear, None), plain(image, clear, 1))


def test_masked_view_depends_on_the_ratio_of_zooms():
    image = photograph()
    one, other = MaskedView(zoom=(0.5, 1.0)), MaskedView(zoom=(1.0, 2.0))
    np.testing.assert_array_equal(one(image, 0.9, 5), other(image, 0.9, 5))


def test_masked_views_are_mirrored_left_to_right_only():
    view = MaskedView(zoom=(1, 1), level=False)
    image = photograph(65)
    widest = view(image, 1.0, None)
    drawn = [view(image, 1.0, seed) for seed in range(200)]
    mirrored = [np.array_equal(v, widest[:, ::-1]) for v in drawn]
    assert all(m or np.array_equal(v, widest) for m, v in zip(mirrored, drawn, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("k", [1, 2, 3])
def test_masked_view_of_a_turned_photograph_is_turned(k):
    image = smooth_photograph(64)
    turned = MaskedView()(np.rot90(image, k).copy(), 0.9, None)
    expected = np.rot90(MaskedView()(image, 0.9, None), k)
    assert np.abs(turned.astype(int) - expected).max() <= 2


def test_zoom_by_one_is_the_identity():
    image = photograph()
    np.testing.assert_array_equal(zoom_about_centre(image, 1.0), image)


@pytest.mark.parametrize("size", [32, 63, 224])
@pytest.mark.parametrize("slopes", [(0.3, -0.2), (0.0, 0.5), (-0.5, -0.5)])
def test_levelling_removes_a_gradient(size, slopes):
    core = circular_mask(size, 0.8)
    offset = np.linspace(-1, 1, size)
    plane = 1 + slopes[0] * offset[None, :] + slopes[1] * offset[:, None]
    image = np.clip(np.array([120, 80, 60]) * plane[..., None] + 0.5, 0, 255).astype(np.uint8)
    shown = level_image(image, core)[core].astype(float)
    np.testing.assert_allclose(shown, np.broadcast_to([120, 80, 60], shown.shape), atol=2)


def test_levelling_divides_by_the_least_squares_plane():
    core, image = circular_mask(64, 0.8), photograph(64)
    image[:20] //= 3
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    design = np.stack((np.ones(core.sum()), x[core], y[core]), axis=1)
    coefficients, *_ = np.linalg.lstsq(design, image[core].astype(float), rcond=None)
    expected = image[core] / (design @ (coefficients / coefficients[0]))
    np.testing.assert_allclose(level_image(image, core)[core], expected.clip(0, 255), atol=0.6)


def test_levelling_accepts_black_and_half_black_photographs():
    core = circular_mask(64, 0.8)
    black = np.zeros((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(level_image(black, core)[core], 0)
    black[:, 40:] = 255
    assert (level_image(black, core)[:, :40][core[:, :40]] == 0).all()


def marked(size, clear):
    """Return an image that is dark inside the recorded circle and white outside."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    noise = np.random.default_rng(0).integers(0, 100, (size, size, 3))
    return np.where((np.hypot(x, y) <= clear * size / 2)[..., None], noise, 255).astype(np.uint8)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.none() | st.integers(0, 2**32),
    clear=st.floats(0.3, 1.0),
    low=st.floats(0.05, 1.0),
    rotate=st.sampled_from([0.0, 30.0, 180.0]),
    size=st.sampled_from([33, 64, 96]),
)
def test_square_view_shows_recorded_pixels_only(seed, clear, low, rotate, size):
    view = SquareView(area=(low, 1.0), rotate=rotate, vertical_flip=True)(marked(size, clear), clear, seed)
    assert view.shape == (size, size, 3)
    assert view.max() < 100


def test_largest_square_touches_the_circle():
    image = marked(96, 0.8)
    view = SquareView(size=64)(image, 0.86, None)
    assert (view[[0, 0, -1, -1], [0, -1, 0, -1]] > 100).any()  # its corners lie on the edge
    assert (view > 100).mean() < 0.02


def test_square_view_is_reproducible_with_a_seed():
    view = SquareView(area=(0.2, 0.6), brightness=0.3, grayscale=0.5, blur=0.5, rotate=90)
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    first = view(image, 0.9, 5)
    np.testing.assert_array_equal(first, view(image, 0.9, 5))
    assert (first != view(image, 0.9, 6)).any()


def test_small_squares_cover_the_circle():
    y, x = np.mgrid[:64, :64].astype(np.uint8)
    image = np.stack((x, y, np.zeros_like(x)), axis=-1)
    view = SquareView(area=(0.05, 0.05), horizontal_flip=False, size=8)
    centres = np.array([view(image, 1.0, seed).mean(axis=(0, 1))[:2] for seed in range(300)])
    assert np.hypot(*(centres - 31.5).T).max() > 20
    assert centres.mean(axis=0) == pytest.approx([31.5, 31.5], abs=2.5)


def test_square_view_without_seed_is_the_centred_square():
    image = np.random.default_rng(2).integers(0, 255, (65, 65, 3)).astype(np.uint8)
    view = SquareView(size=45, grayscale=1.0, blur=1.0, brightness=0.9)(image, 1.0, None)
    assert view[22, 22].tolist() == image[32, 32].tolist()


def test_grayscale_and_blur_have_their_effect():
    image = np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    gray = SquareView(grayscale=1.0)(image, 1.0, 1)
    assert (gray.max(axis=-1) == gray.min(axis=-1)).all()
    plain = [SquareView(area=(1, 1))(image, 1.0, seed).std() for seed in range(10)]
    blurred = [SquareView(area=(1, 1), blur=1.0)(image, 1.0, seed).std() for seed in range(10)]
    assert np.mean(blurred) < np.mean(plain)


def test_multi_view_returns_different_views():
    image = np.random.default_rng(4).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    views = MultiView([SquareView(), SquareView(area=(0.1, 0.3), size=32)], [2, 3])
    for seed in (None, 0, 7):
        made = views(image, 0.9, seed)
        assert [view.shape[0] for view in made] == [64, 64, 32, 32, 32]
        assert len({view.tobytes() for view in made}) == 5
        for first, second in zip(made, views(image, 0.9, seed), strict=True):
            np.testing.assert_array_equal(first, second)


def test_nested_multi_view_is_flattened():
    image = np.random.default_rng(4).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    joined = MultiView([MaskedView(), MultiView([SquareView()], [2])])(image, 0.9, None)
    np.testing.assert_array_equal(joined[0], MaskedView()(image, 0.9, None))
    assert len(joined) == 3


@pytest.mark.parametrize(("views", "counts"), [([], None), ([SquareView()], [0]), ([SquareView()], [1, 2])])
def test_multi_view_needs_a_count_for_each_transform(views, counts):
    with pytest.raises(ConfigError, match="counts"):
        MultiView(views, counts)
