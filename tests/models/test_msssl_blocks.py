import torch
import torch.nn.functional as F

from drgrade.models.feature_maps import resize
from drgrade.models.msssl import CBAM, ChannelAttention, DeepLearner, FeaturePyramid, SpatialAttention


def test_channel_attention_is_equation_2_of_the_paper():
    attention = ChannelAttention(8, reduction=4)
    first, second = attention.mlp[0].weight, attention.mlp[2].weight
    features = torch.randn(2, 8, 3, 5)
    for sample, result in zip(features, attention(features), strict=True):
        average = torch.stack([channel.mean() for channel in sample])
        largest = torch.stack([channel.max() for channel in sample])
        scale = torch.sigmoid(second @ torch.relu(first @ average) + second @ torch.relu(first @ largest))
        for channel, out, weight in zip(sample, result, scale, strict=True):
            torch.testing.assert_close(out, channel * weight)


def test_spatial_attention_is_equation_3_of_the_paper():
    attention = SpatialAttention(kernel_size=3)
    weight = attention.conv.weight[0]  # (2, 3, 3)
    features = torch.randn(1, 4, 5, 6)
    padded = F.pad(torch.stack((features[0].mean(0), features[0].max(0).values)), (1, 1, 1, 1))
    result = attention(features)
    for y in range(5):
        for x in range(6):
            scale = torch.sigmoid((padded[:, y : y + 3, x : x + 3] * weight).sum())
            torch.testing.assert_close(result[0, :, y, x], features[0, :, y, x] * scale)


def test_cbam_attends_to_channels_first():
    cbam = CBAM(16, reduction=4)
    features = torch.randn(2, 16, 7, 7)
    torch.testing.assert_close(cbam(features), cbam.spatial(cbam.channel(features)))


def test_cbam_keeps_a_hidden_unit_when_the_reduction_exceeds_the_channels():
    assert CBAM(4, reduction=16)(torch.randn(1, 4, 3, 3)).shape == (1, 4, 3, 3)


def test_pyramid_adds_enlarged_coarse_maps_to_fine_ones():
    pyramid = FeaturePyramid([3, 4, 5], channels=2)
    maps = [torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4), torch.randn(1, 5, 2, 2)]
    laterals = [layer(level) for layer, level in zip(pyramid.laterals, maps, strict=True)]
    middle = laterals[1] + laterals[2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    fine = laterals[0] + middle.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for got, layer, want in zip(pyramid(maps), pyramid.smooth, (fine, middle, laterals[2]), strict=True):
        torch.testing.assert_close(got, layer(want))


def test_pyramid_keeps_odd_sizes():
    sizes = [(25, 27), (13, 14), (7, 7), (4, 4)]
    pyramid = FeaturePyramid([3] * 4, channels=6)
    result = pyramid([torch.randn(2, 3, *size) for size in sizes])
    assert [tuple(level.shape) for level in result] == [(2, 6, *size) for size in sizes]


def test_deep_learner_doubles_the_side():
    assert DeepLearner(32, 16)(torch.randn(2, 32, 7, 9)).shape == (2, 16, 14, 18)


def test_resize_averages_by_whole_factors():
    features = torch.randn(1, 2, 6, 6)
    want = features.reshape(1, 2, 3, 2, 3, 2).mean(dim=(3, 5))
    torch.testing.assert_close(resize(features, (3, 3)), want)


def test_resize_keeps_constants_at_every_size():
    ones = torch.ones(1, 1, 13, 13)
    for side in (1, 3, 7, 12, 13, 20, 26):
        torch.testing.assert_close(resize(ones, (side, side)), torch.ones(1, 1, side, side))
