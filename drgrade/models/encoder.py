"""Encoders: images to features."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from drgrade.artefacts import read_object
from drgrade.data.transforms import MEAN, STD
from drgrade.errors import ConfigError, DataError, EncoderError
from drgrade.files import file_sha256, require_regular, write_bytes, write_text
from drgrade.models.feature_maps import (
    DEFAULT_LEVEL,
    ExplainableLayer,
    cnn_levels,
    last_feature_map,
    put_first,
    transformer_layers,
)
from drgrade.models.timm_backbone import backbone_depths, build, crop_padding, forward_map, num_features

log = logging.getLogger(__name__)


class Encoder(nn.Module, ABC):
    """Base class: maps each image to a feature vector.

    Attributes:
        num_features: Length D of the feature vector.
        num_map_features: Channels C of :meth:`feature_map`; None if there is no map.
        any_size: Whether images may be smaller or larger than those it was built for, as pretexts that cut
            images into patches require.
    """

    num_features: int
    num_map_features: int | None = None
    any_size: bool = True

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, H, W) as features (B, D)."""

    def feature_map(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, H, W) without the last pooling.

        Returns:
            (B, C, h, w) with C = ``num_map_features``; h and w depend on the encoder.

        Raises:
            EncoderError: If the encoder has no such map.
        """
        raise EncoderError(f"{type(self).__name__} has no feature map")

    def layer_depths(self) -> dict[str, int]:
        """Return the depth of every parameter below the head, for layer-wise learning-rate decay.

        The depth is 0 for the learning rate of the head, 1 for the uppermost layer, and so on.

        Raises:
            EncoderError: If the encoder does not define its layers.
        """
        raise EncoderError(
            f"{type(self).__name__} does not define layer_depths; set protocol.layer_decay=null"
        )

    def maps_to_explain(self, side: int) -> Mapping[str, ExplainableLayer]:
        """Return the layers that explanations can use, by name; the first one is the default.

        The base class returns the last layer that outputs a map. ``side`` is that of the images in pixels.
        """
        return last_feature_map(self, side)


class TimmEncoder(Encoder):
    """Any image model of timm, CNN or Vision Transformer, without its classifier.

    The features are the input of the classifier: the pooled last map of a CNN, the class token (or the tokens
    that the model pools) of a Vision Transformer.

    Example:
        >>> import torch
        >>> encoder = TimmEncoder("test_vit", image_size=64)
        >>> encoder(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 64])
    """

    model: Any  # timm's models share no type

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        pretrained: bool = False,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
        pixel_mean: float | None = None,
        pixel_std: float | None = None,
        **more_options: Any,
    ) -> None:
        """Build the model.

        Args:
            name: Any timm model name, for example ``densenet121`` or ``vit_small_patch16_224``.
            image_size: Side of the square images in pixels. If the patch size does not divide it, images are
                padded with zeros at the right and at the bottom.
            pretrained: Load the published weights; needs network access or timm's cache.
            weights: Load a local weights file instead.
            options: Options of ``timm.create_model``, for example ``{depth: 4}`` for a shallower Transformer.
            pixel_mean: Mean of every channel, for pixels in [0, 1], that the published weights expect; None
                for ImageNet's means. Images still arrive normalised by ImageNet's values, and are converted.
            pixel_std: The same for the standard deviation.
            **more_options: The same as keyword arguments, for example ``drop_path_rate``, or ``growth_rate``
                and ``block_config`` for a smaller DenseNet.

        Raises:
            EncoderError: If timm does not know the name or an option, an option is given twice, or the
                weights are missing or do not fit.
        """
        super().__init__()
        settings = {"pretrained": pretrained, "weights": weights, **more_options}
        twice = [each for each in options or {} if each in more_options or settings.get(each)]
        if twice:
            raise EncoderError(f"{name}: {', '.join(twice)} given twice, in options and separately")
        self.model, self._size = build(name, image_size, **{**settings, **(options or {})})
        self.num_features = num_features(self.model)
        self.num_map_features = (
            int(self.model.num_features) if hasattr(self.model, "forward_features") else None
        )
        self.any_size = self._size.dynamic
        self._pixels = (pixel_mean, pixel_std)

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch; see :meth:`Encoder.forward`."""
        features: Tensor = self.model(self._size.pad(self._converted(images)))
        return features

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the last map of a CNN or the patch tokens of a ViT; see :meth:`Encoder.feature_map`."""
        padded = self._size.pad(self._converted(images))
        return crop_padding(forward_map(self.model, padded), images, padded)

    def _converted(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, H, W) from ImageNet's normalisation to that of the model."""
        mean, std = self._pixels
        if mean is None and std is None:
            return images
        own_mean, own_std = (images.new_tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        pixels = images * own_std + own_mean
        return (pixels - (own_mean if mean is None else mean)) / (own_std if std is None else std)

    def layer_depths(self) -> dict[str, int]:
        """Return the depths by timm's layer groups; see :meth:`Encoder.layer_depths`."""
        return {f"model.{name}": depth for name, depth in backbone_depths(self.model).items()}

    def maps_to_explain(self, side: int) -> Mapping[str, ExplainableLayer]:
        """Return the levels of a CNN, or tokens and attention of a Transformer."""
        covers = self._size.padded(side)
        layers = transformer_layers(self.model, covers) or cnn_levels(self.model, covers)
        return put_first(layers, DEFAULT_LEVEL, "attention_grad") or last_feature_map(self, side)


WEIGHTS, CARD = "encoder.safetensors", "encoder.json"


def save_encoder(encoder: Encoder, folder: Path, card: dict[str, Any]) -> None:
    """Write an encoder to an existing folder.

    The metadata is written last, so a folder that has it is complete. The hash of the weights and the number
    of tensors are added to ``card``.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state))
    card = {**card, "sha256": file_sha256(folder / WEIGHTS), "tensors": len(state)}
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")


def is_complete_encoder(folder: Path) -> bool:
    """Return True if a folder holds an encoder whose weights have the hash in its metadata.

    A warning names a damaged one. The card of an early version has no hash; its file then has to be readable.
    """
    if not (folder / CARD).is_file():
        return False
    try:
        card = read_object(folder / CARD, "pre-train again")
        with safe_open(require_regular(folder / WEIGHTS), "pt") as tensors:
            tensors.keys()
        if card.get("sha256") in (None, file_sha256(folder / WEIGHTS)):
            return True
        fault = f"{WEIGHTS} does not have the hash in {CARD}"
    except (DataError, OSError, SafetensorError, ValueError) as error:
        fault = str(error)
    log.warning("encoder: %s is damaged (%s) and is not used", folder, fault)
    return False


def load_encoder(encoder: Encoder, path: Path) -> dict[str, Any]:
    """Load pre-trained weights into an encoder; every tensor must be matched.

    Args:
        encoder: Receives the weights; unchanged if an error is raised.
        path: A run's folder or an ``encoder.safetensors``.

    Returns:
        The metadata, if there are any, with ``matched``: the number of loaded scalars.

    Raises:
        EncoderError: If the file is missing or unreadable, or a tensor is missing, left over, of another
            shape or not finite; the message names the tensors.
        DataError: If the metadata is damaged.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not require_regular(weights).is_file():
        raise EncoderError(
            f"no encoder at {weights}; set init=PATH to the folder of a pre-training run or its {WEIGHTS}"
        )
    try:
        state = load_file(weights)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise EncoderError(
            f"{weights} is not a readable safetensors file ({error}); pre-train again (task=pretext), or use "
            "init=ssl, which does so by itself"
        ) from error
    card: dict[str, Any] = {}
    if weights.with_name(CARD).exists():
        card = read_object(weights.with_name(CARD), "pre-train again")
        if card.get("sha256") not in (None, file_sha256(weights)):
            raise EncoderError(f"{weights} and {CARD} do not match (different hash); pre-train again")
    _check_fit({name: tuple(tensor.shape) for name, tensor in state.items()}, encoder, weights)
    own = encoder.state_dict()
    check_finite({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, weights)
    encoder.load_state_dict(state, strict=True)
    return {**card, "matched": sum(tensor.numel() for tensor in state.values())}


def stated_origin(weights: Path) -> str:
    """Return what a weights file says of its origin: its metadata, or the card of drgrade beside it.

    Returns:
        At most 200 characters in one line; empty if it says nothing.
    """
    path = weights.with_name(CARD)
    card = read_object(path, "pre-train again") if path.is_file() else {}
    if card and card.get("sha256") == file_sha256(weights):
        pretext = card.get("pretext")
        stated = {"pretext": pretext.get("name") if isinstance(pretext, Mapping) else None}
        stated |= {name: card.get(name) for name in ("data", "steps", "init")}
    elif weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            stated = dict(file.metadata() or {})
    else:
        stated = _scalars(weights)
    texts = (f"{name}={value}" for name, value in stated.items() if value and name != "format")
    return " ".join("; ".join(texts).split())[:200]


def _scalars(weights: Path) -> dict[str, object]:
    """Return the values beside the tensors of a file of torch; empty if it cannot be read without code."""
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception:  # a file that timm reads in another way raises errors of many types
        return {}
    values = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in values if isinstance(value, str | int | float)}


def check_finite(tensors: Mapping[str, Tensor], origin: object) -> None:
    """Raise EncoderError if a tensor has a value that is NaN or infinite; ``origin`` is named."""
    bad = sorted(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))
    if bad:
        raise EncoderError(f"{origin} has weights that are not finite numbers ({_first(bad)}): train again")


def _check_fit(given: dict[str, tuple[int, ...]], encoder: Encoder, weights: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    faults = {
        "missing": sorted(expected.keys() - given.keys()),
        "not in this encoder": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(given[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & given.keys())
            if given[name] != expected[name]
        ],
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {fault}: {_first(names)}" for fault, names in faults.items() if names
        )
        raise EncoderError(
            f"{weights} does not fit this encoder: {listed}. Use the encoder=, data.image_size= and scale= "
            f"of its pre-training (see {CARD} beside it), or pre-train one with init=ssl"
        )


def _first(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def learning_rate_factors(encoder: "Encoder", decay: float) -> dict[str, float]:
    """Return the learning rate of every parameter of an encoder as a fraction of that of the head.

    In fine-tuning, lower layers hold general features and should change less than those near the head
    (Howard and Ruder, ACL 2018; BEiT, Bao et al., ICLR 2022, and MAE, He et al., CVPR 2022, use a decay of
    0.65 to 0.75 for Vision Transformers).

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


def to_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32, in which losses are computed; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
