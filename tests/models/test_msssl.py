import itertools
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from drgrade.errors import EncoderError
from drgrade.models.msssl import MsSSL

DOCUMENT = Path(__file__).parents[2] / "docs" / "msssl.md"
PAIRS = [
    ("test_resnet", "test_vit"),
    ("resnet18", "vit_tiny_patch16_224"),
    ("mobilenetv3_small_100", "deit_tiny_patch16_224"),
]
SWITCHES = ("use_vit", "use_fpn", "use_deep_learner", "use_cbam")


def small(image_size=64, cnn="test_resnet", vit="test_vit", **options):
    return MsSSL(cnn, vit, image_size, channels=32, refined_channels=16, **options)


def record_shapes(model, names):
    """Return a dictionary that the next forward pass fills with the output shapes of the named parts."""
    shapes = {}

    def hook(name):
        return lambda _module, _inputs, output: shapes.update({name: tuple(output.shape[1:])})

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    return shapes


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("image_size", [64, 96, 224])
@pytest.mark.parametrize(("cnn", "vit"), PAIRS)
def test_shapes_follow_from_the_backbones(cnn, vit, image_size):
    model = small(image_size, cnn, vit).eval()
    shapes = record_shapes(model, ["fuse", "deep_learner"])
    with torch.no_grad():
        features = model(torch.randn(1, 3, image_size, image_size))
    width = 64 if vit == "test_vit" else 192
    assert model.num_features == 16 + width
    assert features.shape == (1, 16 + width)
    assert shapes["fuse"] == (32, image_size // 8, image_size // 8)
    assert shapes["deep_learner"] == (16, image_size // 4, image_size // 4)


def test_the_full_model_at_224_has_the_specified_shapes():
    model = MsSSL().eval()
    names = ["vit_branch.upsample", "fuse", "deep_learner.blocks", "deep_learner.upsample", "deep_learner"]
    shapes = record_shapes(model, [*names, *(f"conv_branch.neck.smooth.{i}" for i in range(4))])
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 512)
    assert shapes == {
        **{f"conv_branch.neck.smooth.{i}": (256, side, side) for i, side in enumerate((56, 28, 14, 7))},
        "vit_branch.upsample": (256, 28, 28),
        "fuse": (256, 28, 28),
        "deep_learner.blocks": (256, 28, 28),
        "deep_learner.upsample": (128, 56, 56),
        "deep_learner": (128, 56, 56),
    }
    assert model.fuse.in_channels == 5 * 256


@pytest.mark.parametrize(
    ("cnn", "vit", "image_size", "vit_options"),
    [
        ("convnext_atto", "vit_small_patch32_224", 96, {"depth": 1}),
        ("test_resnet", "vit_small_patch14_dinov2", 112, {"depth": 1}),
        ("test_resnet", "vit_small_patch8_224", 64, {"depth": 1}),
        ("test_resnet", "test_vit3", 64, {}),  # no class token
        ("test_resnet", "test_vit", 100, {}),
        ("test_mambaout", "deit_tiny_distilled_patch16_224", 90, {"depth": 1}),
    ],
)
def test_other_pairs_of_backbones_can_be_trained(cnn, vit, image_size, vit_options):
    model = small(image_size, cnn, vit, vit_options=vit_options)
    features = model(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, model.num_features)
    features.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_cnn_with_channels_last_maps_works():
    options = {"depths": (1, 1, 1, 1), "embed_dim": 24}
    model = small(64, "swin_tiny_patch4_window7_224", cnn_options=options)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 80)


@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=4)))
def test_each_ablation_trains_a_step_and_every_parameter_gets_a_gradient(on):
    model = small(**dict(zip(SWITCHES, on, strict=True)))
    use_vit, _, use_deep_learner, _ = on
    assert model.num_features == (16 if use_deep_learner else 32) + (64 if use_vit else 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    features = model(torch.randn(4, 3, 64, 64))
    assert features.shape == (4, model.num_features)
    features.square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    before = model.fuse.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.fuse.weight)


def test_the_class_token_is_the_tail_of_the_features():
    model = small().eval()
    images = torch.randn(2, 3, 64, 64)
    want = model.vit_branch.backbone.forward_features(images)[:, 0]
    torch.testing.assert_close(model(images)[:, 16:], want)


def test_padding_does_not_reach_the_vit_map():
    model = small(100).eval()
    grid, _ = model.vit_branch(torch.randn(1, 3, 100, 100))
    assert grid.shape == (1, 32, 13, 13)


def test_results_are_reproducible():
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        model = small()
        features = model(torch.randn(2, 3, 64, 64))
        features.square().sum().backward()
        results.append([features, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backbone_weights_come_from_local_files(tmp_path):
    cnn, vit = timm.create_model("test_resnet"), timm.create_model("test_vit", img_size=64)
    save_file(cnn.state_dict(), tmp_path / "cnn.safetensors")
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    model = small(
        cnn_options={"weights": str(tmp_path / "cnn.safetensors")},
        vit_options={"weights": str(tmp_path / "vit.safetensors")},
    )
    for ours, theirs in ((model.conv_branch.backbone, cnn), (model.vit_branch.backbone, vit)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


def test_renamed_layers_of_a_feature_extractor_are_filled_too(tmp_path):
    options = {"growth_rate": 4, "block_config": (1, 1, 1, 1)}
    source = timm.create_model("densenet121", **options)
    save_file(source.state_dict(), tmp_path / "densenet.safetensors")
    options["weights"] = str(tmp_path / "densenet.safetensors")
    backbone = small(64, "densenet121", cnn_options=options).conv_branch.backbone
    values = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, values[key.replace(".", "_")])


def test_unfit_backbones_are_refused():
    with pytest.raises(EncoderError, match="did you mean"):
        small(cnn="resnet5O")
    with pytest.raises(EncoderError, match="out_indices"):
        small(cnn="efficientvit_m0")


def table(columns):
    """Return the rows of the documentation's table with the given header."""
    text = DOCUMENT.read_text()
    header = "| " + " | ".join(columns) + " |\n"
    body = text[text.index(header) + len(header) :].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in body]


def test_documented_parameters_of_each_part_are_the_real_ones():
    with torch.device("meta"):
        model = MsSSL()
    rows = {name: int(count.replace(",", "")) for name, count in table(["part", "parameters"])}
    assert rows == {name: parameters(model.get_submodule(name)) for name in rows}
    assert sum(rows.values()) == parameters(model)


def test_documented_parameters_of_each_ablation_are_the_real_ones():
    rows = table(["model", "features", "parameters"])
    assert {row[0] for row in rows} == {"full", *(f"{switch}=false" for switch in SWITCHES)}
    for name, features, count in rows:
        found = re.fullmatch(r"(\w+)=false", name)
        with torch.device("meta"):
            model = MsSSL(**({found[1]: False} if found else {}))
        assert (model.num_features, parameters(model)) == (int(features), int(count.replace(",", "")))
