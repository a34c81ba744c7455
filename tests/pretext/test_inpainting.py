import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio
from tiny import cnn, msssl, pictures, vit

from drgrade.errors import ConfigError
from drgrade.pretext.dense import pixels
from drgrade.pretext.inpainting import Inpainting, draw_holes, mean_over, smooth_surface

CPU = torch.device("cpu")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.floats(0.05, 0.45),
)
def test_holes_are_rectangles_inside_the_view(seed, count, size, longest):
    holes = draw_holes(3, size, count, (longest / 2, longest), CPU, seeded(seed))
    assert holes.shape == (3, *size)
    assert holes.dtype == torch.bool
    assert holes.any(dim=(1, 2)).all()
    assert not holes.all(dim=2).all(dim=1).any()
    if count == 1:
        for hole in holes:
            rows, columns = hole.any(dim=1), hole.any(dim=0)
            assert torch.equal(hole, rows[:, None] & columns[None, :])
            for line, pixels_across in ((rows, size[0]), (columns, size[1])):
                where = line.nonzero().flatten()
                assert where[-1] - where[0] + 1 == len(where)  # contiguous
                assert len(where) <= max(1, longest * pixels_across)


def test_holes_cover_every_position():
    holes = draw_holes(4000, (20, 20), 1, (0.2, 0.4), CPU, seeded(0)).float().mean(dim=0)
    assert holes.min() > 0  # each pixel is hidden in some draws, also in the corners
    torch.testing.assert_close(holes, holes.flip(0), atol=0.04, rtol=0)
    torch.testing.assert_close(holes, holes.T, atol=0.04, rtol=0)


def test_the_default_holes_cover_about_a_quarter_of_the_view():
    assert draw_holes(2000, (96, 96), 3, (0.2, 0.4), CPU, seeded(0)).float().mean() == pytest.approx(
        0.24, abs=0.02
    )


def test_each_view_has_different_holes():
    holes = draw_holes(6, (32, 32), 3, (0.2, 0.4), CPU, seeded(0)).flatten(1)
    assert len(holes.unique(dim=0)) == 6


@pytest.mark.parametrize("make", [cnn, vit, msssl])
def test_pixels_inside_the_holes_have_no_influence(make):
    torch.manual_seed(0)
    encoder, images = make().eval(), pictures()
    pretext = Inpainting(encoder, 64, width=16).eval()
    holes = draw_holes(4, (64, 64), 3, (0.2, 0.4), CPU, seeded(3))[:, None]
    spoilt = torch.where(holes, 100 * torch.randn_like(images), images)
    for one, other in zip(
        pretext.fill(encoder, images, holes), pretext.fill(encoder, spoilt, holes), strict=True
    ):
        assert torch.equal(one, other)


def test_pixels_outside_the_holes_have_no_loss():
    """The prediction outside the holes changes neither loss nor gradient."""
    torch.manual_seed(0)
    encoder, images = cnn().eval(), pictures()
    pretext = Inpainting(encoder, 64, width=16).eval()
    holes = draw_holes(4, (64, 64), 3, (0.2, 0.4), CPU, pretext.generator(CPU))[:, None]
    predicted, _ = pretext.fill(encoder, images, holes)
    predicted = predicted.detach().requires_grad_()
    mean_over(holes, (predicted - images).square()).mean().backward()
    assert predicted.grad.masked_select(~holes.expand_as(images)).abs().max() == 0
    assert predicted.grad.masked_select(holes.expand_as(images)).abs().min() > 0


def fitted(image, hole, degree=2):
    """Fit a polynomial to the pixels of one image outside its hole with numpy."""
    rows, columns = (np.linspace(-1, 1, side) for side in image.shape[1:])
    y, x = np.meshgrid(rows, columns, indexing="ij")
    terms = np.stack([y**i * x**j for i in range(4) for j in range(4) if i + j <= degree], axis=-1)
    seen = ~hole.numpy()
    weights = [np.linalg.lstsq(terms[seen], channel.double().numpy()[seen])[0] for channel in image]
    return torch.from_numpy(np.stack([terms @ each for each in weights])).float()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 23)])
def test_the_surface_equals_numpys_least_squares(degree, size):
    images = pictures()[..., : size[0], : size[1]]
    holes = draw_holes(4, size, 3, (0.2, 0.4), CPU, seeded(1))
    found = smooth_surface(images, ~holes[:, None], degree)
    for image, hole, surface in zip(images, holes, found, strict=True):
        torch.testing.assert_close(surface, fitted(image, hole, degree), atol=0.03, rtol=0)


def test_the_surface_is_finite_with_few_visible_pixels():
    where = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    where[:, :, 3, 4] = True
    images = torch.randn(2, 3, 16, 16)
    expected = images[:, :, 3:4, 4:5].expand_as(images)
    torch.testing.assert_close(smooth_surface(images, where, 2), expected, atol=1e-4, rtol=0)


def test_loss_and_scores_equal_a_naive_loop():
    torch.manual_seed(0)
    encoder, images = vit().eval(), pictures()
    pretext = Inpainting(encoder, 64, width=16).eval()
    loss, scores = pretext(encoder, [images])
    holes = draw_holes(4, (64, 64), 3, (0.2, 0.4), CPU, pretext.generator(CPU))
    predicted, _ = pretext.fill(encoder, images, holes[:, None])
    squares, ratios, without = [], [], []
    for image, filled, hole in zip(images, predicted.detach(), holes, strict=True):
        squares.append(((image - filled)[:, hole] ** 2).mean().item())
        surface = fitted(image, hole)
        true = pixels(image[None])[0][:, hole].numpy()
        for found, colours in ((ratios, filled[:, hole]), (without, surface[:, hole])):
            rgb = colours * torch.tensor([0.229, 0.224, 0.225])[:, None]
            rgb = rgb + torch.tensor([0.485, 0.456, 0.406])[:, None]
            found.append(peak_signal_noise_ratio(true, rgb.numpy(), data_range=1))
    assert loss.item() == pytest.approx(np.mean(squares), rel=1e-4)
    assert scores["psnr"].item() == pytest.approx(np.mean(ratios), rel=1e-3)
    assert scores["psnr_of_surface"].item() == pytest.approx(np.mean(without), rel=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (50, 33)])
def test_the_prediction_covers_every_pixel(size):
    encoder, images = vit(), pictures()[..., : size[0], : size[1]]
    pretext = Inpainting(encoder, 64, width=16)
    holes = draw_holes(4, size, 3, (0.2, 0.4), CPU)[:, None]
    assert pretext.fill(encoder, images, holes)[0].shape == images.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": (0.4, 0.2)}, r"side=\[0\.4, 0\.2\] is not a range"),
        ({"side": (0.0, 0.2)}, "is not a range"),
        ({"side": (0.2, 1.0)}, "is not a range"),
        ({"side": (0.2,)}, "is not a range"),
        ({"degree": 4}, "degree=4 is not 0, 1, 2 or 3"),
        ({"holes": 0}, "holes=0 .* use fewer or smaller ones"),
        ({"holes": 4, "side": (0.2, 0.5)}, "holes=4 with sides of up to 0.5"),
    ],
)
def test_hole_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Inpainting(cnn(), 64, **settings)
