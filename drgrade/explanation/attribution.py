"""How attention carries the patches to what a Vision Transformer says, block after block.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3: the weights of all
blocks, multiplied. It is the same whatever is asked for. Weighted by gradients it is of one target: Chefer,
Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", ICCV 2021, equations 5 and 6.
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
    """ReLU of the sum over channels of activation times mean gradient.

    Args:
        scores: (B, 3, S, S) to (B,), by a model that has the layer.
        layer: Where to look.
        images: (B, 3, S, S), normalised; they need a gradient, so that frozen encoders have one too.

    Returns:
        (B, h, w) float32, not negative.

    Raises:
        ConfigError: If captum is not installed, or the layer gives no map.
    """
    with _tapped(layer) as tap:
        # captum gets to the gradient of `tap` through the hook that has put it into the model.
        found: Tensor = captum().LayerGradCam(scores, tap).attribute(images, relu_attributions=True).detach()
    return found[:, 0].float()


def captum() -> Any:
    """Captum's attributions.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "captum":
            raise
        raise ConfigError(
            "Grad-CAM needs captum, which is not installed: pip install 'drgrade[explain]'; attention "
            "rollout (maps=attention) does without"
        ) from error


@contextmanager
def _tapped(layer: MapLayer) -> Iterator[nn.Module]:
    """Lead what a layer gives through a module that sees it as (B, C, h, w), whatever its layout.

    What goes on is a copy: some models change the output of a layer in place, which no gradient survives.
    """
    tap = nn.Identity()

    def lead(module: nn.Module, _: object, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != (3 if layer.layout == "tokens" else 4):
            raise ConfigError(f"{type(module).__name__} gives no map; leave it out of maps")
        if layer.layout == "tokens":
            return _through_cells(tap, output, layer.prefix)
        if layer.layout == "NHWC":
            return torch.clone(tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return torch.clone(tap(output))

    hook = layer.module.register_forward_hook(lead)
    try:
        yield tap
    finally:
        hook.remove()


def _through_cells(tap: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """Lead the tokens (B, N, C) of the patches through the tap as a map, the others beside it."""
    rows = round((tokens.shape[1] - prefix) ** 0.5)  # images are square
    patches = tokens[:, prefix:].transpose(1, 2)
    cells = tap(patches.reshape(*patches.shape[:2], rows, rows))
    return torch.cat((tokens[:, :prefix], cells.flatten(2).transpose(1, 2)), dim=1)


def attention_map(scores: Callable[[Tensor], Tensor], layers: AttentionLayers, images: Tensor) -> Tensor:
    """Rollout, as a map of the patches.

    Args:
        scores: (B, 3, S, S) to (B,), by a model that has the layers.
        layers: The attention of each block.
        images: (B, 3, S, S), normalised; they need a gradient.

    Returns:
        (B, h, w) float32, not negative: how much of each patch arrives at the class token, or at the mean of
        the patches where they are pooled.

    Raises:
        ConfigError: If the model does not show its attention.
    """
    with _shown(layers.modules) as weights:
        score = scores(images)
    if len(weights) != len(layers.modules):
        raise ConfigError("this Transformer does not show its attention; leave attention out of maps")
    if layers.weighted:
        gradients = torch.autograd.grad(score.sum(), weights)
        flow = weighted_rollout(weights, gradients)
    else:
        flow = rollout(weights)
    return _of_patches(flow.detach(), layers)


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Product over the blocks of (A + I) / 2, A the mean over the heads.

    Args:
        weights: (B, heads, N, N) of each block, the first one first; rows with sum 1.

    Returns:
        (B, N, N): row i says how much of each input token there is in output token i; rows with sum 1.
    """
    flow = _identity(weights[0])
    for block in weights:
        flow = (block.mean(dim=1) + _identity(block)) / 2 @ flow
    return flow


def weighted_rollout(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """R <- R + A R over the blocks, A the mean over the heads of the positive part of gradient times weight.

    Args:
        weights: (B, heads, N, N) of each block, the first one first.
        gradients: Of the target, by the weights.

    Returns:
        (B, N, N) relevance less the identity it began with: what a token has of itself is no explanation.
    """
    flow = _identity(weights[0])
    for block, gradient in zip(weights, gradients, strict=True):
        flow = flow + (gradient * block).clamp(min=0).mean(dim=1) @ flow
    return flow - _identity(flow)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _of_patches(flow: Tensor, layers: AttentionLayers) -> Tensor:
    """What arrives of each patch, (B, h, w)."""
    read = flow[:, 0] if layers.reads_class_token else flow[:, layers.prefix :].mean(dim=1)  # (B, N)
    patches = read[:, layers.prefix :].float()
    rows = round(patches.shape[1] ** 0.5)
    return patches.reshape(-1, rows, rows)


@contextmanager
def _shown(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the attention weights: without fusion they pass through a dropout, which does nothing here."""
    weights: list[Tensor] = []

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        weights.append(output)

    attentions: Sequence[Any] = modules
    before = [attention.fused_attn for attention in attentions]
    hooks = [attention.attn_drop.register_forward_hook(keep) for attention in attentions]
    try:
        for attention in attentions:
            attention.fused_attn = False
        yield weights
    finally:
        for attention, fused, hook in zip(attentions, before, hooks, strict=True):
            attention.fused_attn = fused
            hook.remove()
