"""Which photographs make up each batch, in one process and in many."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from drgrade.errors import ConfigError


class Draw(NamedTuple):
    """One place in the stream of training samples."""

    photograph: int
    """Its number in the set that is sampled."""

    seed: int | None
    """Seeds its augmentation; None for none."""


class StreamSampler(Sampler[Draw]):
    """An endless shuffled stream of photographs, cut into epochs of equal length and dealt to the processes.

    The stream is permutation after permutation (or, with weights, draws with replacement). Cutting it
    anywhere, rather than at the end
    of a permutation, makes every batch full, so that epochs can have the same number of optimiser steps at
    every label fraction. Place p of
    the stream depends on the seed and p alone; process r of n gets the places r, r + n, ...: n processes
    together
    see the batches that one process would.
    """

    def __init__(
        self,
        count: int,
        length: int,
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Describe the stream.

        Args:
            count: Number of photographs.
            length: Samples of an epoch over all processes; a multiple of ``world``.
            seed: Seed of the stream.
            weights: Relative frequency of each photograph, for class-balanced sampling.
            rank: This process.
            world: Number of processes.

        Raises:
            ConfigError: If there is nothing to draw, or the length cannot be dealt evenly.
        """
        if count < 1:
            raise ConfigError("there is no photograph to draw from")
        if length % world:
            raise ConfigError(f"an epoch of {length} samples cannot be dealt evenly to {world} processes")
        self.count, self.length, self.seed = count, length, seed
        self.weights = None if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return self.length // self.world

    def set_epoch(self, epoch: int) -> None:
        """Move to the part of the stream that belongs to an epoch (Lightning calls this).

        Args:
            epoch: Counted from 0.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        start = self.epoch * self.length
        indices = self._stream(start, start + self.length)
        for offset in range(self.rank, self.length, self.world):
            yield Draw(int(indices[offset]), augmentation_seed(self.seed, start + offset))

    def _stream(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Photographs at the places start to stop."""
        blocks = [self._block(number) for number in range(start // self.count, (stop - 1) // self.count + 1)]
        skip = start % self.count
        return np.concatenate(blocks)[skip : skip + stop - start]

    def _block(self, number: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, 1, number])
        if self.weights is None:
            return rng.permutation(self.count)
        return rng.choice(self.count, size=self.count, p=self.weights)


class EverySampler(Sampler[Draw]):
    """Every photograph exactly once over all processes, in order, not augmented, nothing padded."""

    def __init__(self, count: int, *, rank: int = 0, world: int = 1) -> None:
        """Deal ``count`` photographs to ``world`` processes, of which this is number ``rank``."""
        self.indices = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(index, None) for index in self.indices)


def augmentation_seed(seed: int, place: int) -> int:
    """Seed of the augmentation at a place of the stream.

    Args:
        seed: The run's seed.
        place: Place in the stream, from 0.

    Returns:
        An integer in [0, 2**63), different for every pair with all but vanishing probability.
    """
    return int(np.random.SeedSequence([seed, 2, place]).generate_state(1, np.uint64)[0] >> 1)


def balancing_weights(grades: Sequence[int]) -> list[float]:
    """Weights with which every grade that occurs is drawn equally often.

    Args:
        grades: Grade of each photograph.

    Returns:
        One weight per photograph; they sum to 1.
    """
    values, inverse, counts = np.unique(np.asarray(grades), return_inverse=True, return_counts=True)
    weights: list[float] = (1 / counts[inverse] / len(values)).tolist()
    return weights
