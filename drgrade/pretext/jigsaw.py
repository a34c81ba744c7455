"""Jigsaw puzzles (Noroozi and Favaro, ECCV 2016; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations as all_permutations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD, accuracy, classifier
from drgrade.pretext.patches import Patches, PatchPretext

GRID, PIECES = 3, 9

MAX_PERMUTATIONS = 1000
"""The largest number in Noroozi and Favaro; more make the puzzle ambiguous and the search slow."""


class Jigsaw(PatchPretext):
    """Predict by which permutation of a fixed set nine patches were shuffled.

    Permutation p shows patch p[j] at position j; positions and patches are numbered in reading order.

    Attributes:
        table: (P, 9) int64, the permutations. A buffer: a resumed run continues with the same puzzles.
    """

    table: Tensor

    def __init__(
        self,
        encoder: Encoder,
        patches: Patches,
        permutations: int = 100,
        permutation_seed: int = 0,
        hidden: Sequence[int] = (2048, 1024),
        dropout: float = 0.0,
    ) -> None:
        """Choose the permutations and build the head.

        Args:
            encoder: Encoder that accepts images of any size.
            patches: Cuts 3 x 3 patches.
            permutations: Number of permutations, 2 to 1000.
            permutation_seed: Seed of the choice of permutations.
            hidden: Widths of the hidden layers of the head.
            dropout: Dropout probability before the last layer.
        """
        super().__init__("jigsaw", encoder, patches, PIECES, GRID)
        check_range(f"[2, {MAX_PERMUTATIONS}]", HEAD, permutations=permutations)
        self.register_buffer("table", torch.from_numpy(distant_permutations(permutations, permutation_seed)))
        self.head = classifier(PIECES * encoder.num_features, hidden, dropout, permutations)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy over the permutations; see :class:`Pretext`."""
        batch, device = len(views[0]), views[0].device
        generator = self.generator(device)
        targets = torch.randint(len(self.table), (batch,), device=device, generator=generator)
        features = self.encode(encoder, views, generator, self.table[targets])  # (B, 9, D)
        logits = self.head(features.flatten(1))  # (B, P)
        return functional.cross_entropy(logits, targets), {"accuracy": accuracy(logits, targets)}


def distant_permutations(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Choose permutations of nine pieces, (count, 9) int64, that differ in as many positions as possible.

    Greedy search after Noroozi and Favaro, ECCV 2016, algorithm 1. The first permutation is random; each next
    one maximises the smallest Hamming distance to the chosen ones, then the mean distance, then it is random.
    (The paper maximises the mean only, which admits close pairs.)
    """
    return np.array(_distant_permutations(count, seed), dtype=np.int64)


@lru_cache(maxsize=8)
def _distant_permutations(count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    candidates = np.array(list(all_permutations(range(PIECES))), dtype=np.uint8)  # (9!, 9)
    # In random order, so that the first of several equally good ones is a random choice.
    order = np.random.default_rng(seed).permutation(len(candidates))
    positions = np.ascontiguousarray(candidates[order].T)  # (9, 9!)
    nearest = np.full(positions.shape[1], PIECES, np.uint8)
    total = np.zeros(positions.shape[1], np.int32)
    chosen = [0]
    for _ in range(count - 1):
        distance = np.zeros_like(nearest)
        for position in positions:
            distance += position != position[chosen[-1]]
        np.minimum(nearest, distance, out=nearest)
        total += distance
        chosen.append(int(np.argmax(np.where(nearest == nearest.max(), total, -1))))
    return tuple(tuple(int(piece) for piece in positions[:, index]) for index in chosen)
