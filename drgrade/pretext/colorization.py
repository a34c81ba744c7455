"""Colorization: which colour has each place of a photograph in black and white? Zhang et al., ECCV 2016."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from drgrade.data.normalisation import MEAN, STD
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.decoder import Decoder, exact
from drgrade.pretext.lab import cell_means, imagenet, pixels, rgb_to_lab

_REACH = 110.0
"""No colour of sRGB has an a or b beyond."""

_CANDIDATES = 48
"""Bins near a cell among which the nearest ones of every point of the cell are."""


def gamut_bins(grid: float) -> Tensor:
    """Bins of a square grid in ab that some colour of 8 bits falls into.

    Args:
        grid: Distance of two bins, in units of Lab.

    Returns:
        (Q, 2) float32, their centres: multiples of ``grid``, a first.
    """
    levels = torch.linspace(0, 1, 256, dtype=torch.float64)
    one, other = (each.flatten() for each in torch.meshgrid(levels, levels, indexing="ij"))
    # The faces of the cube of all colours: seen from along L, they hide everything inside.
    faces = []
    for axis in range(3):
        for level in (0.0, 1.0):
            face = [one, other]
            face.insert(axis, torch.full_like(one, level))
            faces.append(torch.stack(face))
    lab = rgb_to_lab(torch.cat(faces, dim=1)[..., None])[..., 0]  # (3, N)
    a, b = (lab[1:] / grid).round().long() + 128
    codes = (a * 256 + b).unique()
    return torch.stack([codes // 256 - 128, codes % 256 - 128], dim=1) * float(grid)


def rebalancing(histogram: Tensor, mix: float) -> Tensor:
    """Weight of each bin: equations 3 and 4 of the paper, w = ((1 - mix) p + mix / Q)^-1, sum of p w = 1.

    Args:
        histogram: (Q,), how often each bin was seen; all zero if nothing was.
        mix: Lambda, share of the uniform distribution, in (0, 1].

    Returns:
        (Q,); all one if nothing was seen.
    """
    bins = len(histogram)
    total = histogram.sum()
    share = torch.where(total > 0, histogram / total.clamp(min=1e-12), 1 / bins)  # p
    weights = 1 / ((1 - mix) * share + mix / bins)
    return weights / (share * weights).sum()


class Bins(torch.nn.Module):
    """Colours as shares of their nearest bins, and back."""

    centres: Tensor  # (Q, 2) a and b
    _near: Tensor  # (cells², candidates), bins near each cell of the square from -110 to 110

    def __init__(self, grid: float, sigma: float, neighbours: int) -> None:
        """Lay out the bins.

        Args:
            grid: Distance of two bins, in units of Lab.
            sigma: Standard deviation of the Gaussian that shares a colour among bins, in units of Lab.
            neighbours: Bins that a colour is shared among.

        Raises:
            ConfigError: If a value is out of range.
        """
        super().__init__()
        if not 2 <= grid <= 50:
            raise ConfigError(f"pretext.head.grid={grid} is not in [2, 50], in units of Lab")
        if not sigma > 0:
            raise ConfigError(f"pretext.head.sigma={sigma} is not positive")
        centres = gamut_bins(grid)
        if not 1 <= neighbours <= min(9, len(centres)):
            raise ConfigError(
                f"pretext.head.neighbours={neighbours} is not in [1, {min(9, len(centres))}]; grid={grid} "
                f"has {len(centres)} bins"
            )
        self.grid, self.sigma, self.neighbours = grid, sigma, neighbours
        self._cells = math.ceil(_REACH / grid)  # to each side of the cell of grey
        line = torch.arange(-self._cells, self._cells + 1) * grid
        cells = torch.cartesian_prod(line, line).to(centres.dtype)
        near = torch.cdist(cells, centres).topk(min(_CANDIDATES, len(centres)), largest=False).indices
        # They follow from the grid: no part of a checkpoint.
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("_near", near, persistent=False)

    def __len__(self) -> int:
        """Number of bins Q."""
        return len(self.centres)

    def encode(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Share colours among their nearest bins: the soft encoding of the paper.

        Args:
            colours: (..., 2) float32, a and b.

        Returns:
            (..., neighbours) int64, the nearest bins, the nearest first; (..., neighbours) their shares,
            Gaussian in the distance, of sum 1.
        """
        centres = self.centres.to(colours.dtype)
        steps = (colours / self.grid).round().long().clamp(-self._cells, self._cells) + self._cells
        near = self._near[steps[..., 0] * (2 * self._cells + 1) + steps[..., 1]]  # (..., candidates)
        squares = (centres[near] - colours[..., None, :]).square().sum(dim=-1)
        nearest = squares.topk(self.neighbours, dim=-1, largest=False)
        shares = torch.softmax(nearest.values / (-2 * self.sigma**2), dim=-1)
        return near.gather(-1, nearest.indices), shares

    def annealed_mean(self, logits: Tensor, temperature: float) -> Tensor:
        """One colour for each place: equation 5 of the paper.

        Args:
            logits: (B, Q, h, w).
            temperature: 1 for the mean of the distribution, towards 0 for its mode.

        Returns:
            (B, h, w, 2), a and b.
        """
        with torch.autocast(logits.device.type, enabled=False):
            shares = torch.softmax(exact(logits) / temperature, dim=1)
            return torch.einsum("bqhw,qc->bhwc", shares, self.centres.to(shares.dtype))


class Colorization(Pretext):
    """Tell the colours of a view from its lightness.

    Rare colours count more. How rare a colour is, is estimated from the views that are trained on, as a
    running mean over batches and processes, and needs no grade.
    """

    scores = ("accuracy", "ab_error", "ab_error_of_mean")

    histogram: Tensor  # (Q,), running mean of the soft encodings, not normalised

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        grid: float = 10.0,
        sigma: float = 5.0,
        neighbours: int = 5,
        mix: float = 0.5,
        momentum: float = 0.99,
        temperature: float = 0.38,
        stride: int = 4,
        width: int = 64,
    ) -> None:
        """Build the decoder and lay out the bins.

        Args:
            encoder: What is to be trained.
            image_size: Side of the views in pixels.
            grid: Distance of two bins of colour, in units of Lab.
            sigma: Standard deviation of the Gaussian that shares a colour among bins, in units of Lab.
            neighbours: Bins that a colour is shared among.
            mix: Share of the uniform distribution in the rebalancing, in (0, 1]; 1 for all bins alike.
            momentum: Of the running distribution of colours, in [0, 1).
            temperature: At which the predicted distribution becomes a colour, for ``ab_error`` only.
            stride: Pixels of the view to a cell of the map that is predicted.
            width: Channels of the decoder.

        Raises:
            EncoderError: If the encoder has no feature map.
            ConfigError: If a value is out of range.
        """
        super().__init__()
        if not 0 < mix <= 1:
            raise ConfigError(f"pretext.head.mix={mix} is not in (0, 1]")
        if not 0 <= momentum < 1:
            raise ConfigError(f"pretext.head.momentum={momentum} is not in [0, 1)")
        if not temperature > 0:
            raise ConfigError(f"pretext.head.temperature={temperature} is not positive")
        self.mix, self.momentum, self.temperature = mix, momentum, temperature
        self.bins = Bins(grid, sigma, neighbours)
        self.decoder = Decoder("colorization", encoder, len(self.bins), image_size, stride, width)
        self.register_buffer("histogram", torch.zeros(len(self.bins)))

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`.

        The loss is the cross-entropy with the soft encoding, each place weighted by its nearest bin's
        weight. ``accuracy``: share of places whose most probable bin is the nearest one; ``ab_error``: mean
        distance of the annealed mean from the colour, in units of Lab; ``ab_error_of_mean``: that of the mean
        colour of the batch, which takes no encoder.
        """
        (images,) = views
        lightness, colours = self.split(images)
        nearest, shares = self.bins.encode(colours)  # (B, h, w, neighbours) each
        if self.training:
            self.count(nearest, shares)
        logits = exact(self.decoder(encoder.feature_map(lightness.to(images.dtype)), images))  # (B, Q, h, w)
        logs = logits.log_softmax(dim=1).gather(1, nearest.movedim(-1, 1))  # (B, neighbours, h, w)
        entropies = -(shares.movedim(-1, 1) * logs).sum(dim=1)
        weights = rebalancing(exact(self.histogram), self.mix)[nearest[..., 0]]  # (B, h, w)
        return (weights * entropies).mean(), self._scores(logits.detach(), colours, nearest[..., 0])

    @torch.no_grad()
    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen of a view, and what is to be told.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, 3, H, W) float32: lightness, L / 100 in three channels, normalised as the encoder expects;
            (B, ceil(H / stride), ceil(W / stride), 2) float32: mean a and b of each cell.
        """
        lab = rgb_to_lab(pixels(images))
        lightness = (lab[:, :1] / 100 - imagenet(MEAN, images)) / imagenet(STD, images)
        return lightness, cell_means(lab[:, 1:], self.decoder.stride).movedim(1, -1)

    @torch.no_grad()
    def count(self, nearest: Tensor, shares: Tensor) -> None:
        """Take a batch into the running distribution of colours; all processes must call.

        The paper smooths the histogram by the Gaussian of the soft encoding. The mean of soft encodings is
        smoothed by it already.

        Args:
            nearest: (..., neighbours) int64, bins.
            shares: (..., neighbours), their shares.
        """
        seen = torch.zeros_like(self.histogram, dtype=torch.float32)
        seen.index_add_(0, nearest.flatten(), shares.flatten().float())
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(seen)
        self.histogram.lerp_((seen / seen.sum()).to(self.histogram.dtype), 1 - self.momentum)

    @torch.no_grad()
    def _scores(self, logits: Tensor, colours: Tensor, nearest: Tensor) -> dict[str, Tensor]:
        predicted = self.bins.annealed_mean(logits, self.temperature)
        mean = colours.mean(dim=(0, 1, 2))
        return {
            "accuracy": (logits.argmax(dim=1) == nearest).float().mean(),
            "ab_error": torch.linalg.vector_norm(predicted - colours, dim=-1).mean(),
            "ab_error_of_mean": torch.linalg.vector_norm(mean - colours, dim=-1).mean(),
        }
