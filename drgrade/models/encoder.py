"""Encoders: images to features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.models.explained import MAIN, Explained, last_map, led_by, levels, transformer_maps
from drgrade.models.layers import backbone_depths
from drgrade.models.timm_backbone import (
    any_size,
    as_map,
    build,
    drop_padding,
    input_side,
    map_width,
    output_width,
    pad_to,
    padded_side,
)


class Encoder(nn.Module, ABC):
    """Turns images into one feature vector each.

    Attributes:
        num_features: length D of the feature vector.
        num_map_features: channels C of the map that `feature_map` gives; None if there is no map.
        any_size: whether images may be smaller or larger than those it was built for. A pretext that cuts an
            image into pieces needs that.
    """

    num_features: int
    num_map_features: int | None = None
    any_size: bool = True

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            (B, D) features.
        """

    def feature_map(self, images: Tensor) -> Tensor:
        """Encodes a batch without the last pooling: features that know where they are.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            (B, C, h, w) with C = `num_map_features`; h and w follow from the encoder.

        Raises:
            EncoderError: this encoder has no such map.
        """
        raise EncoderError(f"{type(self).__name__} has no feature map")

    def layer_depths(self) -> dict[str, int]:
        """How far each parameter lies below the head, for layer-wise learning-rate decay.

        Returns:
            Name of every parameter: 0 for the head's learning rate, 1 for the uppermost layer, and so on.

        Raises:
            EncoderError: the encoder does not say what its layers are.
        """
        raise EncoderError(
            f"{type(self).__name__} does not say what its layers are; set protocol.layer_decay=null"
        )

    def maps_to_explain(self, side: int) -> Mapping[str, Explained]:
        """The layers that explanations can look at; `drgrade.models.explained` helps to name them.

        Args:
            side: of the square images in pixels.

        Returns:
            Layer by name; the first one is looked at unless another is asked for. Of an encoder that does not
            say, the last layer that gives a map.
        """
        return last_map(self, side)


class TimmEncoder(Encoder):
    """Any image model of timm, CNN or Vision Transformer, without its classifier.

    The features are what the model feeds to its classifier: the pooled last map of a CNN, the class token
    (or whatever the model pools) of a Vision Transformer.
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
        """Builds the model.

        Args:
            name: any model name that timm knows, for example `densenet121` or `vit_small_patch16_224`.
            image_size: side of the square images in pixels. Where the patch size does not divide it, the
                images are padded with zeros at the right and at the bottom.
            pretrained: start from the published weights; needs a network or timm's cache.
            weights: start from a local weights file instead.
            options: for `timm.create_model`, for example `{depth: 4}` for a shallower Transformer.
            **more_options: the same, each by its name, for example `drop_path_rate`, or `growth_rate` and
                `block_config` for a smaller DenseNet.

        Raises:
            EncoderError: timm does not know the name or an option, an option is given twice, or the weights
                cannot be had or do not fit.
        """
        super().__init__()
        settings = {"pretrained": pretrained, "weights": weights, **more_options}
        twice = [each for each in options or {} if each in more_options or settings.get(each)]
        if twice:
            raise EncoderError(f"{name}: {', '.join(twice)} given beside options, and in them; give it once")
        self.model, self._side = build(name, image_size, **{**settings, **(options or {})})
        self.num_features = output_width(self.model)
        self.num_map_features = map_width(self.model)
        self.any_size = any_size(self.model, self._side)

    def forward(self, images: Tensor) -> Tensor:
        """Encodes a batch; see `Encoder.forward`."""
        features: Tensor = self.model(self._padded(images))
        return features

    def feature_map(self, images: Tensor) -> Tensor:
        """The last map of a CNN, the patch tokens of a Vision Transformer; see `Encoder.feature_map`."""
        padded = self._padded(images)
        return drop_padding(as_map(self.model, padded), images, padded)

    def layer_depths(self) -> dict[str, int]:
        """The layers that timm counts; see `Encoder.layer_depths` and `drgrade.models.layers`."""
        return {f"model.{name}": depth for name, depth in backbone_depths(self.model).items()}

    def maps_to_explain(self, side: int) -> Mapping[str, Explained]:
        """The levels of a CNN, tokens and attention of a Transformer; see `Encoder.maps_to_explain`."""
        covers = padded_side(self.model, self._side, side)
        maps = transformer_maps(self.model, covers) or levels(self.model, covers)
        return led_by(maps, MAIN, "attention_grad") or last_map(self, side)

    def _padded(self, images: Tensor) -> Tensor:
        return pad_to(images, input_side(self.model, self._side, images))
