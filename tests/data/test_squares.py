import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.data.squares import SeveralViews, SquareView
from drgrade.data.views import MaskedView
from drgrade.errors import ConfigError


def marked(size, clear):
    """Dark inside the circle that was recorded, white outside."""
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
def test_nothing_that_was_not_recorded_is_ever_shown(seed, clear, low, rotate, size):
    view = SquareView(area=(low, 1.0), rotate=rotate, vertical_flip=True)(marked(size, clear), clear, seed)
    assert view.shape == (size, size, 3)
    assert view.max() < 100


def test_the_largest_square_reaches_the_circle():
    image = marked(96, 0.8)
    view = SquareView(size=64)(image, 0.86, None)
    assert (view[[0, 0, -1, -1], [0, -1, 0, -1]] > 100).any()  # its corners lie on the edge
    assert (view > 100).mean() < 0.02


def test_the_same_seed_gives_the_same_view_and_another_another():
    view = SquareView(area=(0.2, 0.6), brightness=0.3, grayscale=0.5, blur=0.5, rotate=90)
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    first = view(image, 0.9, 5)
    np.testing.assert_array_equal(first, view(image, 0.9, 5))
    assert (first != view(image, 0.9, 6)).any()


def test_small_squares_come_from_everywhere_in_the_circle():
    y, x = np.mgrid[:64, :64].astype(np.uint8)
    image = np.stack((x, y, np.zeros_like(x)), axis=-1)
    view = SquareView(area=(0.05, 0.05), horizontal_flip=False, size=8)
    centres = np.array([view(image, 1.0, seed).mean(axis=(0, 1))[:2] for seed in range(300)])
    assert np.hypot(*(centres - 31.5).T).max() > 20
    assert centres.mean(axis=0) == pytest.approx([31.5, 31.5], abs=2.5)


def test_without_a_seed_the_middle_is_shown_as_it_is():
    image = np.random.default_rng(2).integers(0, 255, (65, 65, 3)).astype(np.uint8)
    view = SquareView(size=45, grayscale=1.0, blur=1.0, brightness=0.9)(image, 1.0, None)
    assert view[22, 22].tolist() == image[32, 32].tolist()


def test_gray_views_have_no_colour_and_blurred_ones_less_contrast():
    image = np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    gray = SquareView(grayscale=1.0)(image, 1.0, 1)
    assert (gray.max(axis=-1) == gray.min(axis=-1)).all()
    plain = [SquareView(area=(1, 1))(image, 1.0, seed).std() for seed in range(10)]
    blurred = [SquareView(area=(1, 1), blur=1.0)(image, 1.0, seed).std() for seed in range(10)]
    assert np.mean(blurred) < np.mean(plain)


def test_several_views_are_different_views_of_their_sizes():
    image = np.random.default_rng(4).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    views = SeveralViews([SquareView(), SquareView(area=(0.1, 0.3), size=32)], [2, 3])
    for seed in (None, 0, 7):
        made = views(image, 0.9, seed)
        assert [view.shape[0] for view in made] == [64, 64, 32, 32, 32]
        assert len({view.tobytes() for view in made}) == 5
        for first, second in zip(made, views(image, 0.9, seed), strict=True):
            np.testing.assert_array_equal(first, second)


def test_views_of_views_are_joined():
    image = np.random.default_rng(4).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    joined = SeveralViews([MaskedView(), SeveralViews([SquareView()], [2])])(image, 0.9, None)
    np.testing.assert_array_equal(joined[0], MaskedView()(image, 0.9, None))
    assert len(joined) == 3


@pytest.mark.parametrize(
    "options",
    [{"area": [0, 1]}, {"area": [0.5, 1.2]}, {"area": [1]}, {"blur": 2}, {"rotate": 200}, {"size": 4}],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SquareView(**options)


@pytest.mark.parametrize(("views", "counts"), [([], None), ([SquareView()], [0]), ([SquareView()], [1, 2])])
def test_a_count_is_needed_for_each_kind(views, counts):
    with pytest.raises(ConfigError, match="counts"):
        SeveralViews(views, counts)
