"""Patches of a view, and the base class of the pretexts that predict where patches lie.

Shortcuts are removed: touching patches can be matched along their edges (so there is a gap), patches on a
regular grid by vessels that continue from one to the next (so each is displaced at random), and light falls
off from the middle to the rim, so that brightness, colour and their slope reveal the position of a patch (so
each patch is levelled and normalised separately). See Doersch et al., ICCV 2015, section 3.1; Noroozi and
Favaro, ECCV 2016, section 3.2. Residual shortcuts are measured in ``docs/pretexts``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD, Pretext, require_any_size

MIN_SIDE, SIDE_STEP = 32, 16
"""Smallest side of an encoded patch and its step, in pixels: CNNs divide by 32, Transformers have 16 px
patches."""

_MIN_CUT = 4
"""Smallest side in pixels of a patch in the view."""

_FLAT = 1e-4
"""Added to the variance of a patch, in units of ImageNet's variance: half a grey level squared."""

_PREFIX = f"{HEAD}patches."


class Patches:
    """Cut square views into a grid of patches, each displaced at random and normalised separately.

    Attributes:
        count: Patches per view, ``grid`` squared. Patch number ``row * grid + column``.
        cut: Side of a patch in the view, in pixels.
        room: Largest displacement of a patch down and to the right, in pixels.
        starts: Upper (left) edge of each row (column) of patches without displacement, in pixels.
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
        """Lay out the grid as large as the view allows.

        Args:
            view_size: Side of the views in pixels.
            grid: Patches along each side, at least 2.
            gap: Smallest distance between neighbours relative to the side of a patch; above -1, negative
                values allow overlap.
            jitter: Range of the displacement in each direction relative to the side of a patch, 0 to 1.
            side: Side in pixels that patches are resized to, a multiple of 16 and at least 32. None for the
                smallest one that does not shrink them.
            level: Subtract its least-squares plane from each channel of a patch.
            normalise: Give each channel of a patch mean 0 and standard deviation 1.
            colour_drop: Share of the patches that show only one of the three channels, 0 to 1.
            colour_jitter: Strength of the random scale (1 -+ this) and shift (-+ this) of each channel of a
                patch, 0 to 1; in standard deviations if patches are normalised.

        Raises:
            ConfigError: If a value is out of range, or the patches would be too small.
        """
        check_range("[2, inf)", _PREFIX, grid=grid)
        check_range("(-1, inf)", _PREFIX, gap=gap)
        check_range("[0, 1]", _PREFIX, jitter=jitter, colour_drop=colour_drop, colour_jitter=colour_jitter)
        if side is not None and (side < MIN_SIDE or side % SIDE_STEP):
            raise ConfigError(
                f"{_PREFIX}side={side} is not a multiple of {SIDE_STEP} and at least {MIN_SIDE}, "
                "which every encoder accepts; null chooses one"
            )
        self.view_size, self.grid, self.count = view_size, grid, grid**2
        self.cut = int(view_size / (grid + (grid - 1) * (gap + jitter) + jitter))
        if self.cut < _MIN_CUT:
            raise ConfigError(
                f"{HEAD}patches: grid={grid} leaves patches of {self.cut} pixels in views of "
                f"{view_size}; use fewer patches, smaller gaps or larger photographs (data.image_size)"
            )
        self.room = max(1, round(jitter * self.cut)) if jitter else 0
        last = view_size - self.cut - self.room
        self.starts = tuple(round(i * last / (grid - 1)) for i in range(grid))
        self.side = side or max(MIN_SIDE, -(-self.cut // SIDE_STEP) * SIDE_STEP)
        self.level, self.normalise = level, normalise
        self.colour_drop, self.colour_jitter = colour_drop, colour_jitter

    @property
    def share(self) -> float:
        """Pixels of an encoded patch, relative to those of a view."""
        return float((self.side / self.view_size) ** 2)

    def smallest_gap(self, rows: int = 1) -> int:
        """Return the smallest distance in pixels between patches that are some rows (or columns) apart.

        It is negative if they may overlap.
        """
        steps = (later - start for start, later in zip(self.starts, self.starts[rows:], strict=False))
        return min(steps) - self.cut - self.room

    def __call__(
        self, views: Tensor, generator: torch.Generator | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Cut patches from a batch of views.

        Args:
            views: (B, C, S, S) with S = :attr:`view_size`.
            generator: Random generator for displacements and colours; None for torch's own.
            cells: (B, M) int64, numbers of the patches to cut from each view; None for all in order.

        Returns:
            (B, M, C, side, side).

        Raises:
            ConfigError: If the views have another size.
        """
        if views.shape[-2:] != (self.view_size, self.view_size):
            height, width = views.shape[-2:]
            raise ConfigError(f"{_PREFIX}view_size={self.view_size}, but the views are {height} x {width}")
        corners = self.corners(len(views), views.device, generator)  # (B, grid^2, 2)
        if cells is not None:
            corners = corners.gather(1, cells[..., None].expand(-1, -1, 2))
        patches = resize_patches(cut_patches(views, corners, self.cut), self.side)
        if self.level:
            patches = level_patches(patches)
        if self.normalise:
            patches = normalise_patches(patches)
        return self._augment_colours(patches, generator)

    def corners(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw the row and column of the upper left pixel of each patch, (B, grid^2, 2) int64."""
        starts = torch.tensor(self.starts, device=device)
        fixed = torch.cartesian_prod(starts, starts)  # (grid^2, 2)
        if not self.room:
            return fixed.expand(batch, -1, -1)
        shape = (batch, self.count, 2)
        return fixed + torch.randint(self.room + 1, shape, device=device, generator=generator)

    def _augment_colours(self, patches: Tensor, generator: torch.Generator | None) -> Tensor:
        """Drop and jitter the colours of patches (B, M, C, s, s), each patch separately."""
        shape, device = patches.shape[:3], patches.device
        if self.colour_drop:
            kept = torch.randint(shape[2], (*shape[:2], 1), device=device, generator=generator)
            dropped = torch.rand((*shape[:2], 1), device=device, generator=generator) < self.colour_drop
            own = torch.arange(shape[2], device=device).expand(shape)
            source = torch.where(dropped, kept, own)  # (B, M, C), the channel that each channel shows
            patches = patches.gather(2, source[..., None, None].expand_as(patches))
        if self.colour_jitter:
            noise = torch.rand((2, *shape, 1, 1), device=device, generator=generator, dtype=patches.dtype)
            factor, shift = (2 * noise - 1) * self.colour_jitter
            patches = patches * (1 + factor) + shift
        return patches


class PatchPretext(Pretext):
    """Base of the pretexts whose encoder sees patches instead of whole views."""

    scores: tuple[str, ...] = ("accuracy",)

    def __init__(
        self, name: str, encoder: Encoder, patches: Patches, encoded: int, grid: int | None = None
    ) -> None:
        """Check encoder and grid.

        Args:
            name: Name of the pretext in ``conf/pretext``.
            encoder: Encoder that accepts images of any size.
            patches: Cuts the patches.
            encoded: Number of patches encoded per photograph.
            grid: Required number of patches along each side; None for any.
        """
        super().__init__()
        require_any_size(name, encoder)
        if grid is not None and patches.grid != grid:
            raise ConfigError(f"{_PREFIX}grid={patches.grid}: pretext={name} needs a grid of {grid} x {grid}")
        self.patches = patches
        self.encoder_inputs = encoded * patches.share

    def encode(
        self,
        encoder: Encoder,
        views: Sequence[Tensor],
        generator: torch.Generator | None,
        cells: Tensor | None = None,
    ) -> Tensor:
        """Cut and encode patches (B, M, D) of the only view; see :meth:`Patches.__call__`."""
        (images,) = views
        patches = self.patches(images, generator, cells)
        features: Tensor = encoder(patches.flatten(0, 1))
        return features.view(*patches.shape[:2], -1)


def cut_patches(views: Tensor, corners: Tensor, side: int) -> Tensor:
    """Cut squares (B, M, C, side, side) out of views (B, C, H, W).

    Args:
        views: The views.
        corners: (B, M, 2) int64, row and column of the upper left pixel of each square.
        side: Side of the squares in pixels.
    """
    along = torch.arange(side, device=views.device)
    rows = corners[..., 0, None] + along  # (B, M, side)
    columns = corners[..., 1, None] + along
    photograph = torch.arange(len(views), device=views.device)[:, None, None, None]
    cut = views[photograph, :, rows[..., :, None], columns[..., None, :]]  # (B, M, side, side, C)
    return cut.permute(0, 1, 4, 2, 3)


def resize_patches(patches: Tensor, side: int) -> Tensor:
    """Resize patches (B, M, C, s, s) to a side bilinearly, with antialiasing where they shrink."""
    before = patches.shape[-1]
    if before == side:
        return patches.contiguous()
    flat = functional.interpolate(
        patches.flatten(0, 1), (side, side), mode="bilinear", antialias=before > side
    )
    return flat.view(*patches.shape[:3], side, side)


def level_patches(patches: Tensor) -> Tensor:
    """Subtract from each channel of each patch (..., s, s) its least-squares plane, except for its mean.

    Light that falls off from the middle to the rim is close to a plane within a patch, and its slope points
    to the middle.
    """
    offset = torch.linspace(-1, 1, patches.shape[-1], device=patches.device, dtype=patches.dtype)
    # Not a matrix product, which mixed precision would round.
    down = (patches.mean(dim=-1) * offset).sum(dim=-1) / offset.square().sum()
    across = (patches.mean(dim=-2) * offset).sum(dim=-1) / offset.square().sum()
    plane = down[..., None, None] * offset[:, None] + across[..., None, None] * offset
    return patches - plane


def normalise_patches(patches: Tensor) -> Tensor:
    """Give each channel of each patch (..., s, s) mean 0 and standard deviation 1 (less where it is flat)."""
    variance, mean = torch.var_mean(patches, dim=(-2, -1), correction=0, keepdim=True)
    return (patches - mean) * (variance + _FLAT).rsqrt()
