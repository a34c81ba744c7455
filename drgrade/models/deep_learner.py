"""The "Deep Learner" of MsSSL: refines the fused map with attention and doubles its resolution.

After Almattar et al., Scientific Reports 15:33742, 2025. The abstract names the module only; the layers are
this project's choice (docs/msssl.md).
"""

from torch import Tensor, nn

from drgrade.models.cbam import CBAM


def _attention(channels: int, reduction: int, use_cbam: bool) -> nn.Module:
    return CBAM(channels, reduction) if use_cbam else nn.Identity()


class ResidualAttentionBlock(nn.Module):
    """3x3 conv-BN-ReLU, 3x3 conv-BN, CBAM, and the input added; nothing after the addition."""

    def __init__(self, channels: int, reduction: int = 16, use_cbam: bool = True) -> None:
        """Builds the block.

        Args:
            channels: channels C of the map, in and out.
            reduction: of CBAM's channel attention.
            use_cbam: False leaves the attention out.
        """
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.attention = _attention(channels, reduction, use_cbam)

    def forward(self, features: Tensor) -> Tensor:
        """Refines a map.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        refined: Tensor = self.attention(self.body(features))
        return features + refined


class DeepLearner(nn.Module):
    """Two residual attention blocks, a transposed convolution that doubles the side, conv-BN-ReLU, CBAM."""

    def __init__(
        self, in_channels: int = 256, out_channels: int = 128, reduction: int = 16, use_cbam: bool = True
    ) -> None:
        """Builds the module.

        Args:
            in_channels: channels C of the fused map.
            out_channels: channels R of the refined map.
            reduction: of CBAM's channel attention.
            use_cbam: False leaves every attention out.
        """
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
        self.attention = _attention(out_channels, reduction, use_cbam)

    def forward(self, features: Tensor) -> Tensor:
        """Refines the fused map.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, R, 2H, 2W).
        """
        refined: Tensor = self.attention(self.refine(self.upsample(self.blocks(features))))
        return refined
