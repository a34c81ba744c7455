"""What the tests of pretexts that predict a map share."""

from collections.abc import Callable

import torch
from encoders import SIDE, cnn, without_gradient
from torch import Tensor

from drgrade.data.normalisation import MEAN, STD
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.colorization import Colorization

LEARNING_RATES = {"cnn": 1e-2, "vit": 2e-3, "msssl": 1e-2}
"""For the encoders of ``encoders.ENCODERS``, to learn some pictures by heart in a few steps."""


def pictures(batch: int = 4, side: int = SIDE, seed: int = 0) -> Tensor:
    """Normalised smooth pictures, each with a bright reddish disc somewhere on a ground of its own colour."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    centres = torch.rand(batch, 2, 1, 1, generator=generator) - 0.5
    disc = torch.sigmoid(8 - 20 * ((x - centres[:, :1]) ** 2 + (y - centres[:, 1:]) ** 2).sqrt() * 2)
    ground = torch.rand(batch, 3, 1, 1, generator=generator) * 60 + 40
    bright = ground + disc * torch.tensor([120.0, 70.0, 10.0]).view(3, 1, 1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return ((bright + 10 * x).round().clamp(0, 255) / 255 - mean) / std


def never_reached(make: Callable[[Encoder], Pretext], encoder_of: Callable[[], Encoder]) -> list[str]:
    """Parameters that get no gradient, whatever the weights.

    timm starts the last normalisation of each residual block at zero, which keeps gradients from what comes
    before it for one step, and ReLUs of very few units may all be off. So the encoders are drawn twice, with
    ones in place of such zeros.
    """
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = encoder_of()
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if name.endswith("weight") and parameter.ndim == 1:
                    parameter.fill_(1)
        found.append(set(without_gradient(make(encoder), encoder, [pictures(8, seed=seed)])))
    return sorted(found[0] & found[1])


def colours_on_a_rank(rank: int, world: int) -> Tensor:
    """The distribution of colours after three batches, of which this process has its share.

    Here, because a new process imports the module of what it runs, and this one is quick to import.
    """
    torch.manual_seed(0)
    encoder = cnn()
    pretext = Colorization(encoder, SIDE, width=16)
    for seed in range(3):
        pretext(encoder, [pictures(4, seed=seed).chunk(world)[rank]])
    return pretext.histogram
