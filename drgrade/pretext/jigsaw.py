"""Jigsaw puzzles (Noroozi and Favaro, ECCV 2016; on fundus photographs Taleb et al., NeurIPS 2020)."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations as orders

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, require_any_size
from drgrade.pretext.patches import Patches, classifier, encoded, require_grid

GRID, PIECES = 3, 9

MOST_PERMUTATIONS = 1000
"""As many as Noroozi and Favaro went up to; more make the puzzle ambiguous, and finding them slow."""


class Jigsaw(Pretext):
    """Tell by which permutation of a fixed set nine patches were shuffled.

    Under permutation p place j shows patch p[j]; places and patches are counted in reading order.
    """

    scores = ("accuracy",)
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
        """Choose the permutations, and build the head.

        Args:
            encoder: What is to be trained; it must take images of any size.
            patches: Cuts 3 x 3 patches.
            permutations: How many there are to tell apart, 2 to 1000.
            permutation_seed: The set follows from it and from their number.
            hidden: Widths of the head's hidden layers.
            dropout: Before the last layer.

        Raises:
            ConfigError: If the grid is not 3 x 3, or the number of permutations is out of range.
            EncoderError: If the encoder cannot carry the task.
        """
        super().__init__()
        require_any_size("jigsaw", encoder)
        require_grid("jigsaw", patches, GRID)
        if not 2 <= permutations <= MOST_PERMUTATIONS:
            raise ConfigError(f"pretext.head.permutations={permutations} is not in 2..{MOST_PERMUTATIONS}")
        self.patches = patches
        self.encoder_inputs = PIECES * patches.share
        # Kept with the weights: a checkpoint goes on with the puzzles that it has learnt.
        self.register_buffer("table", torch.from_numpy(distant_permutations(permutations, permutation_seed)))
        self.head = classifier(PIECES * encoder.num_features, hidden, dropout, permutations)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`."""
        (images,) = views
        generator = self.generator(images.device)
        count, device = len(self.table), images.device
        targets = torch.randint(count, (len(images),), device=device, generator=generator)
        shuffled = self.patches(images, generator, self.table[targets])  # (B, 9, 3, s, s)
        logits = self.head(encoded(encoder, shuffled).flatten(1))  # (B, P)
        loss = functional.cross_entropy(logits, targets)
        return loss, {"accuracy": (logits.detach().argmax(dim=1) == targets).float().mean()}


@lru_cache(maxsize=8)
def _distant_permutations(count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    every = np.array(list(orders(range(PIECES))), dtype=np.uint8)  # (9!, 9)
    # In random order, so that the first of several equally good ones is a random one of them.
    places = np.ascontiguousarray(every[np.random.default_rng(seed).permutation(len(every))].T)  # (9, 9!)
    nearest = np.full(places.shape[1], PIECES, np.uint8)
    total = np.zeros(places.shape[1], np.int32)
    chosen = [0]
    for _ in range(count - 1):
        distance = np.zeros_like(nearest)
        for place in places:
            distance += place != place[chosen[-1]]
        np.minimum(nearest, distance, out=nearest)
        total += distance
        # Farthest from the nearest one; of those, farthest on average.
        chosen.append(int(np.argmax(np.where(nearest == nearest.max(), total, -1))))
    return tuple(tuple(int(piece) for piece in places[:, one]) for one in chosen)


def distant_permutations(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Choose permutations of nine pieces that differ in as many places as possible.

    Greedy, after Noroozi and Favaro, ECCV 2016, algorithm 1: the first is drawn; each next one is the one of
    all 9! whose least Hamming distance to those chosen is largest, of these the one with the largest mean
    distance, of these one at random. (The paper goes by the mean alone, which lets close pairs in.)

    Args:
        count: How many, at least 1.
        seed: Of what is drawn.

    Returns:
        (count, 9) int64, all different.
    """
    return np.array(_distant_permutations(count, seed), dtype=np.int64)
