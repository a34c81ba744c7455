import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.errors import ConfigError
from drgrade.pretext.base import classifier
from drgrade.pretext.patches import Patches, cut_patches, level_patches, normalise_patches, resize_patches

PLAIN = {"level": False, "normalise": False}


def views(size, batch=3, channels=3, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


layouts = st.tuples(
    st.integers(32, 256), st.integers(2, 6), st.floats(-0.6, 1.0), st.floats(0.0, 0.5), st.integers(0, 99)
)


def made(size, grid, gap, jitter, **options):
    try:
        return Patches(size, grid, gap, jitter, **options)
    except ConfigError as error:
        assert "leaves patches of" in str(error)  # noqa: PT017 - too small; the only allowed reason
        return None


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_patches_lie_in_the_view_and_keep_their_distance(layout):
    size, grid, gap, jitter, seed = layout
    patches = made(size, grid, gap, jitter)
    if patches is None:
        return
    corners = patches.corners(50, torch.device("cpu"), seeded(seed)).view(50, grid, grid, 2)
    assert corners.min() >= 0
    assert corners.max() + patches.cut <= size
    for axis, along in ((0, corners[..., 0]), (1, corners[..., 1].transpose(1, 2))):
        for apart in range(1, grid):
            distance = along[:, apart:].amin(dim=(0, 2)) - along[:, :-apart].amax(dim=(0, 2)) - patches.cut
            assert distance.min() >= patches.smallest_gap(apart), axis
    assert patches.smallest_gap() >= gap * patches.cut - 2 - 1e-9  # rounding to whole pixels


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_the_grid_spans_the_whole_view(layout):
    size, grid, gap, jitter, _ = layout
    patches = made(size, grid, gap, jitter)
    if patches is not None:
        assert patches.starts[0] == 0
        assert patches.starts[-1] + patches.room + patches.cut == size
        steps = np.diff(patches.starts)
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize(("size", "cut", "side"), [(32, 7, 32), (96, 23, 32), (224, 53, 64), (512, 123, 128)])
def test_patches_are_resized_to_a_multiple_of_16(size, cut, side):
    patches = Patches(size)
    assert (patches.cut, patches.side) == (cut, side)
    assert patches(views(size)).shape == (3, 9, 3, side, side)
    assert patches.share == pytest.approx(side**2 / size**2)


def test_cutting_equals_slicing():
    images, patches = views(60, batch=4), Patches(60, 3, 0.2, 0.3)
    corners = patches.corners(4, images.device, seeded())
    cut = cut_patches(images, corners, patches.cut)
    assert cut.shape == (4, 9, 3, patches.cut, patches.cut)
    for b in range(4):
        for m in range(9):
            y, x = corners[b, m].tolist()
            assert torch.equal(cut[b, m], images[b, :, y : y + patches.cut, x : x + patches.cut])


def test_patches_are_numbered_in_reading_order():
    patches = Patches(40, 3, 0.0, 0.0)
    rows = patches.corners(1, torch.device("cpu"))[0]
    assert rows.tolist() == [[y, x] for y in patches.starts for x in patches.starts]


def test_given_cells_are_cut_in_their_order():
    images, patches = views(96), Patches(96, colour_drop=0.0)
    cells = torch.tensor([[4, 0], [8, 8], [1, 7]])
    every, some = patches(images, seeded()), patches(images, seeded(), cells)
    for b in range(3):
        for m in range(2):
            torch.testing.assert_close(some[b, m], every[b, cells[b, m]], atol=1e-5, rtol=1e-5)


def test_patches_are_displaced_independently_over_the_whole_range():
    patches = Patches(96, 3, 0.1, 0.3)
    corners = patches.corners(400, torch.device("cpu"), seeded())
    moved = corners - torch.cartesian_prod(*[torch.tensor(patches.starts)] * 2)
    assert moved.amin(dim=0).unique().tolist() == [0]
    assert moved.amax(dim=0).unique().tolist() == [patches.room]
    independent = np.corrcoef(moved.flatten(1).T.numpy()) - np.eye(18)
    assert np.abs(independent).max() < 0.25


def test_without_jitter_patches_are_not_displaced():
    patches = Patches(96, jitter=0.0)
    assert patches.room == 0
    assert torch.equal(patches(views(96)), patches(views(96)))


def test_a_seeded_generator_repeats_its_draws():
    patches, images = Patches(96, colour_drop=0.5, colour_jitter=0.3), views(96)
    assert torch.equal(patches(images, seeded(1)), patches(images, seeded(1)))
    assert not torch.equal(patches(images, seeded(1)), patches(images, seeded(2)))
    torch.manual_seed(0)
    assert not torch.equal(patches(images), patches(images))


@pytest.mark.parametrize(
    ("size", "tolerance"), [(20, 1e-5), (32, 1e-5), (70, 0.01)]
)  # 70: weights are rounded
def test_resizing_preserves_planes(size, tolerance):
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    made = resize_patches(((2 * y - 3 * x) / size)[None, None, None], 32)
    to = (torch.arange(32) + 0.5) / 32
    inner = slice(3, -3)  # interpolation repeats the last pixel at the edge
    np.testing.assert_allclose(
        made[0, 0, 0, inner, inner], (2 * to[:, None] - 3 * to)[inner, inner], atol=tolerance
    )


def test_levelling_subtracts_the_least_squares_plane():
    patches = torch.randn(2, 3, 4, 12, 12, generator=seeded(), dtype=torch.float64)
    made = level_patches(patches)
    y, x = np.mgrid[:12, :12]
    design = np.column_stack([np.ones(144), y.ravel(), x.ravel()])
    for found, patch in zip(made.reshape(-1, 144).numpy(), patches.reshape(-1, 144).numpy(), strict=True):
        slopes = np.linalg.lstsq(design, patch, rcond=None)[0]
        np.testing.assert_allclose(
            found, patch - design[:, 1:] @ slopes[1:] + slopes[1:].sum() * 5.5, atol=1e-9
        )


def test_mixed_precision_cuts_the_same_patches():
    images, patches = views(96), Patches(96, jitter=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = patches(images)
    assert torch.equal(rounded, patches(images))


def test_normalised_patches_have_mean_0_and_deviation_1():
    images = views(96) * torch.tensor([0.3, 2.0, 5.0])[:, None, None] + 7
    patches = Patches(96)(images)
    torch.testing.assert_close(patches.mean(dim=(-2, -1)), torch.zeros(3, 9, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        patches.std(dim=(-2, -1), correction=0), torch.ones(3, 9, 3), atol=1e-2, rtol=0
    )


@given(st.floats(0.5, 3), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_brightness_and_contrast_have_no_influence(factor, shift):
    images = views(64)
    torch.testing.assert_close(
        Patches(64, jitter=0.0)(images * factor + shift),
        Patches(64, jitter=0.0)(images),
        atol=1e-3,
        rtol=1e-3,
    )


def test_a_linear_fall_of_light_has_no_influence():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    images, patches = views(96), Patches(96, jitter=0.0)
    lit = images + (2 * y - x) * torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    # The interpolation repeats the last pixel at the edge, which is not quite a plane.
    assert (patches(lit) - patches(images)).abs().max() < 0.1
    plain = Patches(96, jitter=0.0, level=False)
    assert (plain(lit) - plain(images)).abs().max() > 0.4


def test_a_flat_patch_stays_finite():
    assert normalise_patches(torch.full((1, 9, 3, 32, 32), 2.5)).abs().max() == 0


def test_colour_drop_copies_one_channel_to_all():
    images = views(96, batch=40)
    plain = Patches(96, jitter=0.0)(images)
    dropped = Patches(96, jitter=0.0, colour_drop=0.3)(images, seeded())
    count_dropped = 0
    for patch, before in zip(dropped.flatten(0, 1), plain.flatten(0, 1), strict=True):
        if torch.equal(patch, before):
            continue
        count_dropped += 1
        assert any(torch.equal(patch, before[c].expand(3, -1, -1)) for c in range(3))
    assert count_dropped / 360 == pytest.approx(0.3, abs=0.1)
    everywhere = Patches(96, jitter=0.0, colour_drop=1.0)(images, seeded())
    assert torch.equal(everywhere[:, :, 0], everywhere[:, :, 2])


def test_colour_jitter_scales_and_shifts_each_channel():
    images = views(96)
    plain = Patches(96, jitter=0.0)(images).flatten(3)
    moved = Patches(96, jitter=0.0, colour_jitter=0.4)(images, seeded()).flatten(3)
    factor = moved.std(dim=-1) / plain.std(dim=-1)
    assert 0.6 <= factor.min() < 0.7
    assert 1.3 < factor.max() <= 1.4
    torch.testing.assert_close(
        moved - moved.mean(dim=-1, keepdim=True), plain * factor[..., None], atol=1e-5, rtol=1e-4
    )
    assert 0.3 < moved.mean(dim=-1).abs().max() <= 0.401


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"grid": 1}, "grid=1"),
        ({"gap": -1.0}, "gap=-1.0"),
        ({"jitter": 1.5}, "jitter=1.5"),
        ({"side": 24}, "side=24"),
        ({"side": 40}, "side=40"),
        ({"colour_drop": -0.1}, "colour_drop=-0.1"),
        ({"colour_jitter": 2}, "colour_jitter=2"),
        ({"grid": 12}, "leaves patches of 1 pixels"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        Patches(32, **setting)


def test_views_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="view_size=96, but the views are 64 x 64"):
        Patches(96)(views(64))


@pytest.mark.parametrize("hidden", [[0], [16, -1]])
def test_classifier_widths_below_one_are_refused(hidden):
    with pytest.raises(ConfigError, match=r"pretext\.head\.hidden="):
        classifier(8, hidden, 0.0, 4)
