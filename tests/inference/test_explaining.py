"""Heat: what a grade hangs on, by gradients and by attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drgrade.data.modules import normalise
from drgrade.errors import ConfigError
from drgrade.inference.explaining import TARGETS, Explainer
from drgrade.inference.explaining.explainer import available
from drgrade.inference.explaining.gradcam import grad_cam
from drgrade.inference.explaining.rollout import rollout, weighted_rollout
from drgrade.inference.grader import Grader
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.explained import AttentionLayers, MapLayer


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (3, 32, 32, 3), np.uint8)


def _grader(*folders, **settings):
    return Grader.load(folders, device="cpu", **settings)


@pytest.mark.parametrize("encoder", ["encoder=densenet", "encoder=msssl"])
def test_every_map_is_heat_on_the_prepared_photographs(finished_run, pixels, encoder):
    grader = _grader(finished_run(encoder))
    explained = Explainer(grader, available(grader)).explain(pixels)
    assert set(available(grader)) - {"auto"} == set(explained.heat)
    for heat in explained.heat.values():
        assert heat.shape == (3, 32, 32) and heat.dtype == np.float32
        assert heat.min() >= 0
        hottest = heat.max(axis=(1, 2))
        assert ((hottest == 0) | np.isclose(hottest, 1, atol=1e-6)).all()
    assert any(heat.max() > 0 for heat in explained.heat.values())


def test_says_of_the_photographs_what_the_grader_says(finished_run, pixels):
    grader = _grader(finished_run())
    explained = Explainer(grader).explain(pixels)
    torch.testing.assert_close(explained.graded.probabilities, grader.grade(pixels).probabilities)
    assert explained.main in explained.heat


def test_msssl_shows_the_pyramid_the_refined_map_and_the_transformer(finished_run):
    names = available(_grader(finished_run("encoder=msssl")))
    assert {"refined", "p2", "p3", "p4", "p5", "c2", "c5", "vit", "attention", "attention_grad"} <= set(names)


def _by_hand(member, layer, pixels, score):
    """Grad-CAM without captum, at full size."""
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    hook = layer.module.register_forward_hook(keep)
    images = normalise(torch.as_tensor(pixels).permute(0, 3, 1, 2)).requires_grad_()
    score(member.model(images)).sum().backward()
    hook.remove()
    (output,) = kept
    weights = output.grad.mean(dim=(2, 3), keepdim=True)
    cam = F.relu((weights * output).sum(dim=1)).detach()
    large = F.interpolate(cam[:, None], size=pixels.shape[1:3], mode="bilinear")[:, 0]
    return (large / large.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)).numpy()


@pytest.mark.parametrize(("encoder", "name"), [("encoder=densenet", "c3"), ("encoder=msssl", "p2")])
def test_is_grad_cam_of_the_expected_grade(finished_run, pixels, encoder, name):
    grader = _grader(finished_run(encoder))
    (member,) = grader.members
    layer = member.model.encoder.maps_to_explain(32)[name]

    def expected(logits):
        return member.model.head.probabilities(logits) @ torch.arange(5.0)

    found = Explainer(grader, [name]).explain(pixels).heat[name]
    np.testing.assert_allclose(found, _by_hand(member, layer, pixels, expected), atol=1e-5)
    assert found.max() > 0


def test_rollout_is_the_product_of_the_weights():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.rand(2, 3, 5, 5, generator=rng).softmax(dim=-1) for _ in range(3)]
    found = rollout(weights)
    for photograph in range(2):
        naive = np.eye(5)
        for block in weights:
            mean = np.zeros((5, 5))
            for head in block[photograph]:
                mean += head.numpy() / 3
            naive = (0.5 * mean + 0.5 * np.eye(5)) @ naive
        np.testing.assert_allclose(found[photograph], naive, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 5))


def test_weighted_rollout_adds_what_each_block_lets_through():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.rand(1, 2, 4, 4, generator=rng) for _ in range(2)]
    gradients = [torch.randn(1, 2, 4, 4, generator=rng) for _ in range(2)]
    naive = np.eye(4)
    for block, gradient in zip(weights, gradients, strict=True):
        relevance = np.maximum((block * gradient)[0].numpy(), 0).mean(axis=0)
        naive = naive + relevance @ naive
    np.testing.assert_allclose(weighted_rollout(weights, gradients)[0], naive - np.eye(4), atol=1e-6)


@pytest.mark.parametrize("pooled", ["token", "avg"])
def test_the_weights_are_those_that_timm_computes_with(pooled):
    """Recomputed from queries and keys, which fused attention leaves as the only trace."""
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
    from drgrade.inference.explaining.rollout import attention_map

    found = attention_map(lambda each: encoder(each).sum(dim=1), layers, images)
    torch.testing.assert_close(found, read.reshape(2, 2, 2).detach())
    assert all(attention.fused_attn for attention in layers.modules)
