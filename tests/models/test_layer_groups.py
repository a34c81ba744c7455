"""Layer groups of encoders against timm's for layer-wise learning-rate decay."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from drgrade.errors import ConfigError, EncoderError
from drgrade.models.encoder import Encoder, TimmEncoder, learning_rate_factors
from drgrade.models.msssl import MsSSL
from drgrade.models.timm_backbone import MAX_LAYERS, backbone_depths, extractor_depths

SHALLOW = ("resnet18", "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "convnextv2_atto", "vgg11")
DEEP = {"resnet50": 17, "densenet121": 59, "efficientnetv2_rw_t": 40}


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def timm_shares(name, decay):
    model = on_meta(name, num_classes=5)
    scales = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=decay)
        for p in group["params"]
    }
    return {key: scales[id(parameter)] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", SHALLOW)
def test_rates_equal_timms_for_the_model_with_a_classifier(name):
    want = timm_shares(name, 0.75)
    bare = on_meta(name, num_classes=0)
    found = {key: 0.75**depth for key, depth in backbone_depths(bare).items()}
    assert found.keys() == dict(bare.named_parameters()).keys()
    assert found == pytest.approx({key: want[key] for key in found}, rel=1e-12)


@pytest.mark.parametrize("name", DEEP)
def test_neighbouring_layers_of_a_deep_network_are_joined(name):
    want, found = timm_shares(name, 0.5), backbone_depths(on_meta(name, num_classes=0))
    assert min(want.values()) == 0.5 ** DEEP[name]
    assert 8 < max(found.values()) <= MAX_LAYERS
    # The order of timm's layers is kept, and parameters of one of its layers stay together.
    ordered = sorted((-want[key], depth) for key, depth in found.items())
    assert [depth for _, depth in ordered] == sorted(depth for _, depth in ordered)
    assert len(set(ordered)) == len({share for share, _ in ordered})


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_tiny_patch4_window7_224", "vgg11"])
def test_a_feature_extractor_has_the_layers_of_the_plain_model(name):
    plain = {key.replace(".", "_"): d for key, d in backbone_depths(on_meta(name, num_classes=0)).items()}
    features = on_meta(name, features_only=True)
    found = extractor_depths(features, name, {"features_only": True, "out_indices": (0, 1)})
    assert found.keys() == dict(features.named_parameters()).keys()
    assert all(plain[key.replace(".", "_")] == depth for key, depth in found.items())


SMALL = {"growth_rate": 4, "block_config": (1, 1, 2, 1)}
TWO = {"image_size": 64, "channels": 8, "refined_channels": 8}
ENCODERS = {
    "cnn": lambda: TimmEncoder("densenet121", 64, **SMALL),
    "resnet": lambda: TimmEncoder("resnet18", 64),
    "vit": lambda: TimmEncoder("test_vit", 64),
    "swin": lambda: TimmEncoder("swin_tiny_patch4_window7_224", 64, embed_dim=12, depths=(1, 1, 1, 1)),
    "msssl": lambda: MsSSL("test_resnet", "test_vit", **TWO),
    "msssl_densenet": lambda: MsSSL("densenet121", "test_vit", cnn_options=SMALL, **TWO),
    "msssl_without": lambda: MsSSL("test_resnet", use_vit=False, use_fpn=False, **TWO),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_has_a_rate_and_the_stem_the_lowest(name):
    encoder = ENCODERS[name]()
    shares = learning_rate_factors(encoder, 0.5)
    assert shares.keys() == dict(encoder.named_parameters()).keys()
    assert max(shares.values()) <= 1
    backbones = {key.split("backbone.")[0] for key in shares if "backbone." in key} or {""}
    for backbone in backbones:
        own = [share for key, share in shares.items() if key.startswith(backbone)]
        assert own[0] == min(own) < 0.25


def test_the_branches_of_msssl_decay_separately_below_the_fusion():
    encoder = MsSSL("test_resnet", "test_vit", 64, channels=8, refined_channels=8)
    depths = encoder.layer_depths()
    above = ("fuse.", "deep_learner.", "conv_branch.neck.", "vit_branch.upsample.")
    assert {depth for name, depth in depths.items() if name.startswith(above)} == {1}
    cnn = backbone_depths(on_meta("test_resnet", num_classes=0))
    vit = backbone_depths(encoder.vit_branch.backbone)
    for prefix, own in (("conv_branch.backbone.", cnn), ("vit_branch.backbone.", vit)):
        found = {name: depth for name, depth in depths.items() if name.startswith(prefix)}
        assert max(found.values()) == 1 + max(own.values())
        assert min(found.values()) == 2


@pytest.mark.parametrize("decay", [0, -0.5, 1.1, True, "0.75"])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=rf"protocol\.layer_decay={decay} is not in \(0, 1\]"):
        learning_rate_factors(TimmEncoder("test_vit", 64), decay)


class Nameless(Encoder):
    num_features = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images):
        return self.linear(images.mean(dim=(2, 3)))


def test_an_encoder_without_known_layers_is_refused():
    with pytest.raises(EncoderError, match=r"Nameless does not define layer_depths.*layer_decay=null"):
        learning_rate_factors(Nameless(), 0.75)
    with pytest.raises(EncoderError, match="the layers of MetaFormer"):
        backbone_depths(on_meta("poolformer_s12", num_classes=0))
