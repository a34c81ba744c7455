"""Heat maps of a prediction, by gradients and by attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError
from drgrade.explanation.explainer import (
    TARGETS,
    Explainer,
    attention_map,
    available_maps,
    grad_cam,
    rollout,
    weighted_rollout,
)
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.feature_maps import MapLayer
from drgrade.prediction.grader import Grader


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (3, 32, 32, 3), np.uint8)


def _grader(*folders, **settings):
    return Grader.load(folders, device="cpu", **settings)


def _explainer(grader, maps=("auto",), target="expected"):
    return Explainer([member.model for member in grader.members], 32, maps, target)


def _available(grader):
    return available_maps([member.model for member in grader.members], 32)


def _heat(grader, pixels, maps=("auto",), target="expected"):
    """Compute heat by map name."""
    return _explainer(grader, maps, target).heat(pixels, grader.grade(pixels).grades.tolist())


@pytest.mark.parametrize("encoder", ["encoder=densenet", "encoder=msssl"])
def test_every_map_is_scaled_heat_on_the_prepared_photographs(finished_run, pixels, encoder):
    grader = _grader(finished_run(encoder))
    heats = _heat(grader, pixels, _available(grader))
    assert set(_available(grader)) - {"auto"} == set(heats)
    for heat in heats.values():
        assert heat.shape == (3, 32, 32)
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        hottest = heat.max(axis=(1, 2))
        assert ((hottest == 0) | np.isclose(hottest, 1, atol=1e-6)).all()
    assert any(heat.max() > 0 for heat in heats.values())


def test_msssl_has_maps_of_pyramid_refined_map_and_transformer(finished_run):
    names = _available(_grader(finished_run("encoder=msssl")))
    assert {"refined", "p2", "p3", "p4", "p5", "c2", "c5", "vit", "attention", "attention_grad"} <= set(names)


def _reference(member, layer, pixels, score):
    """Compute Grad-CAM without captum, at full size."""
    outputs = []

    def keep(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    hook = layer.module.register_forward_hook(keep)
    images = normalise(torch.as_tensor(pixels).permute(0, 3, 1, 2)).requires_grad_()
    score(member.model(images)).sum().backward()
    hook.remove()
    (output,) = outputs
    weights = output.grad.mean(dim=(2, 3), keepdim=True)
    cam = F.relu((weights * output).sum(dim=1)).detach()
    large = F.interpolate(cam[:, None], size=pixels.shape[1:3], mode="bilinear")[:, 0]
    return (large / large.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)).numpy()


@pytest.mark.parametrize(("encoder", "name"), [("encoder=densenet", "c3"), ("encoder=msssl", "p2")])
def test_heat_is_grad_cam_of_the_expected_grade(finished_run, pixels, encoder, name):
    grader = _grader(finished_run(encoder))
    (member,) = grader.members
    layer = member.model.encoder.maps_to_explain(32)[name]

    def expected(logits):
        return member.model.head.probabilities(logits) @ torch.arange(5.0)

    heat = _heat(grader, pixels, [name])[name]
    np.testing.assert_allclose(heat, _reference(member, layer, pixels, expected), atol=1e-5)
    assert heat.max() > 0


def test_rollout_is_the_product_of_the_weights():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.rand(2, 3, 5, 5, generator=rng).softmax(dim=-1) for _ in range(3)]
    flow = rollout(weights)
    for photograph in range(2):
        naive = np.eye(5)
        for block in weights:
            mean = np.zeros((5, 5))
            for head in block[photograph]:
                mean += head.numpy() / 3
            naive = (0.5 * mean + 0.5 * np.eye(5)) @ naive
        np.testing.assert_allclose(flow[photograph], naive, atol=1e-6)
    torch.testing.assert_close(flow.sum(dim=-1), torch.ones(2, 5))


def test_weighted_rollout_equals_a_naive_loop():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.rand(1, 2, 4, 4, generator=rng) for _ in range(2)]
    gradients = [torch.randn(1, 2, 4, 4, generator=rng) for _ in range(2)]
    naive = np.eye(4)
    for block, gradient in zip(weights, gradients, strict=True):
        relevance = np.maximum((block * gradient)[0].numpy(), 0).mean(axis=0)
        naive = naive + relevance @ naive
    np.testing.assert_allclose(weighted_rollout(weights, gradients)[0], naive - np.eye(4), atol=1e-6)


@pytest.mark.parametrize("pooled", ["token", "avg"])
def test_attention_weights_equal_those_of_timm(pooled):
    """The weights are recomputed from queries and keys."""
    torch.manual_seed(0)
    encoder = TimmEncoder(
        "test_vit", 32, options={"global_pool": pooled, "class_token": pooled == "token"}
    ).eval()
    layers = encoder.maps_to_explain(32)["attention"]
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    recomputed, hooks = [], []
    for attention in layers.modules:

        def keep(module, inputs, output, attention=attention):
            q, k, _ = output.reshape(*output.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = attention.q_norm(q), attention.k_norm(k)
            recomputed.append((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1))

        hooks.append(attention.qkv.register_forward_hook(keep))
    encoder(images)
    for hook in hooks:
        hook.remove()
    flow = rollout(recomputed)
    prefix = int(pooled == "token")
    read = flow[:, 0, 1:] if prefix else flow.mean(dim=1)
    heat = attention_map(lambda each: encoder(each).sum(dim=1), layers, images)
    torch.testing.assert_close(heat, read.reshape(2, 2, 2).detach())
    assert all(attention.fused_attn for attention in layers.modules)


@pytest.mark.parametrize("head", ["softmax", "regression_fitted", "corn"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_head_has_every_target(finished_run, pixels, head, target):
    heats = _heat(_grader(finished_run(f"head={head}")), pixels, target=target)
    assert all(np.isfinite(heat).all() for heat in heats.values())


def test_the_expected_grade_of_a_regression_has_a_gradient_outside_the_grades(finished_run):
    """Its probabilities are constant there."""
    (member,) = _grader(finished_run("head=regression_fitted")).members
    logits = torch.tensor([[5.2], [-0.7]], requires_grad=True)
    member.model.head.severity(logits).sum().backward()
    assert (logits.grad == 1).all()


@pytest.mark.parametrize("target", TARGETS)
def test_targets_differ(finished_run, pixels, target):
    """Evidence for a predicted grade of 0 is no evidence for a high grade."""
    grader = _grader(finished_run())
    one, other = (_heat(grader, pixels, ["c3"], each)["c3"] for each in (target, "expected"))
    assert (target == "expected") == np.allclose(one, other)


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_probes_are_explained_through_the_frozen_encoder(finished_run, pixels, protocol):
    grader = _grader(finished_run(f"protocol={protocol}"))
    assert _heat(grader, pixels, ["combined"])["combined"].max() > 0


def test_a_constant_model_is_refused(finished_run, pixels):
    grader = _grader(finished_run("protocol=majority"))
    with pytest.raises(ConfigError, match="does not depend on the photograph"):
        _heat(grader, pixels)


def test_heat_of_an_ensemble_is_the_mean_of_its_members(finished_run, pixels):
    folders = [finished_run(), finished_run("seed=1")]
    both = _heat(_grader(*folders), pixels)["c3"]
    mean = np.mean([_heat(_grader(folder), pixels)["c3"] for folder in folders], axis=0)
    hottest = mean.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(both, mean / np.where(hottest > 0, hottest, 1), atol=1e-5)


def test_members_with_different_layers_use_their_own_default(finished_run, pixels):
    grader = _grader(finished_run(), finished_run("encoder=vit"))
    assert _explainer(grader).names == ("auto",)
    with pytest.raises(
        ConfigError, match=r"maps=c3: .* no such map; available: auto, combined, attention_grad"
    ):
        _explainer(grader, ["c3"])


def test_the_grader_is_not_changed(finished_run, pixels):
    grader = _grader(finished_run("encoder=msssl"))
    before = grader.grade(pixels).raw
    _heat(grader, pixels, _available(grader))
    assert torch.equal(grader.grade(pixels).raw, before)
    modules = [module for member in grader.members for module in member.model.modules()]
    assert not any(module._forward_hooks for module in modules)
    assert all(parameter.grad is None for member in grader.members for parameter in member.model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": ["c9"]}, "maps=c9"),
        ({"maps": []}, "maps is empty"),
        ({"target": "truth"}, "target=truth is not one of expected"),
    ],
)
def test_unknown_maps_and_targets_are_refused(finished_run, settings, message):
    with pytest.raises(ConfigError, match=message):
        _explainer(_grader(finished_run()), **settings)


def test_missing_captum_is_an_error(finished_run, pixels, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(ConfigError, match=r"pip install 'drgrade\[explain\]'"):
        _explainer(_grader(finished_run()))
    grader = _grader(finished_run("encoder=msssl"))
    assert _heat(grader, pixels, ["attention"])["attention"].max() > 0


class Edges(Encoder):
    """An encoder that names no layers."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.convolve = torch.nn.Conv2d(3, 2, 3, stride=4)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        return self.pool(self.convolve(images)).flatten(1)


def test_the_default_map_is_that_of_the_last_spatial_layer():
    encoder = Edges()
    maps = encoder.maps_to_explain(32)
    assert {name: layer.module for name, layer in maps.items()} == {"last": encoder.convolve}


@pytest.mark.parametrize(
    ("name", "size", "names"),
    [
        ("test_resnet", 32, ["c3", "c2", "c4", "c5"]),
        ("test_efficientnet", 32, ["c3", "c2", "c4", "c5"]),
        ("test_convnext", 32, ["c3", "c2", "c4"]),
        ("test_vit", 40, ["attention_grad", "tokens", "attention"]),
    ],
)
def test_families_of_timm_have_maps(name, size, names):
    """Also with layers that work in place, and with photographs padded to whole patches."""
    torch.manual_seed(0)
    encoder = TimmEncoder(name, size).eval()
    maps = encoder.maps_to_explain(size)
    assert list(maps)[: len(names)] == names
    images = torch.randn(2, 3, size, size, requires_grad=True)
    for layer in maps.values():
        compute = grad_cam if isinstance(layer, MapLayer) else attention_map
        cells = compute(lambda each: encoder(each).sum(dim=1), layer, images)
        assert cells.shape[0] == 2
        assert cells.shape[1] == cells.shape[2] > 0
        assert layer.covers == (48 if name == "test_vit" else size)


def test_layouts_have_the_same_heat():
    """The same numbers in another layout give the same heat."""
    torch.manual_seed(0)
    convolve, read = torch.nn.Conv2d(3, 4, 4, stride=4), torch.randn(4, 8, 8)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)

    class Layout(torch.nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.layout = layout

        def forward(self, maps):
            if self.layout == "NHWC":
                return maps.permute(0, 2, 3, 1)
            if self.layout == "tokens":
                return torch.cat((torch.ones(len(maps), 1, 4), maps.flatten(2).transpose(1, 2)), dim=1)
            return maps

    def heat(layout):
        module = Layout(layout)

        def scores(each):
            out = module(convolve(each))
            if layout == "NHWC":
                out = out.permute(0, 3, 1, 2)
            if layout == "tokens":
                out = out[:, 1:].transpose(1, 2).reshape(-1, 4, 8, 8)
            return (out.square() * read).sum(dim=(1, 2, 3))

        return grad_cam(scores, MapLayer(module, layout, 32, prefix=int(layout == "tokens")), images)

    for layout in ("NHWC", "tokens"):
        torch.testing.assert_close(heat(layout), heat("NCHW"))
    assert heat("NCHW").max() > 0


def test_the_meaning_of_plain_attention_excludes_the_target(finished_run):
    grader = _grader(finished_run("encoder=msssl"))
    assert "independent of the grade" in _explainer(grader, ["attention"]).meaning
    assert "raise the expected grade" in _explainer(grader, ["attention_grad"]).meaning
