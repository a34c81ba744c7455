"""Which layers of an encoder know where they are: what explanations look at.

Nothing here computes an explanation; :mod:`drgrade.explanation` does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "tokens"]
"""What a layer gives: (B, C, h, w), (B, h, w, C), or (B, N, C) whose last tokens are the cells, row by
row."""


@dataclass(frozen=True, eq=False)
class MapLayer:
    """A layer whose output is a map, for Grad-CAM.

    Attributes:
        module: Gives the map.
        layout: How the map lies in what it gives.
        covers: Side in pixels of what the map covers, from the upper left corner: the images', or more where
            they were padded.
        prefix: With ``tokens``, how many come before those of the cells.
    """

    module: nn.Module
    layout: Layout
    covers: int
    prefix: int = 0


@dataclass(frozen=True, eq=False)
class AttentionLayers:
    """The self-attention of a Vision Transformer, for attention rollout.

    Attributes:
        modules: The attention of each block, the first one first. Each has timm's ``fused_attn`` and
            ``attn_drop``, through which the weights pass where they are not fused.
        prefix: Tokens before those of the patches: class token, registers.
        reads_class_token: Whether the features are the class token's; else they are pooled over the patches.
        covers: As in :class:`MapLayer`.
        weighted: Whether the weights are multiplied by their gradients, so that the map is of one target.
    """

    modules: tuple[nn.Module, ...]
    prefix: int
    reads_class_token: bool
    covers: int
    weighted: bool


Explained = MapLayer | AttentionLayers

MAIN = "c3"
"""The level that is looked at unless another is asked for: one cell per 8 x 8 pixels. Lesions are small. On
validation photographs of the demo its heat was more often on them than that of the last level, which is usual
where an object fills the picture (docs/explanations.md).
"""


def levels(features: Any, covers: int, prefix: str = "c") -> dict[str, Explained]:
    """The levels of a CNN, or of another model of timm that gives maps.

    Args:
        features: Of timm, plain or with ``features_only``.
        covers: Side in pixels of its images.
        prefix: Of the names.

    Returns:
        ``c2`` for one cell per 2^2 pixels, ``c3`` per 2^3, and so on; of several with the same number of
        cells the last. Empty where timm does not say what the levels are.
    """
    layout: Layout = "NHWC" if getattr(features, "output_fmt", None) == "NHWC" else "NCHW"
    modules = dict(features.named_modules())
    found: dict[str, Explained] = {}
    for level in _feature_info(features):
        # A feature extractor of timm renames blocks.1 to blocks_1, some with all that is in them.
        name = str(level["module"])
        module = modules.get(name, modules.get(name.replace(".", "_")))
        if module is not None and level["reduction"] >= 4:
            found[f"{prefix}{round(math.log2(level['reduction']))}"] = MapLayer(module, layout, covers)
    return found


def transformer_maps(model: Any, covers: int) -> dict[str, Explained]:
    """What can be looked at in a Vision Transformer of timm.

    Args:
        model: Of timm.
        covers: Side in pixels of its images, padded.

    Returns:
        ``tokens``, the patch tokens before the last block's attention mixes them; ``attention``, rollout;
        ``attention_grad``, rollout weighted by gradients. Empty if the model is none, or its attention does
        not show its weights.
    """
    blocks = list(getattr(model, "blocks", []))
    attentions = [getattr(block, "attn", None) for block in blocks]
    shown = [each for each in attentions if hasattr(each, "fused_attn") and hasattr(each, "attn_drop")]
    if not blocks or len(shown) != len(blocks) or not hasattr(model, "num_prefix_tokens"):
        return {}
    prefix = int(model.num_prefix_tokens)
    reads_class = getattr(model, "global_pool", "token") == "token" and prefix > 0
    modules = tuple(each for each in shown if each is not None)
    return {
        # After the last attention a class token reads no other token: what follows has no gradient there.
        "tokens": MapLayer(blocks[-1].norm1, "tokens", covers, prefix),
        "attention": AttentionLayers(modules, prefix, reads_class, covers, weighted=False),
        "attention_grad": AttentionLayers(modules, prefix, reads_class, covers, weighted=True),
    }


@torch.no_grad()
def last_map(encoder: nn.Module, side: int) -> dict[str, Explained]:
    """The last layer of any encoder that gives a map (B, C, h, w) of more than one cell.

    Args:
        encoder: Images to features; it is called once, in the mode that it is in.
        side: Of the images in pixels.

    Returns:
        ``last``, or nothing if there is no such layer.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append(module)

    hooks = [module.register_forward_hook(look) for module in encoder.modules() if module is not encoder]
    try:
        parameter = next(encoder.parameters())
        encoder(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return {"last": MapLayer(found[-1], "NCHW", side)} if found else {}


def led_by(maps: Mapping[str, Explained], *preferred: str) -> dict[str, Explained]:
    """The same maps, some of them first.

    Args:
        maps: By name.
        preferred: Names that come first, in this order; those that there are.

    Returns:
        All of them.
    """
    first = [name for name in preferred if name in maps]
    return {name: maps[name] for name in dict.fromkeys((*first, *maps))}


def _feature_info(model: Any) -> list[Mapping[str, Any]]:
    info = getattr(model, "feature_info", [])
    return list(info) if isinstance(info, list) else list(info.get_dicts())
