"""Colorization (Zhang et al., ECCV 2016): predict the colours of a view from its lightness."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from drgrade.data.transforms import MEAN, STD
from drgrade.errors import check_range
from drgrade.models.encoder import Encoder, to_float32
from drgrade.pretext.base import HEAD, Pretext
from drgrade.pretext.dense import Decoder, cell_means, per_channel, pixels, rgb_to_lab

_REACH = 110.0
"""Upper bound of |a| and |b| over all sRGB colours."""

_CANDIDATES = 48
"""Number of bins near a cell; they include the nearest bins of every point of the cell."""


class Colorization(Pretext):
    """Predict the colours of a view from its lightness, as a distribution over bins of colour.

    Rare colours have a larger weight. Their frequency is estimated from the training views as a running mean
    over batches and processes.
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
        """Build the decoder and the bins.

        Args:
            encoder: Encoder with a feature map.
            image_size: Side of the views in pixels.
            grid: Distance between bins; see :class:`ColourBins`.
            sigma: Standard deviation of the soft encoding.
            neighbours: Number of bins of the soft encoding.
            mix: Share of the uniform distribution in the rebalancing, in (0, 1]; 1 for equal weights.
            momentum: Momentum of the running colour distribution, in [0, 1).
            temperature: Temperature of the annealed mean, above 0; used for ``ab_error`` only.
            stride: Pixels of the view per cell of the predicted map.
            width: Channels of the decoder.
        """
        super().__init__()
        check_range("(0, 1]", HEAD, mix=mix)
        check_range("[0, 1)", HEAD, momentum=momentum)
        check_range("(0, inf)", HEAD, temperature=temperature)
        self.mix, self.momentum, self.temperature = mix, momentum, temperature
        self.bins = ColourBins(grid, sigma, neighbours)
        self.decoder = Decoder("colorization", encoder, len(self.bins), image_size, stride, width)
        self.register_buffer("histogram", torch.zeros(len(self.bins)))

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy with the soft encoding, weighted by colour; see :class:`Pretext`.

        ``accuracy`` is the share of cells whose most probable bin is the nearest one, ``ab_error`` the mean
        distance of the annealed mean from the true colour in units of Lab, and ``ab_error_of_mean`` that of
        the mean colour of the batch, which needs no encoder.
        """
        (images,) = views
        lightness, colours = self.split(images)
        nearest, shares = self.bins.encode(colours)  # (B, h, w, neighbours) each
        if self.training:
            self.count(nearest, shares)
        decoded = self.decoder(encoder.feature_map(lightness.to(images.dtype)), images)
        logits = to_float32(decoded)  # (B, Q, h, w)
        logs = logits.log_softmax(dim=1).gather(1, nearest.movedim(-1, 1))  # (B, neighbours, h, w)
        entropies = -(shares.movedim(-1, 1) * logs).sum(dim=1)
        weights = class_weights(to_float32(self.histogram), self.mix)[nearest[..., 0]]  # (B, h, w)
        return (weights * entropies).mean(), self._scores(logits.detach(), colours, nearest[..., 0])

    @torch.no_grad()
    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Split normalised views (B, 3, H, W) into the input of the encoder and the colours to predict.

        Returns:
            (B, 3, H, W) float32: lightness L / 100 in three channels, normalised as the encoder expects;
            (B, ceil(H / stride), ceil(W / stride), 2) float32: mean a and b of each cell.
        """
        lab = rgb_to_lab(pixels(images))
        lightness = (lab[:, :1] / 100 - per_channel(MEAN, images)) / per_channel(STD, images)
        return lightness, cell_means(lab[:, 1:], self.decoder.stride).movedim(1, -1)

    @torch.no_grad()
    def count(self, nearest: Tensor, shares: Tensor) -> None:
        """Update the running colour distribution with the soft encodings of a batch, on all processes.

        The paper smooths the histogram by the Gaussian of the soft encoding; the mean of soft encodings
        already is.
        """
        counts = torch.zeros_like(self.histogram, dtype=torch.float32)
        counts.index_add_(0, nearest.flatten(), shares.flatten().float())
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
        self.histogram.lerp_((counts / counts.sum()).to(self.histogram.dtype), 1 - self.momentum)

    @torch.no_grad()
    def _scores(self, logits: Tensor, colours: Tensor, nearest: Tensor) -> dict[str, Tensor]:
        predicted = self.bins.annealed_mean(logits, self.temperature)
        mean = colours.mean(dim=(0, 1, 2))
        return {
            "accuracy": (logits.argmax(dim=1) == nearest).float().mean(),
            "ab_error": torch.linalg.vector_norm(predicted - colours, dim=-1).mean(),
            "ab_error_of_mean": torch.linalg.vector_norm(mean - colours, dim=-1).mean(),
        }


class ColourBins(nn.Module):
    """Bins of the ab plane: soft encoding of colours, and decoding.

    Attributes:
        centres: (Q, 2) a and b of the bins.
    """

    centres: Tensor
    _near: Tensor  # (cells², candidates), bins near each cell of the square from -110 to 110

    def __init__(self, grid: float, sigma: float, neighbours: int) -> None:
        """Compute the bins.

        Args:
            grid: Distance between bins in units of Lab, in [2, 50].
            sigma: Standard deviation in units of Lab of the Gaussian that distributes a colour over bins,
                above 0.
            neighbours: Number of bins that a colour is distributed over, 1 to 9.
        """
        super().__init__()
        check_range("[2, 50]", HEAD, grid=grid)
        check_range("(0, inf)", HEAD, sigma=sigma)
        centres = gamut_bins(grid)
        check_range(f"[1, {min(9, len(centres))}]", HEAD, neighbours=neighbours)
        self.grid, self.sigma, self.neighbours = grid, sigma, neighbours
        self._cells = math.ceil(_REACH / grid)  # on each side of the cell of grey
        line = torch.arange(-self._cells, self._cells + 1) * grid
        cells = torch.cartesian_prod(line, line).to(centres.dtype)
        near = torch.cdist(cells, centres).topk(min(_CANDIDATES, len(centres)), largest=False).indices
        # Not part of a checkpoint: they follow from the grid.
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("_near", near, persistent=False)

    def __len__(self) -> int:
        """Return the number of bins Q."""
        return len(self.centres)

    def encode(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Distribute colours (..., 2), a and b, over their nearest bins (the soft encoding of the paper).

        Returns:
            (..., neighbours) int64, the nearest bins, the nearest first; (..., neighbours) their shares,
            Gaussian in the distance, with sum 1.
        """
        centres = self.centres.to(colours.dtype)
        steps = (colours / self.grid).round().long().clamp(-self._cells, self._cells) + self._cells
        near = self._near[steps[..., 0] * (2 * self._cells + 1) + steps[..., 1]]  # (..., candidates)
        squares = (centres[near] - colours[..., None, :]).square().sum(dim=-1)
        nearest = squares.topk(self.neighbours, dim=-1, largest=False)
        shares = torch.softmax(nearest.values / (-2 * self.sigma**2), dim=-1)
        return near.gather(-1, nearest.indices), shares

    def annealed_mean(self, logits: Tensor, temperature: float) -> Tensor:
        """Compute one colour per cell, (B, h, w, 2), of logits (B, Q, h, w) (equation 5 of the paper)."""
        with torch.autocast(logits.device.type, enabled=False):
            shares = torch.softmax(to_float32(logits) / temperature, dim=1)
            return torch.einsum("bqhw,qc->bhwc", shares, self.centres.to(shares.dtype))


def gamut_bins(grid: float) -> Tensor:
    """Find the bins of a square grid in the ab plane that contain an 8-bit sRGB colour.

    Returns:
        (Q, 2) float32, the centres of the bins: multiples of ``grid``, ordered by a, then b.
    """
    levels = torch.linspace(0, 1, 256, dtype=torch.float64)
    plane = torch.cartesian_prod(levels, levels)
    # The faces of the RGB cube are enough: projected along L, they cover its inside.
    faces = [
        torch.cat([plane[:, :axis], torch.full_like(plane[:, :1], level), plane[:, axis:]], dim=1)
        for axis in range(3)
        for level in (0.0, 1.0)
    ]
    lab = rgb_to_lab(torch.cat(faces).T[..., None])[..., 0]  # (3, N)
    a, b = (lab[1:] / grid).round().long() + 128
    codes = (a * 256 + b).unique()
    return torch.stack([codes // 256 - 128, codes % 256 - 128], dim=1) * float(grid)


def class_weights(histogram: Tensor, mix: float) -> Tensor:
    """Compute the weight of each bin, w = ((1 - mix) p + mix / Q)^-1 with sum of p w = 1 (equations 3 and 4).

    Args:
        histogram: (Q,), frequency of each bin.
        mix: Lambda, share of the uniform distribution, in (0, 1].

    Returns:
        (Q,); all one if nothing was counted.
    """
    bins = len(histogram)
    total = histogram.sum()
    share = torch.where(total > 0, histogram / total.clamp(min=1e-12), 1 / bins)  # p
    weights = 1 / ((1 - mix) * share + mix / bins)
    return weights / (share * weights).sum()
