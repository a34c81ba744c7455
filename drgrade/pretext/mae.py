"""Masked autoencoding (He et al., CVPR 2022): reconstruct the masked patches of a view."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import get_at_index, normalize_mean_var, patchify, repeat_token, set_at_index
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.pretext.base import HEAD, Pretext, reject_encoder

_HEAD_WIDTH = 32
"""Channels per attention head of the published decoder: 512 / 16."""

_DEPTH_RATIO = 3
"""The published decoder has 8 blocks for the 24 of ViT-L."""

_NORMALISATIONS = ("colours", "patch", "nothing")


class MAE(Pretext):
    """Reconstruct the masked patches of a view from the visible ones.

    Masked patches are removed before the Vision Transformer. A decoder receives its tokens, and one learned
    token for every masked patch, with their positions, and predicts pixels. The loss is the mean squared
    error on the masked patches after normalisation.

    The paper normalises each patch to zero mean and unit variance over pixels and channels together. On
    fundus photographs that leaves a trivial task: 98 % of the variance of such patches of IDRiD is the
    difference between red and blue, which is nearly the same in all of them. Here each channel of each patch
    is normalised separately.
    """

    scores = ("explained",)

    def __init__(
        self,
        encoder: Encoder,
        mask_ratio: float = 0.75,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        normalise: str = "colours",
    ) -> None:
        """Build the decoder.

        The published decoder (512 wide, 8 deep, 16 heads) is half as wide and a third as deep as ViT-L. The
        default sizes keep these proportions.

        Args:
            encoder: A plain Vision Transformer of timm.
            mask_ratio: Share of the masked patches, in (0, 1); rounded to whole patches.
            decoder_width: Channels of the decoder, a multiple of 4; None for half of the encoder's.
            decoder_depth: Blocks of the decoder; None for a third of the encoder's, at least 1.
            decoder_heads: Attention heads of the decoder; None for about one per 32 channels.
            normalise: Unit of normalisation of the targets: ``colours`` (each channel of each patch),
                ``patch`` (each patch, as published) or ``nothing``.
        """
        super().__init__()
        model = _plain_transformer(encoder)
        self.patch: int = model.patch_embed.patch_size[0]
        self.side: int = model.patch_embed.grid_size[0] * self.patch
        self.patches: int = model.patch_embed.num_patches
        self.masked = self._count_masked(mask_ratio)
        self.encoder_inputs = 1 - self.masked / self.patches
        if normalise not in _NORMALISATIONS:
            raise ConfigError(f"{HEAD}normalise={normalise} is not one of {', '.join(_NORMALISATIONS)}")
        self.normalise = normalise

        width = model.embed_dim // 8 * 4 if decoder_width is None else decoder_width
        depth = max(1, len(model.blocks) // _DEPTH_RATIO) if decoder_depth is None else decoder_depth
        heads = _default_heads(width) if decoder_heads is None else decoder_heads
        if width < 4 or width % 4 or depth < 1 or heads < 1 or width % heads:
            raise ConfigError(
                f"pretext.head: decoder_width={width} is not a multiple of 4 and of decoder_heads={heads}, "
                f"or decoder_depth={depth} is not at least 1"
            )
        self.embed = nn.Linear(model.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            self.patches, width, depth, heads, num_prefix_tokens=model.num_prefix_tokens
        )
        self.predict = nn.Linear(width, 3 * self.patch**2)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss; see :class:`Pretext`.

        ``explained`` is the explained share of the variance of the masked patches, each channel of each patch
        about its own mean: 0 for predicting these means, 1 for a perfect prediction.
        """
        (images,) = views
        self._check_size(images)
        visible, masked = self.draw_mask(len(images), images.device)
        predicted = self.reconstruct(encoder, images, visible, masked)
        targets = get_at_index(self.targets(images), masked)
        loss = (predicted - targets).square().mean()
        colours = _by_channel(targets)
        variance = (colours - colours.mean(dim=2, keepdim=True)).square().mean()
        return loss, {"explained": 1 - loss.detach() / variance.clamp_min(1e-6)}

    def reconstruct(self, encoder: Encoder, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches (B, M) of images (B, 3, S, S) from the visible ones (B, K).

        Returns:
            (B, M, 3 P²) pixels of the masked patches in their order: rows, columns, channels.
        """
        tokens = self.embed(visible_tokens(encoder, images, visible))  # (B, prefix + K, width)
        sequence = repeat_token(self.decoder.mask_token, (len(images), self.decoder.sequence_length))
        positions = with_prefix(visible, self.decoder.num_prefix_tokens)
        sequence = set_at_index(sequence.to(tokens.dtype), positions, tokens)
        decoded = self.decoder(sequence)  # (B, prefix + patches, width)
        predicted: Tensor = self.predict(get_at_index(decoded, masked + self.decoder.num_prefix_tokens))
        return predicted

    def targets(self, images: Tensor) -> Tensor:
        """Compute the targets of all N patches: (B, 3, S, S) normalised images to (B, N, 3 P²)."""
        patches: Tensor = patchify(images, self.patch)  # channels change fastest
        if self.normalise == "nothing":
            return patches
        if self.normalise == "patch":
            return cast(Tensor, normalize_mean_var(patches))
        return cast(Tensor, normalize_mean_var(_by_channel(patches), dim=2)).flatten(2)

    def draw_mask(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw visible (B, K) and masked (B, M) patches for each photograph.

        lightly's ``random_token_mask`` accepts no generator, and never masks the first token, although a
        Transformer may have registers next to its class token.
        """
        noise = torch.rand(batch, self.patches, generator=self.generator(device), device=device)
        order = noise.argsort(dim=1)
        return order[:, self.masked :], order[:, : self.masked]

    def _count_masked(self, ratio: float) -> int:
        check_range("(0, 1)", HEAD, mask_ratio=ratio)
        masked = round(ratio * self.patches)
        if not 0 < masked < self.patches:
            raise ConfigError(
                f"{HEAD}mask_ratio={ratio} of {self.patches} patches leaves {self.patches - masked} visible "
                f"and {masked} masked ({self.side} pixels, patches of {self.patch}); use larger images"
            )
        return masked

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[-2:]) != (self.side, self.side):
            height, width = images.shape[-2:]
            raise ConfigError(
                f"pretext=mae: views of {height} x {width} pixels do not consist of the patches of "
                f"{self.patch} pixels that the encoder was built for; set pretext.views.size={self.side}"
            )


def visible_tokens(encoder: Encoder, images: Tensor, visible: Tensor) -> Tensor:
    """Encode some patches of images (B, 3, S, S) with a Vision Transformer as if the others did not exist.

    Returns:
        (B, prefix + K, D): class token and registers, if any, then the patches in the order of ``visible``
        (B, K), after the final normalisation of the encoder.
    """
    model: Any = cast(TimmEncoder, encoder).model
    # A wrapper for this call only: if kept, the encoder's parameters would become the pretext's. By default
    # it would overwrite the encoder's weights.
    wrapper = MaskedVisionTransformerTIMM(
        model, weight_initialization="skip", pos_embed_initialization="skip"
    )
    tokens = wrapper.encode(images, idx_keep=with_prefix(visible, model.num_prefix_tokens))
    normalised: Tensor = model.fc_norm(tokens)  # the identity unless the model pools before it normalises
    return normalised


def with_prefix(patches: Tensor, prefix: int) -> Tensor:
    """Return positions in the token sequence, those of the prefix tokens first: (B, prefix + K) of (B, K)."""
    before = torch.arange(prefix, device=patches.device).expand(len(patches), prefix)
    return torch.cat([before, patches + prefix], dim=1)


def _by_channel(patches: Tensor) -> Tensor:
    """Reshape (B, N, 3 P²) to (B, N, P², 3)."""
    return patches.reshape(*patches.shape[:2], -1, 3)


def _plain_transformer(encoder: Encoder) -> Any:
    """Return the Vision Transformer inside an encoder; reject any that cannot omit patches."""
    model: Any = encoder.model if isinstance(encoder, TimmEncoder) else None
    plain = type(model) is VisionTransformer  # not a subclass, which may treat its tokens differently
    if not plain or type(model.patch_embed) is not PatchEmbed:
        reason = (
            "it is not a plain Vision Transformer, and no other encoder can omit masked patches (a CNN, a "
            "hybrid or windowed attention needs the whole grid of pixels)"
        )
    elif model.pos_embed is None:
        reason = "its patches have no learned position embeddings"
    elif model.attn_pool is not None:
        reason = "its attention pooling would stay untrained"
    else:
        return model
    return reject_encoder("mae", encoder, reason, "use encoder=vit or encoder=vit_small, or another pretext")


def _default_heads(width: int) -> int:
    """Return about one head per 32 channels, as many as divide the width."""
    return next((heads for heads in range(width // _HEAD_WIDTH, 1, -1) if width % heads == 0), 1)
