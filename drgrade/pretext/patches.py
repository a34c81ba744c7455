"""Pieces of a photograph, cut so that only what they show can tell where they come from.

Three pretexts ask where patches of a photograph lie, or which one belongs where. What answers that without
looking at the retina is taken away here: patches that touch can be matched along their edges (so there is a
gap), patches on a fixed raster by where a vessel leaves one and enters the other (so each moves at random),
and light falls off from the middle to the rim, so that brightness, colour and their slope inside a patch tell
its distance and direction from the middle (so each patch is levelled and normalised for itself). Doersch et
al., ICCV 2015, section 3.1; Noroozi and Favaro, ECCV 2016, section 3.2. What is left is measured in
``docs/pretexts``.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder

LEAST_SIDE, SIDE_STEP = 32, 16
"""Least side of a patch as it is encoded, and what it is a multiple of, in pixels: encoders divide by 32, and
Transformers have patches of 16."""

_LEAST_CUT = 4
"""Least side of a patch in the view, in pixels: less shows nothing."""

_FLAT = 1e-4
"""Added to a variance, in units of ImageNet's: half a grey level squared."""


class Patches:
    """Cuts square views into a grid of patches, each moved at random, and normalised for itself.

    Attributes:
        view_size: Side of the views in pixels.
        grid: Patches along each side.
        count: Patches in a view, ``grid`` squared. Patch ``row * grid + column``.
        cut: Side of a patch in the view, in pixels.
        room: Pixels by which a patch may move, down and to the right.
        starts: Upper (or left) edge of each row (or column) of patches that do not move, in pixels.
        side: Side of a patch as it is encoded, in pixels.
    """

    def __init__(
        self,
        view_size: int,
        grid: int = 3,
        gap: float = 0.35,
        jitter: float = 0.15,
        side: int | None = None,
        level: bool = True,
        normalise: bool = True,
        colour_drop: float = 0.0,
        colour_jitter: float = 0.0,
    ) -> None:
        """Lay out the grid, as large as the view allows.

        Args:
            view_size: Side of the views in pixels.
            grid: Patches along each side, at least 2.
            gap: Least distance between neighbours, as a share of a patch's side; negative where they may
                overlap, above -1.
            jitter: Range through which a patch moves in either direction, as a share of its side, 0 to 1.
            side: Side in pixels that patches are brought to, a multiple of 16 and at least 32. None for the
                least one that is no smaller than what is cut.
            level: Subtract from each colour of a patch the plane that fits it best: no side is brighter.
            normalise: Give each colour of a patch mean 0 and standard deviation 1.
            colour_drop: Share of the patches that show only one of the three colours, 0 to 1.
            colour_jitter: Each colour of a patch is multiplied by 1 -+ this and shifted by up to this, 0 to
                1; standard deviations where patches are normalised.

        Raises:
            ConfigError: If a value is out of range, or the patches would be too small.
        """
        _check(grid, gap, side, jitter=jitter, colour_drop=colour_drop, colour_jitter=colour_jitter)
        self.view_size, self.grid, self.count = view_size, grid, grid**2
        self.cut = int(view_size / (grid + (grid - 1) * (gap + jitter) + jitter))
        if self.cut < _LEAST_CUT:
            raise ConfigError(
                f"pretext.head.patches: grid={grid} leaves patches of {self.cut} pixels in views of "
                f"{view_size}; use fewer, smaller gaps, or larger photographs (data.image_size)"
            )
        self.room = max(1, round(jitter * self.cut)) if jitter else 0
        last = view_size - self.cut - self.room
        self.starts = tuple(round(i * last / (grid - 1)) for i in range(grid))
        self.side = side or max(LEAST_SIDE, -(-self.cut // SIDE_STEP) * SIDE_STEP)
        self.level, self.normalise = level, normalise
        self.colour_drop, self.colour_jitter = colour_drop, colour_jitter

    @property
    def share(self) -> float:
        """Pixels of an encoded patch, as a share of a view's."""
        return float((self.side / self.view_size) ** 2)

    def least_gap(self, apart: int = 1) -> int:
        """Least distance in pixels between patches that lie some rows (or columns) apart.

        Args:
            apart: Number of rows, 1 for neighbours.

        Returns:
            Pixels from the lower edge of one to the upper edge of the other; negative if they may overlap.
        """
        steps = (later - start for start, later in zip(self.starts, self.starts[apart:], strict=False))
        return min(steps) - self.cut - self.room

    def __call__(
        self, views: Tensor, generator: torch.Generator | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Cut a batch.

        Args:
            views: (B, C, S, S) with S = :attr:`view_size`.
            generator: Draws where patches lie and what becomes of their colours; None for torch's own.
            cells: (B, M) int64, which patches of each view, in which order; None for all.

        Returns:
            (B, M, C, side, side).

        Raises:
            ConfigError: If the views have another size.
        """
        if views.shape[-2:] != (self.view_size, self.view_size):
            height, width = views.shape[-2:]
            raise ConfigError(
                f"pretext.head.patches.view_size={self.view_size}, but the views are {height} x {width}"
            )
        corners = self.corners(len(views), views.device, generator)  # (B, grid^2, 2)
        if cells is not None:
            corners = corners.gather(1, cells[..., None].expand(-1, -1, 2))
        patches = resized(cut_out(views, corners, self.cut), self.side)
        if self.level:
            patches = levelled(patches)
        if self.normalise:
            patches = normalised(patches)
        return self._coloured(patches, generator)

    def corners(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw where the patches of each view lie.

        Args:
            batch: Number B of views.
            device: Of the result.
            generator: Draws; None for torch's own.

        Returns:
            (B, grid^2, 2) int64, row and column of each patch's upper left pixel.
        """
        starts = torch.tensor(self.starts, device=device)
        fixed = torch.cartesian_prod(starts, starts)  # (grid^2, 2)
        if not self.room:
            return fixed.expand(batch, -1, -1)
        shape = (batch, self.count, 2)
        return fixed + torch.randint(self.room + 1, shape, device=device, generator=generator)

    def _coloured(self, patches: Tensor, generator: torch.Generator | None) -> Tensor:
        """Patches (B, M, C, s, s) with colours dropped and moved, each patch for itself."""
        shape, device = patches.shape[:3], patches.device
        if self.colour_drop:
            kept = torch.randint(shape[2], (*shape[:2], 1), device=device, generator=generator)
            dropped = torch.rand((*shape[:2], 1), device=device, generator=generator) < self.colour_drop
            own = torch.arange(shape[2], device=device).expand(shape)
            source = torch.where(dropped, kept, own)  # (B, M, C), which colour each channel shows
            patches = patches.gather(2, source[..., None, None].expand_as(patches))
        if self.colour_jitter:
            moves = torch.rand((2, *shape, 1, 1), device=device, generator=generator, dtype=patches.dtype)
            factor, shift = (2 * moves - 1) * self.colour_jitter
            patches = patches * (1 + factor) + shift
        return patches


def cut_out(views: Tensor, corners: Tensor, side: int) -> Tensor:
    """Cut squares out of a batch.

    Args:
        views: (B, C, H, W).
        corners: (B, M, 2) int64, row and column of the upper left pixel of each square.
        side: Of the squares, in pixels.

    Returns:
        (B, M, C, side, side).
    """
    along = torch.arange(side, device=views.device)
    rows = corners[..., 0, None] + along  # (B, M, side)
    columns = corners[..., 1, None] + along
    photograph = torch.arange(len(views), device=views.device)[:, None, None, None]
    cut = views[photograph, :, rows[..., :, None], columns[..., None, :]]  # (B, M, side, side, C)
    return cut.permute(0, 1, 4, 2, 3)


def resized(patches: Tensor, side: int) -> Tensor:
    """Bring patches to a size, bilinearly; shrunk ones are smoothed first.

    Args:
        patches: (B, M, C, s, s).
        side: Wanted, in pixels.

    Returns:
        (B, M, C, side, side).
    """
    before = patches.shape[-1]
    if before == side:
        return patches.contiguous()
    flat = functional.interpolate(
        patches.flatten(0, 1), (side, side), mode="bilinear", antialias=before > side
    )
    return flat.view(*patches.shape[:3], side, side)


def levelled(patches: Tensor) -> Tensor:
    """Subtract the plane through zero mean that fits each colour of each patch best (least squares).

    Light that falls off from the middle to the rim is close to a plane within a patch, and its slope points
    to the middle.

    Args:
        patches: (..., s, s), s at least 2.

    Returns:
        (..., s, s) with the same means.
    """
    offset = torch.linspace(-1, 1, patches.shape[-1], device=patches.device, dtype=patches.dtype)
    # No product of matrices: mixed precision would round it.
    down = (patches.mean(dim=-1) * offset).sum(dim=-1) / offset.square().sum()
    across = (patches.mean(dim=-2) * offset).sum(dim=-1) / offset.square().sum()
    plane = down[..., None, None] * offset[:, None] + across[..., None, None] * offset
    return patches - plane


def normalised(patches: Tensor) -> Tensor:
    """Give each colour of each patch mean 0 and standard deviation 1 (less where it is flat).

    Args:
        patches: (..., s, s).

    Returns:
        (..., s, s).
    """
    variance, mean = torch.var_mean(patches, dim=(-2, -1), correction=0, keepdim=True)
    return (patches - mean) * (variance + _FLAT).rsqrt()


def encoded(encoder: Encoder, patches: Tensor) -> Tensor:
    """Encode patches, all of a batch at once.

    Args:
        encoder: Images to features (D).
        patches: (B, M, 3, s, s).

    Returns:
        (B, M, D).
    """
    features: Tensor = encoder(patches.flatten(0, 1))
    return features.view(*patches.shape[:2], -1)


def classifier(features: int, hidden: Sequence[int], dropout: float, classes: int) -> nn.Sequential:
    """Head on joined features of patches: linear layers, ReLU between them.

    Args:
        features: Length of the joined vector.
        hidden: Widths of the hidden layers.
        dropout: Before the last layer.
        classes: Number of logits.

    Raises:
        ConfigError: If a width is not at least 1.
    """
    if hidden and min(hidden) < 1:
        raise ConfigError(f"pretext.head.hidden={list(hidden)} are not widths of layers, each at least 1")
    layers: list[nn.Module] = []
    widths = [features, *hidden]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], classes))


def require_grid(pretext: str, patches: Patches, grid: int) -> None:
    """Refuse a grid that a pretext is not defined on.

    Args:
        pretext: Its name in ``conf/pretext``.
        patches: How it would cut.
        grid: What it needs.

    Raises:
        ConfigError: If it is another.
    """
    if patches.grid != grid:
        raise ConfigError(
            f"pretext.head.patches.grid={patches.grid}: pretext={pretext} needs a grid of {grid} x {grid}"
        )


def _check(grid: int, gap: float, side: int | None, **shares: float) -> None:
    where = "pretext.head.patches"
    if grid < 2:
        raise ConfigError(f"{where}.grid={grid} is not at least 2")
    if gap <= -1:
        raise ConfigError(f"{where}.gap={gap} is not above -1: all patches would lie on each other")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{where}.{name}={share} is not in [0, 1]")
    if side is not None and (side < LEAST_SIDE or side % SIDE_STEP):
        raise ConfigError(
            f"{where}.side={side} is not a multiple of {SIDE_STEP} and at least {LEAST_SIDE}, "
            "which every encoder can take; null chooses one"
        )
