"""MsSSL: a CNN's feature pyramid and a Vision Transformer's tokens, fused and refined.

After Almattar et al., Scientific Reports 15:33742, 2025, doi 10.1038/s41598-025-85685-w. What the abstract
leaves open, the shapes and the parameter counts are in docs/msssl.md.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.models.deep_learner import DeepLearner
from drgrade.models.encoder import Encoder
from drgrade.models.explained import MAIN, Explained, MapLayer, led_by, levels, transformer_maps
from drgrade.models.fpn import FeaturePyramid
from drgrade.models.layers import backbone_depths, extractor_depths
from drgrade.models.timm_backbone import (
    PublishedWeightsError,
    any_size,
    build,
    downloading,
    drop_padding,
    input_side,
    output_width,
    pad_to,
    padded_side,
)

# The maps are fused at one cell per 8 x 8 pixels: 28 x 28 at 224 pixels, the size of C3 and P3.
FUSION_STRIDE = 8


class ConvBranch(nn.Module):
    """The CNN's side of the fusion: P2-P5 of a feature pyramid, or only the last map, projected.

    Attributes:
        num_maps: how many maps `forward` returns.
        any_size: see `Encoder`.
    """

    backbone: Any  # timm's feature extractors share no type

    def __init__(
        self,
        name: str,
        image_size: int,
        channels: int,
        use_fpn: bool,
        pretrained: bool,
        options: dict[str, Any],
    ) -> None:
        """Builds the CNN and its neck.

        Args:
            name: a timm model that supports `features_only` and has four levels.
            image_size: side of the square images in pixels.
            channels: channels of every map returned.
            use_fpn: False projects the last map with a 1x1 convolution instead.
            pretrained: start from the published weights.
            options: for `drgrade.models.timm_backbone.build`.
        """
        super().__init__()
        levels = (-4, -3, -2, -1) if use_fpn else (-1,)
        options = {"features_only": True, "out_indices": levels, **options}
        self.backbone, self._side = build(name, image_size, pretrained=pretrained, **options)
        self._name, self._options = name, options
        # Swin and its like give (B, H, W, C).
        self._channels_last = getattr(self.backbone, "output_fmt", None) == "NHWC"
        widths: list[int] = self.backbone.feature_info.channels()
        self.num_maps = len(widths)
        self.any_size = any_size(self.backbone, self._side)
        self._use_fpn = use_fpn
        self.neck: nn.Module = (
            FeaturePyramid(widths, channels) if use_fpn else nn.Conv2d(widths[-1], channels, kernel_size=1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the maps.

        Args:
            images: (B, 3, H, W).

        Returns:
            `num_maps` maps (B, channels, H_i, W_i), the finest first.
        """
        padded = pad_to(images, input_side(self.backbone, self._side, images))
        maps: list[Tensor] = self.backbone(padded)
        if self._channels_last:
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        maps = [drop_padding(level, images, padded) for level in maps]
        pyramid: list[Tensor] = self.neck(maps) if self._use_fpn else [self.neck(maps[-1])]
        return pyramid

    def backbone_depths(self) -> dict[str, int]:
        """How far each of the CNN's parameters lies below its last map; see `drgrade.models.layers`."""
        return extractor_depths(self.backbone, self._name, self._options)

    def maps_to_explain(self, side: int) -> dict[str, Explained]:
        """The CNN's levels (c2-c5) and those of the pyramid (p2-p5), or the projected last map (p5)."""
        own = levels(self.backbone, padded_side(self.backbone, self._side, side))
        smooth = self.neck.smooth if isinstance(self.neck, FeaturePyramid) else [self.neck]
        names = [f"p{level}" for level in range(6 - self.num_maps, 6)]
        return {**own, **{n: MapLayer(m, "NCHW", side) for n, m in zip(names, smooth, strict=True)}}


class TransformerBranch(nn.Module):
    """The Vision Transformer's side: its tokens as a map at the fusion's resolution, and its global vector.

    Attributes:
        num_features: length of the global vector.
        any_size: see `Encoder`.
    """

    backbone: Any  # timm's Transformers share no type

    def __init__(
        self, name: str, image_size: int, channels: int, pretrained: bool, options: dict[str, Any]
    ) -> None:
        """Builds the Transformer and the transposed convolution.

        Args:
            name: a timm model that supports `forward_intermediates`.
            image_size: side of the square images in pixels.
            channels: channels of the map returned.
            pretrained: start from the published weights.
            options: for `drgrade.models.timm_backbone.build`.

        Raises:
            EncoderError: the model cannot give a map of its tokens.
        """
        super().__init__()
        self.backbone, self._side = build(name, image_size, pretrained=pretrained, **options)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise EncoderError(f"{name} gives no map of its tokens; MsSSL needs another Transformer")
        last = self.backbone.feature_info[-1]
        self.num_features = output_width(self.backbone)
        self.any_size = any_size(self.backbone, self._side)
        # Patches of 16 pixels need a factor of 2; patches of 8 none, patches of 32 a factor of 4.
        factor = max(1, round(last["reduction"] / FUSION_STRIDE))
        self.upsample = nn.ConvTranspose2d(last["num_chs"], channels, kernel_size=factor, stride=factor)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Computes map and vector.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, channels, h, w) the map, h and w close to H / 8 and W / 8; (B, num_features) what the model
            pools: the class token, or the mean of the patch tokens where it has none.
        """
        padded = pad_to(images, input_side(self.backbone, self._side, images))
        tokens, maps = self.backbone.forward_intermediates(padded, indices=1, norm=True)
        vector: Tensor = self.backbone.forward_head(tokens, pre_logits=True)
        return drop_padding(self.upsample(maps[-1]), images, padded), vector

    def maps_to_explain(self, side: int) -> dict[str, Explained]:
        """The map that enters the fusion, and what can be looked at in the Transformer itself."""
        covers = padded_side(self.backbone, self._side, side)
        return {"vit": MapLayer(self.upsample, "NCHW", covers), **transformer_maps(self.backbone, covers)}


class MsSSL(Encoder):
    """Multi-scale encoder of a CNN, a Vision Transformer, a feature pyramid and a Deep Learner.

    At 224 pixels with ResNet-50 and ViT-S/16: P2-P5 and the ViT's map are brought to 256 x 28 x 28,
    concatenated, fused by a 1x1 convolution to 256 x 28 x 28, refined to 128 x 56 x 56, pooled to 128 and put
    before the class token of 384.
    """

    def __init__(
        self,
        cnn: str = "resnet50",
        vit: str = "vit_small_patch16_224",
        image_size: int = 224,
        channels: int = 256,
        refined_channels: int = 128,
        pretrained: bool = False,
        use_vit: bool = True,
        use_fpn: bool = True,
        use_deep_learner: bool = True,
        use_cbam: bool = True,
        reduction: int = 16,
        cnn_options: dict[str, Any] | None = None,
        vit_options: dict[str, Any] | None = None,
    ) -> None:
        """Builds the encoder; every `use_...` switch is an ablation.

        Args:
            cnn: timm name of the CNN.
            vit: timm name of the Vision Transformer.
            image_size: side of the square images in pixels.
            channels: channels of the pyramid, of the ViT's map and of the fused map.
            refined_channels: channels of the refined map.
            pretrained: start both backbones from their published weights; one whose options name a file takes
                the file.
            use_vit: False leaves the Transformer out, its map and its class token.
            use_fpn: False uses the CNN's last map alone.
            use_deep_learner: False pools the fused map itself.
            use_cbam: False leaves the attention out of the Deep Learner.
            reduction: of CBAM's channel attention.
            cnn_options: for timm, and `weights`, a local file; see `TimmEncoder`.
            vit_options: the same for the Transformer.

        Raises:
            EncoderError: timm does not know a name or an option, or the weights cannot be had or do not fit.
        """
        super().__init__()
        names = {"cnn": cnn, "vit": vit} if use_vit else {"cnn": cnn}
        options = {"cnn": dict(cnn_options or {}), "vit": dict(vit_options or {})}
        published = [part for part in names if pretrained and not options[part].get("weights")]
        try:
            self.conv_branch = ConvBranch(
                cnn, image_size, channels, use_fpn, "cnn" in published, options["cnn"]
            )
            self.vit_branch = (
                TransformerBranch(vit, image_size, channels, "vit" in published, options["vit"])
                if use_vit
                else None
            )
        except PublishedWeightsError as error:
            # Both files at once: nobody should have to come back for the second one.
            needed = {f"+encoder.{part}_options.weights": names[part] for part in published}
            raise EncoderError(f"{error.reason}; {downloading(needed)}") from error
        num_maps = self.conv_branch.num_maps + int(use_vit)
        self.fuse = nn.Conv2d(num_maps * channels, channels, kernel_size=1)
        self.deep_learner: nn.Module = (
            DeepLearner(channels, refined_channels, reduction, use_cbam)
            if use_deep_learner
            else nn.Identity()
        )
        self.num_map_features = refined_channels if use_deep_learner else channels
        self.num_features = self.num_map_features
        self.any_size = self.conv_branch.any_size
        if self.vit_branch is not None:
            self.num_features += self.vit_branch.num_features
            self.any_size = self.any_size and self.vit_branch.any_size

    def forward(self, images: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            (B, D): the pooled refined map, then the Transformer's vector.
        """
        refined, vectors = self._encode(images)
        return torch.cat([refined.mean(dim=(2, 3)), *vectors], dim=1)

    def feature_map(self, images: Tensor) -> Tensor:
        """The refined map before it is pooled, one cell per 4 x 4 pixels; see `Encoder.feature_map`.

        Without the Deep Learner it is the fused map, one cell per 8 x 8 pixels.
        """
        return self._encode(images)[0]

    def layer_depths(self) -> dict[str, int]:
        """Fusion and Deep Learner lie next to the head, each backbone below the fusion for itself.

        The pyramid, and what brings the Transformer's tokens to the fusion, count as fusion. See
        `Encoder.layer_depths`.
        """
        below = {f"conv_branch.backbone.{name}": d for name, d in self.conv_branch.backbone_depths().items()}
        if self.vit_branch is not None:
            depths = backbone_depths(self.vit_branch.backbone)
            below |= {f"vit_branch.backbone.{name}": depth for name, depth in depths.items()}
        return {name: 1 + below.get(name, 0) for name, _ in self.named_parameters()}

    def maps_to_explain(self, side: int) -> Mapping[str, Explained]:
        """The refined map, the fused one, and those of the branches; see `Encoder.maps_to_explain`."""
        refined = {} if isinstance(self.deep_learner, nn.Identity) else {"refined": self.deep_learner}
        own = {**refined, "fused": self.fuse}
        vit = {} if self.vit_branch is None else self.vit_branch.maps_to_explain(side)
        maps: dict[str, Explained] = {name: MapLayer(layer, "NCHW", side) for name, layer in own.items()}
        return led_by({**maps, **self.conv_branch.maps_to_explain(side), **vit}, MAIN)

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The refined map (B, C, h, w), and the Transformer's vector (B, D), if it takes part."""
        maps = self.conv_branch(images)
        vectors: list[Tensor] = []
        if self.vit_branch is not None:
            vit_map, vector = self.vit_branch(images)
            maps = [*maps, vit_map]
            vectors = [vector]
        height, width = (math.ceil(side / FUSION_STRIDE) for side in images.shape[-2:])
        resized = [resize(level, (height, width)) for level in maps]  # each (B, channels, H/8, W/8)
        refined: Tensor = self.deep_learner(self.fuse(torch.cat(resized, dim=1)))
        return refined, vectors


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings a map to a size: averages where it is larger, interpolates where it is smaller.

    Average pooling by a whole factor comes first because, unlike adaptive pooling, its gradient is
    deterministic on CUDA.

    Args:
        features: (B, C, H, W).
        size: height and width wanted.

    Returns:
        (B, C, height, width).
    """
    factor = min(round(have / want) for have, want in zip(features.shape[-2:], size, strict=True))
    if factor > 1:
        features = F.avg_pool2d(features, factor, ceil_mode=True, count_include_pad=False)
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
