import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d
from scipy.stats import pearsonr
from skimage.color import rgb2lab
from tiny import cnn, pictures, vit

from drgrade.data.transforms import normalise
from drgrade.models.encoder import TimmEncoder
from drgrade.pretext.dense import pixels
from drgrade.pretext.saliency import Saliency, correlations, frequency_tuned, stretch


def naive(image):
    """Compute equation 4 of the paper for one image (H, W, 3) in [0, 1]."""
    lab = rgb2lab(image)
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    blurred = convolve1d(convolve1d(lab, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
    return np.sqrt(((blurred - lab.mean(axis=(0, 1))) ** 2).sum(axis=2))


@pytest.mark.parametrize("size", [(16, 16), (7, 31), (3, 3)])
def test_the_saliency_map_equals_a_naive_loop(size):
    rgb = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    found = frequency_tuned(rgb)
    for image, one in zip(rgb, found, strict=True):
        expected = naive(image.permute(1, 2, 0).double().numpy())
        np.testing.assert_allclose(one.numpy(), expected, atol=5e-3)


def test_a_differing_region_is_salient():
    grey = torch.full((1, 3, 32, 32), 0.4)
    grey[:, 0, 8:14, 20:26] = 0.9  # a red square
    found = stretch(frequency_tuned(grey))[0]
    assert found[10:12, 22:24].min() > 0.95
    assert found[20:].max() < 0.05


@given(st.integers(0, 10_000), st.floats(1.5, 50))
def test_stretched_maps_span_0_to_1_in_the_same_order(seed, span):
    maps = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(seed)) * span
    maps[:, 0, 0], maps[:, 0, 1] = 0, span
    found = stretch(maps)
    assert found.min() == 0
    assert found.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])
    assert torch.equal(found.flatten(1).argsort(stable=True), maps.flatten(1).argsort(stable=True))


def test_invisible_noise_is_not_stretched():
    flat = 30 + 1e-3 * torch.rand(1, 8, 8)
    assert stretch(flat).max() < 0.01
    assert stretch(torch.zeros(1, 8, 8)).abs().max() == 0


def test_correlations_equal_scipys_and_are_0_for_a_flat_map():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(4, 5, 6, generator=generator) for _ in range(2))
    expected = [pearsonr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    assert correlations(one, other).tolist() == pytest.approx(expected, abs=1e-5)
    assert correlations(one, torch.ones(4, 5, 6)).tolist() == pytest.approx([0] * 4, abs=1e-3)


def test_targets_are_means_of_the_cells():
    pretext, images = Saliency(cnn(), 64, stride=8, width=16), pictures()
    maps = stretch(frequency_tuned(pixels(images)))
    targets = pretext.targets(images)
    assert targets.shape == (4, 8, 8)
    torch.testing.assert_close(targets[1, 2, 3], maps[1, 16:24, 24:32].mean())


def test_the_loss_is_the_cross_entropy_of_every_cell():
    torch.manual_seed(0)
    encoder, images = vit(), pictures()
    pretext = Saliency(encoder, 64, width=16)
    loss, scores = pretext(encoder, [images])
    targets = pretext.targets(images).double()
    predicted = pretext.decoder(encoder.feature_map(images), images)[:, 0].detach().double().sigmoid()
    expected = -(targets * predicted.log() + (1 - targets) * (1 - predicted).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert scores["l1"].item() == pytest.approx((predicted - targets).abs().mean().item(), rel=1e-4)


def test_layers_after_the_pooling_get_no_gradient():
    # dinov2-like models normalise pooled features: the map does not pass through this layer.
    encoder = TimmEncoder("test_vit", 64, class_token=False, global_pool="avg")
    pretext = Saliency(encoder, 64, width=16)
    pretext(encoder, [pictures()])[0].backward()
    assert [name for name, each in encoder.named_parameters() if each.grad is None] == [
        "model.fc_norm.weight",
        "model.fc_norm.bias",
    ]


def test_a_flat_view_has_a_finite_loss():
    encoder = cnn()
    pretext = Saliency(encoder, 64, width=16)
    loss, scores = pretext(encoder, [normalise(torch.full((2, 3, 64, 64), 90, dtype=torch.uint8))])
    loss.backward()
    assert loss.isfinite()
    assert scores["correlation"].abs() < 1e-3
