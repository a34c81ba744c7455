"""Feature maps: resizing, and the layers of an encoder that explanations can use."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.models.timm_backbone import is_channels_last

Layout = Literal["NCHW", "NHWC", "tokens"]
"""Layout of a layer's output: (B, C, h, w), (B, h, w, C), or (B, N, C) whose last tokens are the cells in
row-major order."""

DEFAULT_LEVEL = "c3"
"""Default level of a CNN, with one cell per 8 x 8 pixels. Lesions are small: on validation photographs of the
demo this level located them more often than the last one, which is usual for large objects
(docs/explanations.md)."""


@dataclass(frozen=True, eq=False)
class MapLayer:
    """A layer whose output is a map, for Grad-CAM.

    Attributes:
        module: Module that outputs the map.
        layout: Layout of the output.
        covers: Side in pixels of the square that the map covers, from the upper left corner: the side of the
            images, or more if they were padded.
        prefix: Number of tokens before those of the cells, for the layout ``tokens``.
    """

    module: nn.Module
    layout: Layout
    covers: int
    prefix: int = 0


@dataclass(frozen=True, eq=False)
class AttentionLayers:
    """The self-attention of a Vision Transformer, for attention rollout.

    Attributes:
        modules: Attention module of each block, the first block first. Each has timm's ``fused_attn`` and
            ``attn_drop``; the latter receives the attention weights if attention is not fused.
        prefix: Number of tokens before the patch tokens: class token, registers.
        reads_class_token: Whether the features are the class token; otherwise they are pooled over patches.
        covers: As in :class:`MapLayer`.
        weighted: Whether the attention weights are multiplied by their gradients, for a map of one target.
    """

    modules: tuple[nn.Module, ...]
    prefix: int
    reads_class_token: bool
    covers: int
    weighted: bool


ExplainableLayer = MapLayer | AttentionLayers


def cnn_levels(features: Any, covers: int) -> dict[str, ExplainableLayer]:
    """Return the levels of a CNN, or of another timm model with hierarchical maps.

    Args:
        features: A timm model, built with or without ``features_only``.
        covers: Side in pixels of its (padded) images.

    Returns:
        ``c2`` for one cell per 2^2 pixels, ``c3`` for one per 2^3, and so on; the last of several levels of
        one size. Empty if timm does not list the levels.
    """
    layout: Layout = "NHWC" if is_channels_last(features) else "NCHW"
    modules = dict(features.named_modules())
    info = getattr(features, "feature_info", [])
    levels: dict[str, ExplainableLayer] = {}
    for level in info if isinstance(info, list) else info.get_dicts():
        # A feature extractor of timm renames blocks.1 to blocks_1.
        name = str(level["module"])
        module = modules.get(name, modules.get(name.replace(".", "_")))
        if module is not None and level["reduction"] >= 4:
            levels[f"c{round(math.log2(level['reduction']))}"] = MapLayer(module, layout, covers)
    return levels


def transformer_layers(model: Any, covers: int) -> dict[str, ExplainableLayer]:
    """Return the explainable layers of a timm Vision Transformer for (padded) images of ``covers`` pixels.

    Returns:
        ``tokens``, the patch tokens before the last block's attention; ``attention``, for rollout;
        ``attention_grad``, for rollout weighted by gradients. Empty for another model, or if its attention
        does not expose its weights.
    """
    blocks = list(getattr(model, "blocks", []))
    attentions: list[Any] = [getattr(block, "attn", None) for block in blocks]
    modules = tuple(each for each in attentions if hasattr(each, "fused_attn") and hasattr(each, "attn_drop"))
    if not blocks or len(modules) != len(blocks) or not hasattr(model, "num_prefix_tokens"):
        return {}
    prefix = int(model.num_prefix_tokens)
    reads_class = getattr(model, "global_pool", "token") == "token" and prefix > 0
    return {
        # After the last attention a class token attends to no other token, so their gradients vanish there.
        "tokens": MapLayer(blocks[-1].norm1, "tokens", covers, prefix),
        "attention": AttentionLayers(modules, prefix, reads_class, covers, weighted=False),
        "attention_grad": AttentionLayers(modules, prefix, reads_class, covers, weighted=True),
    }


@torch.no_grad()
def last_feature_map(encoder: nn.Module, side: int) -> dict[str, ExplainableLayer]:
    """Return, as ``last``, the last layer that outputs a map (B, C, h, w) of more than one cell, if any.

    The encoder is called once, in its current mode, with an image of ``side`` pixels.
    """
    with_map: list[nn.Module] = []

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            with_map.append(module)

    hooks = [module.register_forward_hook(record) for module in encoder.modules() if module is not encoder]
    try:
        parameter = next(encoder.parameters())
        encoder(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return {"last": MapLayer(with_map[-1], "NCHW", side)} if with_map else {}


def put_first(layers: Mapping[str, ExplainableLayer], *names: str) -> dict[str, ExplainableLayer]:
    """Return the same layers with the given names, if present, first."""
    first = [name for name in names if name in layers]
    return {name: layers[name] for name in dict.fromkeys((*first, *layers))}


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (B, C, H, W) to a height and width.

    A larger map is averaged, a smaller one interpolated bilinearly. Average pooling by an integer factor
    comes first because its gradient, unlike that of adaptive pooling, is deterministic on CUDA.
    """
    factor = min(round(have / want) for have, want in zip(features.shape[-2:], size, strict=True))
    if factor > 1:
        features = F.avg_pool2d(features, factor, ceil_mode=True, count_include_pad=False)
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
