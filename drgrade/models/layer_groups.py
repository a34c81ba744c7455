"""Layer groups of an encoder for layer-wise learning-rate decay.

In fine-tuning, lower layers hold general features and should change less than those near the head: the
learning rate of each layer is a fraction of that of the layer above it (Howard and Ruder, ACL 2018; as in
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

MAX_LAYERS = 13
"""Maximum number of layers of a backbone: a stem and twelve blocks, as in a ViT-B. Neighbouring layers of
deeper backbones are joined, as in ConvNeXt (Liu et al., CVPR 2022); otherwise the lowest of the 59 layers of
a DenseNet-121 would learn with 0.75^59 = 4e-8 of the rate."""


def learning_rate_factors(encoder: "Encoder", decay: float) -> dict[str, float]:
    """Return the learning rate of every parameter of an encoder as a fraction of that of the head.

    Args:
        encoder: The encoder.
        decay: Learning rate of a layer as a fraction of that of the layer above it, in (0, 1].

    Returns:
        Parameter name: decay^d, where d is the depth of the parameter below the head.

    Raises:
        ConfigError: If the decay is out of range.
        EncoderError: If the encoder does not define its layers.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ConfigError(
            f"protocol.layer_decay={decay} is not in (0, 1]; 0.75 is usual, null uses one rate for all layers"
        )
    return {name: decay**depth for name, depth in encoder.layer_depths().items()}


def backbone_depths(model: Any) -> dict[str, int]:
    """Return the depth of each parameter of a timm model below its (removed) classifier.

    Args:
        model: A timm model with a ``group_matcher``, with or without classifier.

    Returns:
        Parameter name: 0 for parameters that timm groups with the classifier, such as a last normalisation,
        1 for the uppermost layer, and so on down to the stem.

    Raises:
        EncoderError: If timm does not define the layers.
    """
    if not hasattr(model, "group_matcher"):
        raise EncoderError(
            f"timm does not define the layers of {type(model).__name__}; set protocol.layer_decay=null"
        )
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = [names] if isinstance(names, str) else list(names)
    manipulate = importlib.import_module("timm.models._manipulate")
    # The classifier has been removed, but timm's numbering ends with it.
    named = chain(model.named_parameters(), ((f"{head}.weight", None) for head in heads))
    layers: dict[str, int] = manipulate.group_with_matcher(
        named, model.group_matcher(coarse=False), reverse=True
    )
    below = {name: max(layers.values()) - layer for name, layer in layers.items()}
    joined = math.ceil(max(below.values()) / MAX_LAYERS) or 1
    return {name: math.ceil(below[name] / joined) for name, _ in model.named_parameters()}


def extractor_depths(features: nn.Module, name: str, options: dict[str, Any]) -> dict[str, int]:
    """Return :func:`backbone_depths` of a model that timm built with ``features_only``, which renames layers.

    Args:
        features: The feature extractor.
        name: Its timm name.
        options: Options that it was built with.

    Raises:
        EncoderError: If timm does not define the layers.
    """
    without = ("features_only", "out_indices", "weights", "pretrained")
    plain_options = {key: value for key, value in options.items() if key not in without}
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        plain = importlib.import_module("timm").create_model(name, num_classes=0, **plain_options)
    depths = {key.replace(".", "_"): depth for key, depth in backbone_depths(plain).items()}
    own = {key: key.removeprefix("model.").replace(".", "_") for key, _ in features.named_parameters()}
    missing = [key for key, plain_key in own.items() if plain_key not in depths]
    if missing:
        raise EncoderError(
            f"timm does not define the layers of {', '.join(missing[:3])} of {name}; "
            "set protocol.layer_decay=null"
        )
    return {key: depths[plain_key] for key, plain_key in own.items()}
