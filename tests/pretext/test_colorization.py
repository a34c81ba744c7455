import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab
from tiny import cnn, losses, pictures, vit
from torch import nn

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError
from drgrade.pretext.colorization import Colorization, ColourBins, class_weights, gamut_bins
from drgrade.pretext.dense import cell_means, pixels, rgb_to_lab

COARSE = ColourBins(20, 10, 5)


@pytest.fixture(scope="module")
def bins():
    return ColourBins(10, 5, 5)


def colours(count=500, seed=0):
    rgb = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return rgb_to_lab(rgb)[:, 1:, 0, 0]


@pytest.mark.parametrize("grid", [10, 5, 4.5, 20])
def test_bins_contain_every_srgb_colour(grid):
    centres = gamut_bins(grid).double().numpy()
    steps = centres / grid
    np.testing.assert_allclose(steps, steps.round(), atol=1e-6)
    assert len(np.unique(steps.round(), axis=0)) == len(centres)
    # Each colour of a lattice in the middle of the cube and on its faces belongs to one of the bins.
    levels = np.linspace(0, 255, 24).round() / 255
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 1, 3)
    reached = {tuple(each) for each in (rgb2lab(lattice)[:, 0, 1:] / grid).round().astype(int)}
    known = {tuple(each) for each in steps.round().astype(int)}
    assert len(reached - known) <= 0.005 * len(known)  # rounding at the border of a bin
    assert len(reached) > 0.6 * len(known)


def test_every_bin_contains_an_srgb_colour():
    centres = gamut_bins(10).double().numpy()
    lightness = np.arange(0, 101, 2.0)
    lab = np.stack([np.insert(np.tile(each, (51, 1)), 0, lightness, axis=1) for each in centres])
    with warnings.catch_warnings(action="ignore"):  # colours out of gamut are clipped
        shown = rgb2lab(lab2rgb(lab))[..., 1:]
    nearest = np.abs(shown - centres[:, None]).max(axis=2).min(axis=1)
    assert nearest.max() < 2 * 10


@pytest.mark.parametrize(("grid", "neighbours"), [(10, 5), (5, 5), (4, 9), (20, 1), (50, 5)])
def test_the_soft_encoding_equals_a_naive_loop(grid, neighbours):
    bins, sigma = ColourBins(grid, grid / 2, neighbours), grid / 2
    given_colours = colours()
    nearest, shares = bins.encode(given_colours)
    for colour, found, share in zip(given_colours, nearest, shares, strict=True):
        distances = np.linalg.norm(bins.centres.double().numpy() - colour.double().numpy(), axis=1)
        expected = np.sort(distances)[:neighbours]
        np.testing.assert_allclose(distances[found], expected, atol=1e-4)
        gauss = np.exp(-(distances[found] ** 2) / (2 * sigma**2))
        np.testing.assert_allclose(share, gauss / gauss.sum(), atol=1e-5)


@given(st.integers(0, 10_000))
def test_shares_belong_to_different_bins_and_sum_to_one(seed):
    nearest, shares = COARSE.encode(colours(20, seed))
    assert shares.sum(dim=1).tolist() == pytest.approx([1] * 20)
    assert (shares.diff(dim=1) <= 1e-6).all()
    assert all(len(set(row)) == 5 for row in nearest.tolist())


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_class_weights_are_those_of_the_paper(seed, mix):
    rng = np.random.default_rng(seed)
    histogram = rng.exponential(size=30) * (rng.uniform(size=30) < 0.4)
    histogram[0] += 0.1
    share = histogram / histogram.sum()
    expected = 1 / ((1 - mix) * share + mix / 30)
    expected /= (share * expected).sum()
    found = class_weights(torch.tensor(histogram), mix).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (share * found).sum() == pytest.approx(1)
    assert (np.diff(found[np.argsort(share)]) <= 1e-9).all()  # rarer bins have larger weights


def test_class_weights_are_equal_without_counts_or_fully_mixed():
    assert class_weights(torch.zeros(7), 0.5).tolist() == pytest.approx([1] * 7)
    assert class_weights(torch.tensor([1.0, 5.0, 0.0]), 1.0).tolist() == pytest.approx([1] * 3)


def test_the_annealed_mean_lies_between_mean_and_mode(bins):
    logits = 3 * torch.randn(2, len(bins), 3, 4, generator=torch.Generator().manual_seed(0))
    shares = logits.double().softmax(dim=1).numpy()
    mean = np.einsum("bqhw,qc->bhwc", shares, bins.centres.double().numpy())
    np.testing.assert_allclose(bins.annealed_mean(logits, 1.0), mean, atol=1e-3)
    mode = bins.centres[logits.argmax(dim=1)]
    np.testing.assert_allclose(bins.annealed_mean(logits, 1e-4), mode, atol=1e-3)
    sharp = (shares ** (1 / 0.38)) / (shares ** (1 / 0.38)).sum(axis=1, keepdims=True)
    annealed = np.einsum("bqhw,qc->bhwc", sharp, bins.centres.double().numpy())
    np.testing.assert_allclose(bins.annealed_mean(logits, 0.38), annealed, atol=1e-3)


def test_the_encoder_sees_lightness_only():
    torch.manual_seed(0)
    encoder, images = cnn(), pictures()
    seen = []
    inner = encoder.feature_map
    encoder.feature_map = lambda lightness: seen.append(lightness) or inner(lightness)
    pretext = Colorization(encoder, 64, width=16)
    pretext(encoder, [images])
    shown = pixels(seen[-1])
    assert (shown.amax(dim=1) - shown.amin(dim=1)).max() < 1e-6  # grey
    expected = rgb2lab(pixels(images).movedim(1, -1).double().numpy())[..., 0] / 100
    np.testing.assert_allclose(shown[:, 0].numpy(), expected, atol=1e-4)


def test_colours_are_means_of_the_cells():
    pretext, images = Colorization(cnn(), 64, stride=8, width=16), pictures()
    _, found = pretext.split(images)
    expected = rgb2lab(pixels(images).movedim(1, -1).double().numpy())[..., 1:]
    assert found.shape == (4, 8, 8, 2)
    np.testing.assert_allclose(found[1, 2, 3], expected[1, 16:24, 24:32].mean(axis=(0, 1)), atol=2e-3)


def test_loss_and_scores_equal_a_naive_loop():
    torch.manual_seed(0)
    encoder, images = vit().eval(), pictures(2)
    pretext = Colorization(encoder, 64, stride=16, width=16).eval()
    pretext.histogram.copy_(torch.rand(len(pretext.bins)))
    loss, scores = pretext(encoder, [images])
    lightness, ab = pretext.split(images)
    logits = pretext.decoder(encoder.feature_map(lightness), images).detach()
    share = pretext.histogram / pretext.histogram.sum()
    weights = 1 / (0.5 * share + 0.5 / len(share))
    weights = weights / (weights * share).sum()
    centres, total, correct, errors, plain = pretext.bins.centres, 0.0, 0, [], []
    for b in range(2):
        for row in range(4):
            for column in range(4):
                scores_of_cell, colour = logits[b, :, row, column], ab[b, row, column]
                distance = (centres - colour).norm(dim=1)
                near = distance.argsort()[:5]
                soft = torch.zeros(len(centres))
                soft[near] = (-(distance[near] ** 2) / (2 * 5**2)).exp()
                soft = soft / soft.sum()
                total -= (weights[soft.argmax()] * (soft * scores_of_cell.log_softmax(0)).sum()).item()
                correct += int(scores_of_cell.argmax() == near[0])
                errors.append(((scores_of_cell / 0.38).softmax(0) @ centres - colour).norm().item())
                plain.append((ab.mean(dim=(0, 1, 2)) - colour).norm().item())
    assert loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert scores["accuracy"].item() == pytest.approx(correct / 32)
    assert scores["ab_error"].item() == pytest.approx(np.mean(errors), rel=1e-3)
    assert scores["ab_error_of_mean"].item() == pytest.approx(np.mean(plain), rel=1e-3)


def test_the_colour_distribution_is_a_running_mean_over_training_batches():
    encoder = cnn()
    pretext = Colorization(encoder, 64, width=16, momentum=0.9)
    batches = [pictures(3, seed=seed) for seed in range(3)]
    expected = np.zeros(len(pretext.bins))
    for batch in batches:
        pretext(encoder, [batch])
        nearest, shares = pretext.bins.encode(pretext.split(batch)[1])
        dense = np.zeros(len(pretext.bins))
        np.add.at(dense, nearest.flatten().numpy(), shares.flatten().numpy())
        expected = 0.9 * expected + 0.1 * dense / dense.sum()
    np.testing.assert_allclose(pretext.histogram.numpy(), expected, atol=1e-6)
    pretext.eval()
    before = pretext.histogram.clone()
    pretext(encoder, [batches[0]])
    assert torch.equal(pretext.histogram, before)


def test_checkpoints_contain_the_distribution_but_not_the_bins():
    pretext = Colorization(cnn(), 64, width=16)
    kept = [name for name in pretext.state_dict() if not name.startswith("decoder.")]
    assert kept == ["histogram"]


def test_rare_colours_get_a_larger_gradient():
    """A colour in 1 of 100 cells is predicted with rebalancing only."""

    class Brightness(nn.Module):
        num_map_features = num_features = 1

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def feature_map(self, images):
            return cell_means(images[:, :1], 4) * self.scale

    stored = torch.tensor([90, 60, 50], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 40, 40)
    stored[:, :, :4, :4] = torch.tensor([130, 40, 20], dtype=torch.uint8).view(3, 1, 1)  # 1 of 100 cells
    images, found = normalise(stored), {}
    for mix in (0.5, 1.0):
        torch.manual_seed(0)
        encoder = Brightness()
        pretext = Colorization(encoder, 40, mix=mix, width=16)
        _, ab = pretext.split(images)
        rare = pretext.bins.encode(ab)[0][:, 0, 0, 0]
        losses(pretext, encoder, [images], steps=12)
        logits = pretext.decoder(encoder.feature_map(pretext.split(images)[0]), images)
        found[mix] = logits.softmax(dim=1)[torch.arange(4), rare, 0, 0].mean().item()
    assert found[0.5] > 3 * found[1.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": 1},
        {"grid": 60},
        {"sigma": 0},
        {"neighbours": 0},
        {"neighbours": 10},
        {"mix": 0},
        {"mix": 1.5},
        {"momentum": 1},
        {"temperature": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (name, value), *_ = settings.items()
    with pytest.raises(ConfigError, match=rf"pretext\.head\.{name}={value}"):
        Colorization(cnn(), 64, **settings)
