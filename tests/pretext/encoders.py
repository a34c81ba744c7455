"""Tiny encoders and checks that the tests of all pretexts share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.msssl import MsSSL
from drgrade.pretext.base import Pretext

SIDE = 64


def cnn(side: int = SIDE) -> Encoder:
    """A DenseNet of 8 features, one map cell per 32 pixels."""
    return TimmEncoder("densenet121", side, growth_rate=4, block_config=(1, 1, 1, 1))


def vit(side: int = SIDE) -> Encoder:
    """A Vision Transformer of 64 features with patches of 16 pixels."""
    return TimmEncoder("test_vit", side)


def msssl(side: int = SIDE) -> Encoder:
    """A two-branch encoder of 72 features, one map cell per 4 pixels.

    All of it learns from the first step: no block begins as the identity, and no attention is one dead ReLU.
    """
    learning = {"zero_init_last": False}
    return MsSSL(
        "test_resnet", "test_vit", side, channels=16, refined_channels=8, reduction=1, cnn_options=learning
    )


def one_size(side: int = SIDE) -> Encoder:
    """A Transformer that takes images of one size only."""
    return TimmEncoder("test_vit", side, dynamic_img_size=False)


ENCODERS = {"cnn": cnn, "vit": vit, "msssl": msssl}


def views(count: int = 1, batch: int = 4, side: int = SIDE, seed: int = 0) -> list[Tensor]:
    """Normalised noise: ``count`` views of ``batch`` photographs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, side, side, generator=generator) for _ in range(count)]


def without_gradient(pretext: Pretext, encoder: Encoder, seen: Sequence[Tensor]) -> list[str]:
    """Names of the parameters that should learn from one batch and get no gradient."""
    loss, _ = pretext(encoder, seen)
    loss.backward()
    return [
        name
        for module in (encoder, pretext)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]


def losses(
    pretext: Pretext, encoder: Encoder, seen: Sequence[Tensor], steps: int = 30, lr: float = 1e-2
) -> list[float]:
    """Losses while encoder and pretext learn one batch by heart."""
    learning = [p for module in (encoder, pretext) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=lr)
    found = []
    for step in range(steps):
        pretext.before_step(encoder, step / steps)
        loss, _ = pretext(encoder, seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
