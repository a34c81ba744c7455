"""How attention carries the patches to what a Vision Transformer says, block after block.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3: the weights of all
blocks, multiplied. It is the same whatever is asked for. Weighted by gradients it is of one target: Chefer,
Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", ICCV 2021, equations 5 and 6.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.explained import AttentionLayers


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
