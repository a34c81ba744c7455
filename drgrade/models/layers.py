"""Layers of an encoder, counted from the head: layer-wise learning-rate decay.

In fine-tuning the layers near the image, which hold what is general, should move less than those near the
head: each layer's learning rate is a share of that of the layer above it (Howard and Ruder, ACL 2018; as in
BEiT, Bao et al., ICLR 2022, and MAE, He et al., CVPR 2022: 0.65 to 0.75 for Vision Transformers).
"""

import importlib
import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drgrade.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    from drgrade.models.encoder import Encoder

MOST_LAYERS = 13
"""A backbone has at most so many layers: a stem and twelve more, as a ViT-B has. Of a deeper one neighbours
are joined, as in ConvNeXt (Liu et al., CVPR 2022). Of the 59 layers of a DenseNet-121 the lowest would else
learn with 0.75^59 = 4e-8 of the rate.
"""


def learning_rate_shares(encoder: "Encoder", decay: float) -> dict[str, float]:
    """The learning rate of every parameter of an encoder, as a share of the head's.

    Args:
        encoder: whose parameters are grouped.
        decay: rate of a layer as a share of that of the layer above it, in (0, 1].

    Returns:
        Parameter name: decay^d, where d is how many layers the parameter lies below the head.

    Raises:
        ConfigError: the decay is out of range.
        EncoderError: the encoder does not say what its layers are.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ConfigError(
            f"protocol.layer_decay={decay} is not in (0, 1]; 0.75 is usual, null is one rate for all layers"
        )
    return {name: decay**depth for name, depth in encoder.layer_depths().items()}


def backbone_depths(model: Any, classifier: str | None = None) -> dict[str, int]:
    """How far below the classifier that was taken off the parameters of a timm model lie.

    Args:
        model: of timm, with or without a classifier, which says by its `group_matcher` what its layers are.
        classifier: name of the classifier; None to ask the model.

    Returns:
        Parameter name: 0 where timm counts it to the classifier (a last normalisation, for one), 1 for the
        uppermost layer, and so on down to the stem.

    Raises:
        EncoderError: timm does not say what the layers are.
    """
    if not hasattr(model, "group_matcher"):
        raise EncoderError(
            f"timm does not say what the layers of {type(model).__name__} are; set protocol.layer_decay=null"
        )
    names = classifier or (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = [names] if isinstance(names, str) else list(names)
    manipulate = importlib.import_module("timm.models._manipulate")
    # The classifier is gone, but it is what timm's counting ends with.
    named = chain(model.named_parameters(), ((f"{head}.weight", None) for head in heads))
    layers: dict[str, int] = manipulate.group_with_matcher(
        named, model.group_matcher(coarse=False), reverse=True
    )
    below = {name: max(layers.values()) - layer for name, layer in layers.items()}
    joined = math.ceil(max(below.values()) / MOST_LAYERS) or 1
    return {name: math.ceil(below[name] / joined) for name, _ in model.named_parameters()}


def extractor_depths(features: nn.Module, name: str, options: dict[str, Any]) -> dict[str, int]:
    """As `backbone_depths`, of a model that timm has made with `features_only` and renamed.

    Args:
        features: the feature extractor.
        name: its timm name.
        options: what it was made with.

    Returns:
        As `backbone_depths`.

    Raises:
        EncoderError: timm does not say what the layers are.
    """
    without = ("features_only", "out_indices", "weights", "pretrained")
    plain_options = {key: value for key, value in options.items() if key not in without}
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        plain = importlib.import_module("timm").create_model(name, num_classes=0, **plain_options)
    depths = {key.replace(".", "_"): depth for key, depth in backbone_depths(plain).items()}
    found = {
        key: depths.get(key.removeprefix("model.").replace(".", "_"))
        for key, _ in features.named_parameters()
    }
    missing = [key for key, depth in found.items() if depth is None]
    if missing:
        raise EncoderError(
            f"timm does not say which layers {', '.join(missing[:3])} of {name} belong to; "
            "set protocol.layer_decay=null"
        )
    return {key: depth for key, depth in found.items() if depth is not None}
