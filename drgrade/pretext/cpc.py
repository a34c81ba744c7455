"""Contrastive predictive coding (van den Oord et al., 2018; Henaff et al., ICML 2020).

On fundus photographs Taleb et al., NeurIPS 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, require_any_size
from drgrade.pretext.patches import Patches, encoded
from drgrade.pretext.projection import full_precision, of_all_processes


class CPC(Pretext):
    """Predict the code of a patch from the rows of patches above it, and find it among those of others.

    With codes z of the patches and contexts c over the rows down to r, the score of a candidate i for the
    patch k rows below is z_i^T W_k c_rj / sqrt(dimension); the loss is the cross-entropy of the right one
    (InfoNCE), averaged over photographs, rows, columns and k. Candidates are the patches of all rows that can
    be predicted, of the same photograph and of all others of the batch, on all processes.
    """

    scores = ("accuracy", "accuracy_within")

    def __init__(
        self, encoder: Encoder, patches: Patches, skip: int = 1, code: int = 1024, layers: int = 3
    ) -> None:
        """Build projection, context and predictions.

        Args:
            encoder: What is to be trained; it must take images of any size.
            patches: Cuts the grid.
            skip: Rows just below the context that are not predicted: they overlap it, or lie too close.
            code: Length of a patch's code and of a context.
            layers: Of the context network; each sees one row further up.

        Raises:
            ConfigError: If no row is left to predict, or one shares pixels with its context, or a size is not
                positive.
            EncoderError: If the encoder cannot carry the task.
        """
        super().__init__()
        require_any_size("cpc", encoder)
        _check(patches, skip, code=code, layers=layers)
        self.patches, self.skip = patches, skip
        self.encoder_inputs = patches.count * patches.share
        self.project = nn.Linear(encoder.num_features, code)
        self.context = nn.Sequential(*(_RowsAbove(code) for _ in range(layers)))
        steps = range(skip + 1, patches.grid)
        self.predict = nn.ModuleDict({str(k): nn.Linear(code, code, bias=False) for k in steps})

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`.

        Candidates come from all processes in training only: validation divides photographs unevenly. There,
        ``accuracy`` depends on the number of photographs in a batch; ``accuracy_within``, among the patches
        of the same photograph, does not.
        """
        (images,) = views
        features = encoded(encoder, self.patches(images, self.generator(images.device)))  # (B, g^2, D)
        grid = self.patches.grid
        codes = self.project(features).view(len(images), grid, grid, -1)  # (B, g, g, d)
        predictions, targets = self._predictions(codes)  # (B, N, d), (N,)
        own = codes[:, self.skip + 1 :].flatten(1, 2)  # (B, K, d), K candidates of each photograph
        with full_precision(predictions, own) as (predictions, own):
            candidates, offset = of_all_processes(own) if self.training else (own, 0)
            scale = own.shape[-1] ** -0.5
            logits = predictions.flatten(0, 1) @ candidates.flatten(0, 1).T * scale  # (B N, K * photographs)
            first = (offset + torch.arange(len(own), device=own.device)) * own.shape[1]
            right = (first[:, None] + targets).flatten()  # (B N,)
            with torch.no_grad():
                within = torch.einsum("bnd,bkd->bnk", predictions, own).argmax(dim=-1) == targets
                found = logits.argmax(dim=1) == right
            scores = {"accuracy": found.float().mean(), "accuracy_within": within.float().mean()}
            return functional.cross_entropy(logits, right), scores

    def _predictions(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the patches below every context.

        Args:
            codes: (B, g, g, d).

        Returns:
            (B, N, d), the predictions; (N,) int64, which candidate of the photograph each should find.
        """
        context = self.context(codes.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, g, g, d)
        grid = codes.shape[1]
        cells = torch.arange((grid - self.skip - 1) * grid, device=codes.device).view(-1, grid)
        predictions, targets = [], []
        for k in range(self.skip + 1, grid):
            predictions.append(self.predict[str(k)](context[:, : grid - k]).flatten(1, 2))
            targets.append(cells[k - self.skip - 1 :].flatten())
        return torch.cat(predictions, dim=1), torch.cat(targets)


class _RowsAbove(nn.Module):
    """A residual convolution that sees a row and the one above it, never one below.

    There is no normalisation over places: its statistics would tell a context about the rows below.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=(2, 3))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        above: Tensor = self.convolution(functional.pad(functional.relu(rows), (1, 1, 1, 0)))
        return rows + above


def _check(patches: Patches, skip: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"pretext.head.{name}={size} is not at least 1")
    if not 0 <= skip < patches.grid - 1:
        raise ConfigError(
            f"pretext.head.skip={skip} is not in 0..{patches.grid - 2}, as a grid of {patches.grid} allows"
        )
    if patches.least_gap(skip + 1) < 0:
        raise ConfigError(
            f"pretext.head.skip={skip}: patches {skip + 1} rows apart may overlap, so that what is to be "
            "predicted can be seen; skip more rows, or raise pretext.head.patches.gap"
        )
