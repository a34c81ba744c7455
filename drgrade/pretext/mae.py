"""Masked autoencoding (He et al., CVPR 2022): what stands in the patches that are left out?"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import get_at_index, normalize_mean_var, patchify, repeat_token, set_at_index
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.pretext.base import Pretext, refuse

_HEAD_WIDTH = 32
"""Channels of one attention head of the published decoder: 512 / 16."""

_SHARE_OF_DEPTH = 3
"""The published decoder has 8 blocks for the 24 of ViT-L."""

_NORMALISED = ("colours", "patch", "nothing")


class MAE(Pretext):
    """Reconstruct the masked patches of a view from the others.

    Most patches are left out before they enter the Vision Transformer, which sees the rest alone. A decoder
    gets its tokens and for every patch left out one and the same learned token, both with their positions,
    and predicts pixels. The loss is the squared error on masked patches, normalised so that what counts is
    structure and not brightness.

    The paper normalises each patch to zero mean and unit variance over pixels and colours together. A retina
    is orange all over: of such patches of IDRiD 98 % of the variance is the distance between its red and its
    blue, and one constant patch explains it. So each colour of each patch is normalised for itself.
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

        The published one, 512 wide and 8 deep with 16 heads, stands beside ViT-L, 1024 wide and 24 deep: half
        as wide and a third as deep, a twelfth of the encoder's work for each token. So is the decoder that is
        built where nothing else is asked for.

        Args:
            encoder: What is to be trained: a plain Vision Transformer of timm.
            mask_ratio: Share of the patches that is left out, in (0, 1); rounded to whole patches.
            decoder_width: Channels of the decoder, a multiple of 4; None for half of the encoder's.
            decoder_depth: Blocks of the decoder; None for a third of the encoder's, one at least.
            decoder_heads: Attention heads of the decoder; None for about one for every 32 channels.
            normalise: What is brought to zero mean and unit variance before it is predicted: ``colours``,
                each colour of each patch; ``patch``, each patch, as published; ``nothing``.

        Raises:
            EncoderError: If the encoder cannot leave out patches.
            ConfigError: If a value is out of range.
        """
        super().__init__()
        model = _plain_transformer(encoder)
        self.patch: int = model.patch_embed.patch_size[0]
        self.side: int = model.patch_embed.grid_size[0] * self.patch
        self.patches: int = model.patch_embed.num_patches
        self.masked = _masked_patches(mask_ratio, self.patches, self.side, self.patch)
        self.encoder_inputs = 1 - self.masked / self.patches
        if normalise not in _NORMALISED:
            raise ConfigError(f"pretext.head.normalise={normalise} is none of {', '.join(_NORMALISED)}")
        self.normalise = normalise

        width = model.embed_dim // 8 * 4 if decoder_width is None else decoder_width
        depth = max(1, len(model.blocks) // _SHARE_OF_DEPTH) if decoder_depth is None else decoder_depth
        heads = _heads(width) if decoder_heads is None else decoder_heads
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
        """See :class:`Pretext`.

        ``explained`` is the share of the variance of the masked patches that the prediction explains, each
        colour of each patch about its own mean: 0 for a prediction of these means, 1 for one without error.
        """
        (images,) = views
        self._check_size(images)
        keep, left_out = self._draw(len(images), images.device)
        predicted = self.reconstruct(encoder, images, keep, left_out)
        targets = get_at_index(self.targets(images), left_out)
        loss = (predicted - targets).square().mean()
        colours = _by_colour(targets)
        variance = (colours - colours.mean(dim=2, keepdim=True)).square().mean()
        return loss, {"explained": 1 - loss.detach() / variance.clamp_min(1e-6)}

    def reconstruct(self, encoder: Encoder, images: Tensor, keep: Tensor, left_out: Tensor) -> Tensor:
        """Predict what was left out.

        Args:
            encoder: The encoder.
            images: (B, 3, S, S), normalised.
            keep: (B, K) int64, the patches that the encoder sees, row by row from 0.
            left_out: (B, M) int64, all others.

        Returns:
            (B, M, 3 P²) pixels of the patches left out, in the order of ``left_out``: rows, columns, colours.
        """
        tokens = self.embed(visible_tokens(encoder, images, keep))  # (B, prefix + K, width)
        whole = repeat_token(self.decoder.mask_token, (len(images), self.decoder.sequence_length))
        places = with_prefix(keep, self.decoder.num_prefix_tokens)
        whole = set_at_index(whole.to(tokens.dtype), places, tokens)
        decoded = self.decoder(whole)  # (B, prefix + patches, width)
        masked: Tensor = self.predict(get_at_index(decoded, left_out + self.decoder.num_prefix_tokens))
        return masked

    def targets(self, images: Tensor) -> Tensor:
        """What is to be predicted of all patches.

        Args:
            images: (B, 3, S, S), normalised.

        Returns:
            (B, N, 3 P²), normalised as :attr:`normalise` says.
        """
        patches: Tensor = patchify(images, self.patch)  # colours change fastest
        if self.normalise == "nothing":
            return patches
        if self.normalise == "patch":
            return cast(Tensor, normalize_mean_var(patches))
        return cast(Tensor, normalize_mean_var(_by_colour(patches), dim=2)).flatten(2)

    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches to keep (B, K) and to leave out (B, M), drawn for each photograph for itself.

        lightly's own ``random_token_mask`` takes no generator, and spares one token from masking, where a
        Transformer may have registers beside its class token.
        """
        noise = torch.rand(batch, self.patches, generator=self.generator(device), device=device)
        order = noise.argsort(dim=1)
        return order[:, self.masked :], order[:, : self.masked]

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[-2:]) != (self.side, self.side):
            height, width = images.shape[-2:]
            raise ConfigError(
                f"pretext=mae: views of {height} x {width} pixels do not consist of the patches of "
                f"{self.patch} pixels that the encoder was built for; set pretext.views.size={self.side}"
            )


def visible_tokens(encoder: Encoder, images: Tensor, keep: Tensor) -> Tensor:
    """What a Vision Transformer makes of some patches of each image, as if there were no others.

    Args:
        encoder: A plain Vision Transformer of timm, as :class:`MAE` takes it.
        images: (B, 3, S, S), normalised; S a multiple of the patches' side.
        keep: (B, K) int64, patches, row by row from 0.

    Returns:
        (B, prefix + K, D): class token and registers, where there are any, then the patches in the order of
        ``keep``; normalised by what normalises the encoder's features.
    """
    model: Any = cast(TimmEncoder, encoder).model
    # A wrapper for this one call: kept, it would make the encoder's parameters the pretext's, too. Its own
    # initialisation would overwrite the encoder's weights.
    wrapper = MaskedVisionTransformerTIMM(
        model, weight_initialization="skip", pos_embed_initialization="skip"
    )
    tokens = wrapper.encode(images, idx_keep=with_prefix(keep, model.num_prefix_tokens))
    normalised: Tensor = model.fc_norm(
        tokens
    )  # does something in models that normalise what they have pooled
    return normalised


def with_prefix(patches: Tensor, prefix: int) -> Tensor:
    """Places of patches in a sequence, after those of the tokens before them.

    Args:
        patches: (B, K) int64, from 0.
        prefix: Tokens before the patches: class token, registers.

    Returns:
        (B, prefix + K) int64.
    """
    before = torch.arange(prefix, device=patches.device).expand(len(patches), prefix)
    return torch.cat([before, patches + prefix], dim=1)


def _by_colour(patches: Tensor) -> Tensor:
    """(B, N, 3 P²) as (B, N, P², 3)."""
    return patches.reshape(*patches.shape[:2], -1, 3)


def _plain_transformer(encoder: Encoder) -> Any:
    """The Vision Transformer inside an encoder; refuses one that cannot leave out patches."""
    instead = "use encoder=vit or encoder=vit_small, or another pretext"
    model: Any = encoder.model if isinstance(encoder, TimmEncoder) else None
    plain = type(model) is VisionTransformer  # not a subclass: those treat their tokens otherwise
    if not plain or type(model.patch_embed) is not PatchEmbed:
        refuse(
            "mae",
            encoder,
            "it is no plain Vision Transformer, and nothing else can leave out what is masked (a CNN, a "
            "hybrid, or attention in windows needs the whole grid of pixels)",
            instead,
        )
    if model.pos_embed is None:
        refuse("mae", encoder, "its patches have no learned positions of their own", instead)
    if model.attn_pool is not None:
        refuse(
            "mae",
            encoder,
            "its attention pooling takes no part in the task and would stay untrained",
            instead,
        )
    return model


def _heads(width: int) -> int:
    """About one head for every 32 channels: as many as divide them."""
    return next((heads for heads in range(width // _HEAD_WIDTH, 1, -1) if width % heads == 0), 1)


def _masked_patches(ratio: float, patches: int, side: int, patch: int) -> int:
    """How many patches are left out."""
    if not 0 < ratio < 1:
        raise ConfigError(f"pretext.head.mask_ratio={ratio} is not in (0, 1)")
    masked = round(ratio * patches)
    if not 0 < masked < patches:
        raise ConfigError(
            f"pretext.head.mask_ratio={ratio} of {patches} patches leaves {patches - masked} to be seen and "
            f"{masked} to be predicted ({side} pixels, patches of {patch}); use larger images"
        )
    return masked
