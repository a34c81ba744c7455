"""Grad-CAM and attention rollout.

Rollout multiplies the attention weights of all blocks (Abnar and Zuidema, "Quantifying Attention Flow in
Transformers", ACL 2020, section 3) and does not depend on the target. The gradient-weighted variant does
(Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", ICCV 2021, equations 5 and 6).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.feature_maps import AttentionLayers, MapLayer


def grad_cam(scores: Callable[[Tensor], Tensor], layer: MapLayer, images: Tensor) -> Tensor:
    """Compute Grad-CAM: the ReLU of the sum over channels of activation times mean gradient.

    Args:
        scores: Maps images (B, 3, S, S) to scores (B,) with a model that contains the layer.
        layer: Layer whose output is explained.
        images: (B, 3, S, S), normalised. They must require a gradient, so that frozen encoders have one too.

    Returns:
        (B, h, w) float32, non-negative.

    Raises:
        ConfigError: If captum is not installed, or the layer does not output a map.
    """
    with _tapped(layer) as tap:
        # captum reads the gradient of `tap`, which the hook inserts into the model.
        found: Tensor = import_captum().LayerGradCam(scores, tap).attribute(images, relu_attributions=True)
    return found.detach()[:, 0].float()


def import_captum() -> Any:
    """Import ``captum.attr``.

    Raises:
        ConfigError: If captum is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "captum":
            raise
        raise ConfigError(
            "Grad-CAM needs captum, which is not installed: pip install 'drgrade[explain]'. Attention "
            "rollout (maps=attention) works without it"
        ) from error


@contextmanager
def _tapped(layer: MapLayer) -> Iterator[nn.Module]:
    """Route the layer's output through a module that receives it as (B, C, h, w), whatever its layout.

    The model continues with a copy: some models modify a layer's output in place, which breaks its gradient.
    """
    tap = nn.Identity()

    def route(module: nn.Module, _: object, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != (3 if layer.layout == "tokens" else 4):
            raise ConfigError(f"{type(module).__name__} does not output a map; remove it from maps")
        if layer.layout == "tokens":
            return _tap_tokens(tap, output, layer.prefix)
        if layer.layout == "NHWC":
            return torch.clone(tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return torch.clone(tap(output))

    hook = layer.module.register_forward_hook(route)
    try:
        yield tap
    finally:
        hook.remove()


def _tap_tokens(tap: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """Pass the patch tokens of (B, N, C) through the tap as a square map; keep prefix tokens."""
    rows = round((tokens.shape[1] - prefix) ** 0.5)
    patches = tokens[:, prefix:].transpose(1, 2)
    cells = tap(patches.reshape(*patches.shape[:2], rows, rows))
    return torch.cat((tokens[:, :prefix], cells.flatten(2).transpose(1, 2)), dim=1)


def attention_map(scores: Callable[[Tensor], Tensor], layers: AttentionLayers, images: Tensor) -> Tensor:
    """Compute attention rollout as a map over the patches.

    Args:
        scores: Maps images (B, 3, S, S) to scores (B,) with a model that contains the layers.
        layers: Attention of each block.
        images: (B, 3, S, S), normalised. They must require a gradient.

    Returns:
        (B, h, w) float32, non-negative: the contribution of each patch to the class token, or to the mean
        over the patches where the features are pooled.

    Raises:
        ConfigError: If the model does not expose its attention weights.
    """
    with _attention_weights(layers.modules) as weights:
        score = scores(images)
    if len(weights) != len(layers.modules):
        raise ConfigError(
            "this Transformer does not expose its attention weights; remove attention from maps"
        )
    if layers.weighted:
        flow = weighted_rollout(weights, torch.autograd.grad(score.sum(), weights))
    else:
        flow = rollout(weights)
    return _patch_map(flow.detach(), layers)


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Multiply (A + I) / 2 over the blocks, where A is the mean over the heads.

    Args:
        weights: (B, heads, N, N) of each block from first to last; rows sum to 1.

    Returns:
        (B, N, N): row i holds the contribution of each input token to output token i; rows sum to 1.
    """
    flow = _identity(weights[0])
    for block in weights:
        flow = (block.mean(dim=1) + _identity(block)) / 2 @ flow
    return flow


def weighted_rollout(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Iterate R <- R + A R, where A is the mean over the heads of max(gradient * weight, 0).

    Args:
        weights: (B, heads, N, N) of each block from first to last.
        gradients: Gradients of the target with respect to the weights.

    Returns:
        (B, N, N) relevance without the initial identity, which explains nothing.
    """
    flow = _identity(weights[0])
    for block, gradient in zip(weights, gradients, strict=True):
        flow = flow + (gradient * block).clamp(min=0).mean(dim=1) @ flow
    return flow - _identity(flow)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _patch_map(flow: Tensor, layers: AttentionLayers) -> Tensor:
    """Read the contribution of each patch from (B, N, N) as (B, h, w)."""
    read = flow[:, 0] if layers.reads_class_token else flow[:, layers.prefix :].mean(dim=1)
    patches = read[:, layers.prefix :].float()
    rows = round(patches.shape[1] ** 0.5)
    return patches.reshape(-1, rows, rows)


@contextmanager
def _attention_weights(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the attention weights: without fused attention they pass through a dropout, inactive here."""
    weights: list[Tensor] = []
    attentions: Sequence[Any] = modules
    fused = [attention.fused_attn for attention in attentions]
    hooks = [
        attention.attn_drop.register_forward_hook(lambda module, _, output: weights.append(output))
        for attention in attentions
    ]
    try:
        for attention in attentions:
            attention.fused_attn = False
        yield weights
    finally:
        for attention, before, hook in zip(attentions, fused, hooks, strict=True):
            attention.fused_attn = before
            hook.remove()
