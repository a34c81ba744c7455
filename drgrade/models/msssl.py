"""MsSSL: the feature pyramid of a CNN and the tokens of a Vision Transformer, fused and refined.

After Almattar et al., Scientific Reports 15:33742, 2025, doi 10.1038/s41598-025-85685-w. docs/msssl.md lists
what the abstract leaves open, the shapes and the parameter counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.models.encoder import Encoder
from drgrade.models.feature_maps import (
    DEFAULT_LEVEL,
    ExplainableLayer,
    MapLayer,
    cnn_levels,
    put_first,
    resize,
    transformer_layers,
)
from drgrade.models.timm_backbone import (
    PublishedWeightsError,
    backbone_depths,
    build,
    crop_padding,
    download_advice,
    extractor_depths,
    is_channels_last,
    num_features,
)


class ChannelAttention(nn.Module):
    """Channel attention of CBAM: sigmoid(MLP(average over the map) + MLP(maximum over the map)).

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 2. As in the paper, the
    shared MLP has no biases.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Build the MLP, with ``channels / reduction`` hidden units, at least one."""
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of a map (B, C, H, W)."""
        # mean and amax rather than adaptive pooling, whose gradient is not deterministic on CUDA.
        average: Tensor = self.mlp(features.mean(dim=(2, 3)))  # (B, C)
        largest: Tensor = self.mlp(features.amax(dim=(2, 3)))  # (B, C)
        return features * torch.sigmoid(average + largest)[:, :, None, None]


class SpatialAttention(nn.Module):
    """Spatial attention of CBAM, equation 3: sigmoid(conv([average; maximum over channels]))."""

    def __init__(self, kernel_size: int = 7) -> None:
        """Build the convolution; ``kernel_size`` is odd."""
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Scale the positions of a map (B, C, H, W)."""
        average = features.mean(dim=1, keepdim=True)  # (B, 1, H, W)
        largest = features.amax(dim=1, keepdim=True)  # (B, 1, H, W)
        return features * torch.sigmoid(self.conv(torch.cat((average, largest), dim=1)))


class CBAM(nn.Module):
    """Channel attention followed by spatial attention, equation 1."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        """Scale channels, then positions, of a map (B, C, H, W)."""
        attended: Tensor = self.spatial(self.channel(features))
        return attended


class FeaturePyramid(nn.Module):
    """Feature Pyramid Network: 1x1 laterals, nearest-neighbour top-down path, 3x3 smoothing.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3; without
    non-linearities, as in the paper.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        """Build a lateral and a smoothing convolution per level, from the finest (C2) to the coarsest."""
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute P2-P5 of C2-C5, the finest first; level i keeps its size and has ``channels`` channels."""
        merged = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            # To the size of the finer level: where that is odd, a scale factor of 2 gives one cell too many.
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


class ResidualAttentionBlock(nn.Module):
    """3x3 conv-BN-ReLU, 3x3 conv-BN, CBAM and a skip connection; no activation after the addition."""

    def __init__(self, channels: int, reduction: int = 16, use_cbam: bool = True) -> None:
        """Build the block for maps of ``channels`` channels; without ``use_cbam`` it has no attention."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.attention = CBAM(channels, reduction) if use_cbam else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Refine a map (B, C, H, W)."""
        refined: Tensor = self.attention(self.body(features))
        return features + refined


class DeepLearner(nn.Module):
    """Refines the fused map: two residual attention blocks, 2x transposed convolution, conv-BN-ReLU, CBAM."""

    def __init__(
        self, in_channels: int = 256, out_channels: int = 128, reduction: int = 16, use_cbam: bool = True
    ) -> None:
        """Build the module for maps of C = ``in_channels``, refined to R = ``out_channels``."""
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualAttentionBlock(in_channels, reduction, use_cbam),
            ResidualAttentionBlock(in_channels, reduction, use_cbam),
        )
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.refine = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.attention = CBAM(out_channels, reduction) if use_cbam else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Refine a map (B, C, H, W) to (B, R, 2H, 2W)."""
        refined: Tensor = self.attention(self.refine(self.upsample(self.blocks(features))))
        return refined


FUSION_STRIDE = 8
"""Pixels per cell of the fused map: 28 x 28 cells at 224 pixels, the size of C3 and P3."""


class ConvBranch(nn.Module):
    """The CNN branch: P2-P5 of a feature pyramid, or the projected last map.

    Attributes:
        num_maps: Number of maps that ``forward`` returns.
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
        """Build the CNN and its neck; see :class:`MsSSL` for the arguments."""
        super().__init__()
        levels = (-4, -3, -2, -1) if use_fpn else (-1,)
        options = {"features_only": True, "out_indices": levels, **options}
        self.backbone, self._size = build(name, image_size, pretrained=pretrained, **options)
        self._name, self._options = name, options
        self._channels_last = is_channels_last(self.backbone)
        widths: list[int] = self.backbone.feature_info.channels()
        self.num_maps = len(widths)
        self.any_size = self._size.dynamic
        self._use_fpn = use_fpn
        self.neck: nn.Module = (
            FeaturePyramid(widths, channels) if use_fpn else nn.Conv2d(widths[-1], channels, kernel_size=1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute ``num_maps`` maps (B, channels, H_i, W_i) of images (B, 3, H, W), the finest first."""
        padded = self._size.pad(images)
        maps: list[Tensor] = self.backbone(padded)
        if self._channels_last:
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        maps = [crop_padding(level, images, padded) for level in maps]
        pyramid: list[Tensor] = self.neck(maps) if self._use_fpn else [self.neck(maps[-1])]
        return pyramid

    def backbone_depths(self) -> dict[str, int]:
        """Return the depth of each of the CNN's parameters below its last map."""
        return extractor_depths(self.backbone, self._name, self._options)

    def maps_to_explain(self, side: int) -> dict[str, ExplainableLayer]:
        """Return the levels of the CNN (c2-c5) and of the pyramid (p2-p5), or the projected last map (p5)."""
        own = cnn_levels(self.backbone, self._size.padded(side))
        smooth = self.neck.smooth if isinstance(self.neck, FeaturePyramid) else [self.neck]
        names = [f"p{level}" for level in range(6 - self.num_maps, 6)]
        return {**own, **{n: MapLayer(m, "NCHW", side) for n, m in zip(names, smooth, strict=True)}}


class TransformerBranch(nn.Module):
    """The Transformer branch: its tokens as a map at the fusion's resolution, and its global vector.

    Attributes:
        num_features: Length of the global vector.
    """

    backbone: Any  # timm's Transformers share no type

    def __init__(
        self, name: str, image_size: int, channels: int, pretrained: bool, options: dict[str, Any]
    ) -> None:
        """Build the Transformer and the transposed convolution; see :class:`MsSSL` for the arguments.

        Raises:
            EncoderError: If the model cannot return its tokens as a map.
        """
        super().__init__()
        self.backbone, self._size = build(name, image_size, pretrained=pretrained, **options)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise EncoderError(
                f"{name} cannot return its tokens as a map, which MsSSL needs; choose another ViT"
            )
        last = self.backbone.feature_info[-1]
        self.num_features = num_features(self.backbone)
        self.any_size = self._size.dynamic
        # Patches of 16 pixels need a factor of 2; patches of 8 none, patches of 32 a factor of 4.
        factor = max(1, round(last["reduction"] / FUSION_STRIDE))
        self.upsample = nn.ConvTranspose2d(last["num_chs"], channels, kernel_size=factor, stride=factor)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute map and vector of images (B, 3, H, W).

        Returns:
            (B, channels, h, w) with h and w close to H / 8 and W / 8; (B, num_features), the class token, or
            the mean of the patch tokens of a model without one.
        """
        padded = self._size.pad(images)
        tokens, maps = self.backbone.forward_intermediates(padded, indices=1, norm=True)
        vector: Tensor = self.backbone.forward_head(tokens, pre_logits=True)
        return crop_padding(self.upsample(maps[-1]), images, padded), vector

    def maps_to_explain(self, side: int) -> dict[str, ExplainableLayer]:
        """Return the map that enters the fusion, and the explainable layers of the Transformer."""
        covers = self._size.padded(side)
        return {"vit": MapLayer(self.upsample, "NCHW", covers), **transformer_layers(self.backbone, covers)}


class MsSSL(Encoder):
    """Multi-scale encoder of a CNN, a Vision Transformer, a feature pyramid and a Deep Learner.

    At 224 pixels with ResNet-50 and ViT-S/16: P2-P5 and the ViT's map are resized to 256 x 28 x 28,
    concatenated, fused by a 1x1 convolution to 256 x 28 x 28, refined to 128 x 56 x 56, pooled to 128 and
    concatenated with the class token of 384.
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
        """Build the encoder; every ``use_...`` switch is an ablation.

        Args:
            cnn: timm name of the CNN.
            vit: timm name of the Vision Transformer.
            image_size: Side of the square images in pixels.
            channels: Channels of the pyramid, of the ViT's map and of the fused map.
            refined_channels: Channels of the refined map.
            pretrained: Load the published weights of both backbones, except for one whose options name a
                local file.
            use_vit: False omits the Transformer, its map and its class token.
            use_fpn: False uses the CNN's last map alone.
            use_deep_learner: False pools the fused map itself.
            use_cbam: False omits the attention of the Deep Learner.
            reduction: Reduction of CBAM's channel attention.
            cnn_options: Options of timm, and ``weights``, a local file; see ``TimmEncoder``.
            vit_options: The same for the Transformer.

        Raises:
            EncoderError: If timm does not know a name or an option, or the weights are missing or do not fit.
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
            # List all files at once, not one per attempt.
            needed = {f"+encoder.{part}_options.weights": names[part] for part in published}
            raise EncoderError(f"{error.reason}; {download_advice(needed)}") from error
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
        """Encode a batch: the pooled refined map, followed by the vector of the Transformer."""
        refined, vectors = self._encode(images)
        return torch.cat([refined.mean(dim=(2, 3)), *vectors], dim=1)

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the refined map, one cell per 4 x 4 pixels; see :meth:`Encoder.feature_map`.

        Without the Deep Learner it is the fused map, one cell per 8 x 8 pixels.
        """
        return self._encode(images)[0]

    def layer_depths(self) -> dict[str, int]:
        """Return 1 for fusion and Deep Learner, and depths below these for each backbone separately.

        The pyramid and the upsampling of the Transformer's tokens count as fusion.
        """
        below = {f"conv_branch.backbone.{name}": d for name, d in self.conv_branch.backbone_depths().items()}
        if self.vit_branch is not None:
            depths = backbone_depths(self.vit_branch.backbone)
            below |= {f"vit_branch.backbone.{name}": depth for name, depth in depths.items()}
        return {name: 1 + below.get(name, 0) for name, _ in self.named_parameters()}

    def maps_to_explain(self, side: int) -> Mapping[str, ExplainableLayer]:
        """Return the refined map, the fused one, and those of the branches."""
        refined = {} if isinstance(self.deep_learner, nn.Identity) else {"refined": self.deep_learner}
        own = {name: MapLayer(layer, "NCHW", side) for name, layer in {**refined, "fused": self.fuse}.items()}
        vit = {} if self.vit_branch is None else self.vit_branch.maps_to_explain(side)
        return put_first({**own, **self.conv_branch.maps_to_explain(side), **vit}, DEFAULT_LEVEL)

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the refined map (B, C, h, w), and a list of the Transformer's vector (B, D), if any."""
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
