"""Encoders: images to features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.models.feature_maps import (
    DEFAULT_LEVEL,
    ExplainableLayer,
    cnn_levels,
    last_feature_map,
    put_first,
    transformer_layers,
)
from drgrade.models.layer_groups import backbone_depths
from drgrade.models.timm_backbone import build, crop_padding, forward_map, num_features, num_map_features


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
        """Encode a batch.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            (B, D) features.
        """

    def feature_map(self, images: Tensor) -> Tensor:
        """Encode a batch without the last pooling.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            (B, C, h, w) with C = ``num_map_features``; h and w depend on the encoder.

        Raises:
            EncoderError: If the encoder has no such map.
        """
        raise EncoderError(f"{type(self).__name__} has no feature map")

    def layer_depths(self) -> dict[str, int]:
        """Return the depth of each parameter below the head, for layer-wise learning-rate decay.

        Returns:
            Name of every parameter: 0 for the learning rate of the head, 1 for the uppermost layer, etc.

        Raises:
            EncoderError: If the encoder does not define its layers.
        """
        raise EncoderError(
            f"{type(self).__name__} does not define layer_depths; set protocol.layer_decay=null"
        )

    def maps_to_explain(self, side: int) -> Mapping[str, ExplainableLayer]:
        """Return the layers that explanations can use, by name; the first one is the default.

        The base class returns the last layer that outputs a map.

        Args:
            side: Side of the square images in pixels.
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

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        pretrained: bool = False,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
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
        self.num_map_features = num_map_features(self.model)
        self.any_size = self._size.dynamic

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch; see :meth:`Encoder.forward`."""
        features: Tensor = self.model(self._size.pad(images))
        return features

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the last map of a CNN or the patch tokens of a ViT; see :meth:`Encoder.feature_map`."""
        padded = self._size.pad(images)
        return crop_padding(forward_map(self.model, padded), images, padded)

    def layer_depths(self) -> dict[str, int]:
        """Return the depths by timm's layer groups; see :meth:`Encoder.layer_depths`."""
        return {f"model.{name}": depth for name, depth in backbone_depths(self.model).items()}

    def maps_to_explain(self, side: int) -> Mapping[str, ExplainableLayer]:
        """Return the levels of a CNN, or tokens and attention of a Transformer."""
        covers = self._size.padded(side)
        layers = transformer_layers(self.model, covers) or cnn_levels(self.model, covers)
        return put_first(layers, DEFAULT_LEVEL, "attention_grad") or last_feature_map(self, side)
