"""Contrastive predictive coding (van den Oord et al., 2018; Henaff et al., ICML 2020).

On fundus photographs Taleb et al., NeurIPS 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD, accuracy
from drgrade.pretext.contrastive import full_precision, gather_rows
from drgrade.pretext.patches import Patches, PatchPretext


class CPC(PatchPretext):
    """Predict the code of a patch from the rows of patches above it, and find it among other codes.

    With codes z of the patches and contexts c computed from the rows down to r, the score of candidate i for
    the patch k rows below is z_i^T W_k c_rj / sqrt(dimension). The loss is the cross-entropy of the correct
    candidate (InfoNCE), averaged over photographs, rows, columns and k. Candidates are the patches of all
    predictable rows, of the same photograph and of all others of the batch on all processes.
    """

    scores = ("accuracy", "accuracy_within")

    def __init__(
        self, encoder: Encoder, patches: Patches, skip: int = 1, code: int = 1024, layers: int = 3
    ) -> None:
        """Build projection, context network and predictors.

        Args:
            encoder: Encoder that accepts images of any size.
            patches: Cuts the grid. Predicted patches must not share pixels with their context.
            skip: Number of rows directly below the context that are not predicted, because they overlap it or
                are too close.
            code: Length of codes and contexts.
            layers: Layers of the context network; each sees one row further up.
        """
        super().__init__("cpc", encoder, patches, patches.count)
        check_range("[1, inf)", HEAD, code=code, layers=layers)
        check_range(f"[0, {patches.grid - 2}]", HEAD, skip=skip)  # at least one row is left to predict
        if patches.smallest_gap(skip + 1) < 0:
            raise ConfigError(
                f"{HEAD}skip={skip}: patches {skip + 1} rows apart may overlap, so that the context shows "
                "parts of the predicted patch; skip more rows, or raise pretext.head.patches.gap"
            )
        self.skip = skip
        self.project = nn.Linear(encoder.num_features, code)
        self.context = nn.Sequential(*(_RowsAbove(code) for _ in range(layers)))
        steps = range(skip + 1, patches.grid)
        self.predict = nn.ModuleDict({str(k): nn.Linear(code, code, bias=False) for k in steps})

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the InfoNCE loss; see :class:`Pretext`.

        In training, candidates come from all processes; in evaluation only from the process. ``accuracy``
        depends on the number of photographs in the batch; ``accuracy_within``, among the patches of the same
        photograph, does not.
        """
        features = self.encode(encoder, views, self.generator(views[0].device))  # (B, g^2, D)
        grid = self.patches.grid
        codes = self.project(features).view(len(features), grid, grid, -1)  # (B, g, g, d)
        predictions, targets = self._predictions(codes)  # (B, N, d), (N,)
        own = codes[:, self.skip + 1 :].flatten(1, 2)  # (B, K, d), K candidates of each photograph
        with full_precision(predictions, own) as (predictions, own):
            candidates, offset = gather_rows(own) if self.training else (own, 0)
            scale = own.shape[-1] ** -0.5
            logits = predictions.flatten(0, 1) @ candidates.flatten(0, 1).T * scale  # (B N, K * photographs)
            first = (offset + torch.arange(len(own), device=own.device)) * own.shape[1]
            correct = (first[:, None] + targets).flatten()  # (B N,)
            with torch.no_grad():
                within = accuracy(torch.einsum("bnd,bkd->bnk", predictions, own), targets)
            scores = {"accuracy": accuracy(logits, correct), "accuracy_within": within}
            return functional.cross_entropy(logits, correct), scores

    def _predictions(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the patches below every context from codes (B, g, g, d).

        Returns:
            (B, N, d), the predictions; (N,) int64, the index of the correct candidate of the photograph.
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
    """A residual convolution over a row and the one above it, never one below.

    It has no normalisation over positions, whose statistics would leak the rows below into the context.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=(2, 3))

    def forward(self, rows: Tensor) -> Tensor:
        above: Tensor = self.convolution(functional.pad(functional.relu(rows), (1, 1, 1, 0)))
        return rows + above
