import copy

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from tiny import ENCODERS, cnn, msssl, one_size, vit
from torch import nn

from drgrade.data.transforms import MEAN, STD, normalise
from drgrade.errors import ConfigError, EncoderError
from drgrade.models.encoder import Encoder
from drgrade.pretext.colorization import Colorization
from drgrade.pretext.dense import Decoder, cell_means, map_side, pixels, rgb_to_lab
from drgrade.pretext.inpainting import Inpainting
from drgrade.pretext.saliency import Saliency


class Cells(Encoder):
    """Encoder with a feature map of a given size: a layer on the means of pixels."""

    num_features = num_map_features = 5

    def __init__(self, cells):
        super().__init__()
        self.cells, self.layer = cells, nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return self.feature_map(images).mean(dim=(2, 3))

    def feature_map(self, images):
        return self.layer(nn.functional.adaptive_avg_pool2d(images, self.cells))


class Flat(Encoder):
    num_features = 3

    def forward(self, images):
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("cells", "image_size", "stride", "doublings"),
    [
        (1, 32, 4, 3),
        (1, 224, 4, 6),
        (3, 96, 4, 3),
        (7, 224, 4, 3),
        (14, 224, 4, 2),
        (16, 224, 4, 2),  # patches of 14 pixels
        (56, 224, 4, 0),
        (56, 224, 8, 0),
        (7, 224, 1, 5),
        (5, 90, 7, 1),
    ],
)
def test_the_number_of_upsampling_blocks_follows_from_the_stride(cells, image_size, stride, doublings):
    encoder, view = Cells(cells), torch.randn(2, 3, image_size, image_size)
    decoder = Decoder("saliency", encoder, 4, image_size, stride, width=16)
    assert len(decoder.doublings) == doublings
    side = -(-image_size // stride)
    decoded = decoder(encoder.feature_map(view), view)
    assert decoded.shape == (2, 4, side, side)
    decoded.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (50, 33)])
@pytest.mark.parametrize("name", ENCODERS)
def test_views_of_other_sizes_are_decoded(name, size):
    encoder, view = ENCODERS[name](), torch.randn(2, 3, *size)
    decoder = Decoder("saliency", encoder, 1, 64, stride=4, width=16)
    assert decoder(encoder.feature_map(view), view).shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize(("make", "side"), [(cnn, 2), (vit, 4), (msssl, 16), (one_size, 4)])
def test_map_side_does_not_change_the_encoder(make, side):
    encoder = make()
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    assert map_side(encoder, 64) == side
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_four_parts_of_a_single_cell_can_differ():
    torch.manual_seed(0)
    encoder, view = Cells(1), torch.randn(1, 3, 32, 32)
    decoder = Decoder("saliency", encoder, 1, 32, stride=4, width=32)
    inner = decoder(encoder.feature_map(view), view)[0, 0, 2:6, 2:6]  # away from the padded border
    assert inner.std() > 0.01


@pytest.mark.parametrize("make", [Colorization, Inpainting, Saliency])
def test_an_encoder_without_a_map_is_refused(make):
    with pytest.raises(EncoderError, match=rf"pretext={make.__name__.lower()} .*Flat.* use a CNN"):
        make(Flat(), 32)


@pytest.mark.parametrize("settings", [{"width": 24}, {"width": 0}, {"stride": 0}, {"stride": 65}])
@pytest.mark.parametrize("make", [Colorization, Inpainting, Saliency])
def test_decoder_settings_out_of_range_are_refused(make, settings):
    with pytest.raises(ConfigError, match=rf"pretext\.head\.{next(iter(settings))}="):
        make(Cells(2), 64, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lab_equals_scikit_image(dtype):
    levels = torch.linspace(0, 1, 18, dtype=dtype)
    rgb = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 81, 72)
    expected = rgb2lab(rgb.double().permute(1, 2, 0).numpy())
    found = rgb_to_lab(rgb)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=2e-3)


def test_lab_of_black_has_a_finite_gradient():
    rgb = torch.zeros(3, 2, 2, requires_grad=True)
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad.isfinite().all()


def test_pixels_undo_the_normalisation():
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    torch.testing.assert_close(pixels(normalise(stored)), stored.float() / 255, atol=1e-6, rtol=0)
    assert pixels(torch.full((1, 3, 2, 2), 9.0)).max() == 1
    assert pixels(torch.full((1, 3, 2, 2), -9.0)).min() == 0
    assert len(MEAN) == len(STD) == 3


@pytest.mark.parametrize(("height", "width", "stride"), [(8, 8, 4), (7, 10, 4), (5, 3, 1), (6, 6, 5)])
def test_cell_means_equal_a_naive_loop(height, width, stride):
    maps = torch.randn(2, 3, height, width)
    found = cell_means(maps, stride)
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            cell = maps[..., row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            torch.testing.assert_close(found[..., row, column], cell.mean(dim=(2, 3)))
    assert found.shape[2:] == (-(-height // stride), -(-width // stride))
