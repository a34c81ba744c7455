"""Tiny encoders, pretexts and views, and the checks that their tests share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from drgrade.data.datamodules import normalise
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.msssl import MsSSL
from drgrade.pretext.base import Pretext
from drgrade.pretext.colorization import Colorization
from drgrade.pretext.combination import Combination
from drgrade.pretext.cpc import CPC
from drgrade.pretext.dino import DINO
from drgrade.pretext.exemplar import Exemplar
from drgrade.pretext.inpainting import Inpainting
from drgrade.pretext.jigsaw import Jigsaw
from drgrade.pretext.mae import MAE
from drgrade.pretext.moco_v3 import MoCoV3
from drgrade.pretext.patches import Patches
from drgrade.pretext.relative_patch import RelativePatch
from drgrade.pretext.rotation import Rotation
from drgrade.pretext.saliency import Saliency
from drgrade.pretext.simclr import SimCLR

SIDE = 64


def cnn(side: int = SIDE) -> Encoder:
    """A DenseNet of 8 features, one map cell per 32 pixels."""
    return TimmEncoder("densenet121", side, growth_rate=4, block_config=(1, 1, 1, 1))


def vit(side: int = SIDE) -> Encoder:
    """A Vision Transformer of 64 features with patches of 16 pixels."""
    return TimmEncoder("test_vit", side)


def msssl(side: int = SIDE) -> Encoder:
    """A two-branch encoder of 72 features, one map cell per 4 pixels.

    Every parameter gets a gradient from the first step: no block is initialised as the identity, and no
    attention consists of one inactive ReLU.
    """
    learning = {"zero_init_last": False}
    return MsSSL(
        "test_resnet", "test_vit", side, channels=16, refined_channels=8, reduction=1, cnn_options=learning
    )


def one_size(side: int = SIDE) -> Encoder:
    """A Transformer that accepts images of one size only."""
    return TimmEncoder("test_vit", side, dynamic_img_size=False)


ENCODERS = {"cnn": cnn, "vit": vit, "msssl": msssl}

DINO_SIZES = {"output_dim": 16, "hidden": 16, "bottleneck": 8}


def rotation_and_simclr(encoder: Encoder, side: int) -> Combination:
    parts = {"rotation": PRETEXTS["rotation"], "simclr": PRETEXTS["simclr"]}
    settings = {
        name: {"head": lambda encoder, make=make: make(encoder, side), "weight": 1.0}
        for name, make in parts.items()
    }
    return Combination(encoder, settings)


PRETEXTS: dict[str, Callable[[Encoder, int], Pretext]] = {
    "rotation": lambda encoder, side: Rotation(encoder, (16,)),
    "relative_patch": lambda encoder, side: RelativePatch(
        encoder, Patches(side, colour_drop=0.3), 4, hidden=(16,)
    ),
    "jigsaw": lambda encoder, side: Jigsaw(encoder, Patches(side), permutations=10, hidden=(16,)),
    "cpc": lambda encoder, side: CPC(encoder, Patches(side, 5, -0.4), code=16),
    "simclr": lambda encoder, side: SimCLR(encoder),
    "exemplar": lambda encoder, side: Exemplar(encoder, [16], margin=4, batch_norm=True),
    "moco_v3": lambda encoder, side: MoCoV3(encoder, hidden=16, dim=8),
    "dino": lambda encoder, side: DINO(encoder, side, 2, max(32, side // 2), **DINO_SIZES),
    "colorization": lambda encoder, side: Colorization(encoder, side, width=16),
    "inpainting": lambda encoder, side: Inpainting(encoder, side, width=16),
    "saliency": lambda encoder, side: Saliency(encoder, side, width=16),
    "mae": lambda encoder, side: MAE(encoder),
    "combination": rotation_and_simclr,
}
"""Every pretext with small heads, for an encoder and the side of the views."""


def views(count: int = 1, batch: int = 4, side: int = SIDE, seed: int = 0) -> list[Tensor]:
    """Return normalised noise: ``count`` views of ``batch`` photographs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, side, side, generator=generator) for _ in range(count)]


def pictures(batch: int = 4, side: int = SIDE, seed: int = 0) -> Tensor:
    """Return normalised smooth images, each with a bright reddish disc on a background of its own colour."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    centres = torch.rand(batch, 2, 1, 1, generator=generator) - 0.5
    disc = torch.sigmoid(8 - 20 * ((x - centres[:, :1]) ** 2 + (y - centres[:, 1:]) ** 2).sqrt() * 2)
    ground = torch.rand(batch, 3, 1, 1, generator=generator) * 60 + 40
    bright = ground + disc * torch.tensor([120.0, 70.0, 10.0]).view(3, 1, 1)
    return normalise((bright + 10 * x).round().clamp(0, 255).to(torch.uint8))


def views_for(name: str, batch: int = 4, side: int = SIDE, seed: int = 0) -> list[Tensor]:
    """Return views that a pretext of :data:`PRETEXTS` accepts."""
    if name in ("colorization", "inpainting", "saliency"):
        return [pictures(batch, side, seed)]
    if name == "dino":
        return views(2, batch, side, seed) + views(2, batch, max(32, side // 2), seed + 1)
    return views({"simclr": 2, "exemplar": 2, "moco_v3": 2, "combination": 3}.get(name, 1), batch, side, seed)


class Means(Encoder):
    """Encoder with a linear layer on the mean of each channel; stores the images it receives."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.layer(images.mean(dim=(2, 3)))


def without_gradient(pretext: Pretext, encoder: Encoder, seen: Sequence[Tensor]) -> list[str]:
    """Return names of the trainable parameters that get no gradient from one batch."""
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
    """Return the losses while encoder and pretext overfit one batch."""
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
