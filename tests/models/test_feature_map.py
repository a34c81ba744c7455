import pytest
import torch
from torch import nn

from drgrade.errors import EncoderError
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.msssl import MsSSL

SMALL_DENSENET = {"growth_rate": 4, "block_config": (1, 1, 1, 1)}
MODELS = [  # name, options, pixels per cell
    ("densenet121", SMALL_DENSENET, 32),
    ("resnet18", {}, 32),
    ("convnext_atto", {"depths": (1, 1, 1, 1)}, 32),
    ("test_vit", {}, 16),
    ("test_vit3", {}, 16),
    ("vit_small_patch14_dinov2", {"depth": 1}, 14),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, 32),
]


@pytest.mark.parametrize("image_size", [64, 128])
@pytest.mark.parametrize(("name", "options", "stride"), MODELS)
def test_the_map_has_the_declared_channels_and_one_cell_per_stride(name, options, stride, image_size):
    encoder = TimmEncoder(name, image_size, **options).eval()
    images = torch.randn(2, 3, image_size, image_size)
    features = encoder.feature_map(images)
    assert features.shape[:2] == (2, encoder.num_map_features)
    cells = features.shape[-1]
    assert features.shape[-2] == cells
    # Convolutions of a CNN may drop a border that is not a whole cell.
    assert cells in (-(-image_size // stride), image_size // stride)


@pytest.mark.parametrize(("name", "options"), [("densenet121", SMALL_DENSENET), ("resnet18", {})])
def test_the_mean_of_the_map_is_the_feature_vector(name, options):
    encoder = TimmEncoder(name, 64, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.feature_map(images).mean(dim=(2, 3)), encoder(images))


def test_the_cells_of_a_transformers_map_are_in_the_order_of_its_patches():
    encoder = TimmEncoder("test_vit", 64).eval()
    tokens = encoder.model.forward_features(images := torch.randn(1, 3, 64, 64))
    prefix, side = encoder.model.num_prefix_tokens, 64 // 16
    features = encoder.feature_map(images)
    for row in range(side):
        for column in range(side):
            torch.testing.assert_close(features[0, :, row, column], tokens[0, prefix + row * side + column])


@pytest.mark.parametrize("side", [32, 48, 40])
@pytest.mark.parametrize(("name", "options"), [("densenet121", SMALL_DENSENET), ("test_vit", {})])
def test_smaller_images_can_be_encoded(name, options, side):
    encoder = TimmEncoder(name, 96, **options).eval()
    assert encoder.any_size
    piece = torch.randn(2, 3, side, side)
    assert encoder(piece).shape == (2, encoder.num_features)
    cells = encoder.feature_map(piece).shape[-1]
    assert cells in ((-(-side // 16),) if name == "test_vit" else (side // 32, -(-side // 32)))


def test_dynamic_image_sizes_do_not_change_the_features():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    encoder = TimmEncoder("test_vit", 64).eval()
    torch.manual_seed(0)
    torch.randn(2, 3, 64, 64)
    fixed = TimmEncoder("test_vit", 64, dynamic_img_size=False).eval()
    assert not fixed.any_size
    torch.testing.assert_close(encoder(images), fixed(images))


def test_a_model_of_fixed_size_declares_it():
    assert not TimmEncoder("beit_base_patch16_224", 64, depth=1).any_size


def test_msssl_returns_its_refined_map_and_accepts_smaller_images():
    encoder = MsSSL("test_resnet", "test_vit", 64, 16, 8).eval()
    images = torch.randn(2, 3, 64, 64)
    refined = encoder.feature_map(images)
    assert refined.shape == (2, encoder.num_map_features, 16, 16)
    torch.testing.assert_close(refined.mean(dim=(2, 3)), encoder(images)[:, : encoder.num_map_features])
    assert encoder.any_size
    assert encoder(images[..., :32, :32]).shape == (2, encoder.num_features)


def test_an_encoder_without_a_map_raises_an_error():
    class Flat(Encoder):
        num_features = 3

        def forward(self, images):
            return nn.functional.adaptive_avg_pool2d(images, 1).flatten(1)

    assert Flat().num_map_features is None
    with pytest.raises(EncoderError, match="Flat has no feature map"):
        Flat().feature_map(torch.zeros(1, 3, 8, 8))
