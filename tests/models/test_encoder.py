import subprocess
import sys

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from drgrade.config import CONF
from drgrade.data.transforms import normalise
from drgrade.errors import EncoderError
from drgrade.models.encoder import TimmEncoder
from drgrade.models.timm_backbone import convert_sync_batchnorm

SMALL_DENSENET = {"growth_rate": 4, "block_config": (1, 1, 1, 1)}


@pytest.mark.parametrize("image_size", [64, 100])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("densenet121", SMALL_DENSENET),
        ("mobilenetv3_small_050", {}),  # widens its features after pooling
        ("test_vit", {}),
        ("test_vit3", {}),  # no class token
        ("vit_tiny_patch16_224", {"depth": 1}),
        ("vit_small_patch14_dinov2", {"depth": 1}),
        ("vit_small_patch32_224", {"depth": 1}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
        ("vit_small_r26_s32_224", {"depth": 1}),  # of fixed size by its config, of any by its code
    ],
)
def test_features_have_the_declared_width_and_every_parameter_a_gradient(name, options, image_size):
    encoder = TimmEncoder(name, image_size, **options)
    features = encoder(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, encoder.num_features)
    features.square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


def test_pixels_are_converted_to_the_normalisation_of_the_weights():
    plain, half = (
        TimmEncoder("test_efficientnet", image_size=64, **options).eval()
        for options in ({}, {"pixel_mean": 0.5, "pixel_std": 0.5})
    )
    half.load_state_dict(plain.state_dict())
    pixels = torch.randint(
        0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    expected = (pixels / 255 - 0.5) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(half(normalise(pixels)), plain(expected), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            half.feature_map(normalise(pixels)), plain.feature_map(expected), rtol=1e-3, atol=1e-4
        )


def test_efficientnet_lite0_expects_the_normalisation_of_its_published_weights():
    config = OmegaConf.load(CONF / "encoder" / "efficientnet_lite0.yaml")
    published = timm.get_pretrained_cfg(config.name)
    assert published.mean == (config.pixel_mean,) * 3
    assert published.std == (config.pixel_std,) * 3


def test_a_vit_of_8_pixel_patches_works():
    encoder = TimmEncoder("vit_small_patch8_224", 36, depth=1)
    assert encoder(torch.randn(1, 3, 36, 36)).shape == (1, 384)


def test_padding_is_at_the_right_and_the_bottom():
    encoder = TimmEncoder("test_vit", 100).eval()
    images = torch.randn(1, 3, 100, 100)
    padded = torch.zeros(1, 3, 112, 112)
    padded[..., :100, :100] = images
    torch.testing.assert_close(encoder(images), encoder.model(padded))


def test_building_is_reproducible():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(TimmEncoder("test_vit", 64).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_names_get_suggestions():
    with pytest.raises(EncoderError, match="densenet121"):
        TimmEncoder("densnet121")
    with pytest.raises(EncoderError, match="tag"):
        TimmEncoder("resnet50.no_such_tag")


def test_unknown_options_are_refused():
    with pytest.raises(EncoderError, match="growthrate"):
        TimmEncoder("densenet121", growthrate=4)
    with pytest.raises(EncoderError, match="dephts"):
        TimmEncoder("test_vit", dephts=4)


def test_the_error_without_network_names_the_setting(monkeypatch):
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise FileNotFoundError("cannot reach the hub")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(EncoderError, match=r"could not be downloaded .*weights=FILE"):
        TimmEncoder("test_resnet", 64, pretrained=True)


def test_a_model_without_published_weights_is_refused():
    with pytest.raises(EncoderError, match="no published weights"):
        TimmEncoder("densenet264d", 64, pretrained=True)


def test_weights_come_from_a_local_file(tmp_path):
    source = timm.create_model("test_resnet", num_classes=10).eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    # As in the checkpoints of masked autoencoders, which hold a decoder too.
    more = {**source.state_dict(), "decoder.weight": torch.zeros(3)}
    torch.save({"state_dict": more}, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    want = source.forward_head(source.forward_features(images), pre_logits=True)
    for file in ("weights.safetensors", "weights.pth"):
        encoder = TimmEncoder("test_resnet", 64, weights=str(tmp_path / file)).eval()
        torch.testing.assert_close(encoder(images), want)


def test_position_embeddings_from_a_file_are_resized(tmp_path):
    source = timm.create_model("test_vit", img_size=160)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    encoder = TimmEncoder("test_vit", 64, weights=str(tmp_path / "vit.safetensors"))
    assert torch.equal(encoder.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, 64)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state.pop("conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(EncoderError, match=r"does not fit test_resnet: it lacks 1 of \d+ tensors \(conv1"):
        TimmEncoder("test_resnet", weights=str(tmp_path / "short.safetensors"))
    with pytest.raises(EncoderError, match=r"does not fit densenet121: it lacks (\d+) of \1 tensors"):
        TimmEncoder("densenet121", weights=str(tmp_path / "short.safetensors"), **SMALL_DENSENET)
    with pytest.raises(EncoderError, match="no weights file"):
        TimmEncoder("test_resnet", weights=str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("these are not weights")
    with pytest.raises(EncoderError, match="cannot be loaded into test_resnet"):
        TimmEncoder("test_resnet", weights=str(tmp_path / "text.pth"))
    with pytest.raises(EncoderError, match="not both"):
        TimmEncoder("test_resnet", pretrained=True, weights=str(tmp_path / "short.safetensors"))


def test_models_and_pretexts_are_importable_without_lightning():
    code = """
import importlib, pkgutil, sys
sys.modules.update({"pytorch_lightning": None, "lightning": None})
import drgrade.models, drgrade.pretext
for package in (drgrade.models, drgrade.pretext):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        if package is drgrade.models:
            heavy = ("timm", "torchvision", "torchmetrics", "pandas", "matplotlib")
            assert not [name for name in heavy if name in sys.modules], module.name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_synchronised_normalisation_keeps_activations_and_names():
    # torch's conversion, and so Lightning's, drops the ReLUs that timm builds into DenseNet's normalisations.
    torch.manual_seed(0)
    encoder = TimmEncoder("densenet121", image_size=32, growth_rate=4, block_config=[1, 1, 1, 1]).eval()
    images = torch.randn(2, 3, 32, 32)
    before, names = encoder(images), list(encoder.state_dict())
    converted = convert_sync_batchnorm(encoder).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(images), before)


def test_options_as_a_mapping_equal_keyword_arguments():
    together = TimmEncoder("test_vit", 32, options={"depth": 1, "embed_dim": 32})
    by_name = TimmEncoder("test_vit", 32, depth=1, embed_dim=32)
    mixed = TimmEncoder("test_vit", 32, options={"depth": 1}, embed_dim=32)
    shapes = [
        {name: tensor.shape for name, tensor in each.state_dict().items()} for each in (together, mixed)
    ]
    assert shapes == [{name: tensor.shape for name, tensor in by_name.state_dict().items()}] * 2


def test_an_option_given_twice_is_refused():
    with pytest.raises(EncoderError, match="test_vit: depth given twice, in options"):
        TimmEncoder("test_vit", 32, options={"depth": 1}, depth=2)
    with pytest.raises(EncoderError, match="pretrained given twice, in options"):
        TimmEncoder("test_vit", 32, pretrained=True, options={"pretrained": False})


def test_weights_among_the_options_are_read(tmp_path):
    encoder = TimmEncoder("test_vit", 32)
    save_file(encoder.model.state_dict(), tmp_path / "weights.safetensors")
    again = TimmEncoder("test_vit", 32, options={"weights": str(tmp_path / "weights.safetensors")})
    assert torch.equal(again.model.cls_token, encoder.model.cls_token)
