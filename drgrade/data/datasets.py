"""Datasets that read prepared stores, their samplers and the batches they yield."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from drgrade.artefacts import map_array
from drgrade.data.transforms import Augmentation, Image, ViewTransform
from drgrade.errors import ConfigError

UNGRADED = -1
"""Grade of ungraded photographs in batches."""


class Batch(TypedDict):
    """Batch of graded photographs.

    Attributes:
        image: (B, 3, S, S); uint8 from the loader, normalised float32 on the device.
        grade: (B,) int64, -1 for ungraded photographs.
        index: (B,) int64, row in the manifest of the collection.
    """

    image: Tensor
    grade: Tensor
    index: Tensor


class ViewsBatch(TypedDict):
    """Batch of a pretext: like :class:`Batch`, with one tensor (B, 3, S_k, S_k) for each view k."""

    views: list[Tensor]
    grade: Tensor
    index: Tensor


View = Callable[[Image, int, int | None], Image | tuple[Image, ...]]
"""(image (S, S, 3), row in the manifest, seed or None) -> one image, or a tuple of views."""


@dataclass(frozen=True)
class AugmentedView:
    """Augmented image for samples with a seed; the stored image for samples without one."""

    augment: Augmentation | None

    def __call__(self, image: Image, row: int, seed: int | None) -> Image:
        """Return the view; see :data:`View`."""
        return image if seed is None or self.augment is None else self.augment(image, seed)


@dataclass(frozen=True)
class PretextView:
    """Views of a pretext task, which depend on the recorded radius of each photograph."""

    views: ViewTransform
    clear: npt.NDArray[np.float64]  # (N,), column of the manifest

    def __call__(self, image: Image, row: int, seed: int | None) -> tuple[Image, ...]:
        """Return the views; see :data:`View`."""
        views = self.views(image, float(self.clear[row]), seed)
        return views if isinstance(views, tuple) else (views,)


class SampleIndex(NamedTuple):
    """Index of one sample, as samplers yield it."""

    photograph: int
    """Position in the dataset."""

    seed: int | None
    """Seed of the augmentation; None for no augmentation."""


class StoreDataset(Dataset[dict[str, Any]]):
    """Photographs of one or several stores.

    Each worker opens the memory maps on first use, because pickling an open one would copy all pixels.

    Args:
        images: ``images.npy`` of the stores, (N_k, S, S, 3) uint8.
        rows: Rows of this dataset, counted through all stores.
        grades: Grade of each row, -1 for none.
        view: Applied to each photograph.
    """

    def __init__(
        self, images: Sequence[Path], rows: Sequence[int], grades: Sequence[int], view: View
    ) -> None:
        self._paths = list(images)
        self._images: list[npt.NDArray[np.uint8]] | None = None
        self._ends = np.zeros(0, np.int64)
        self.rows, self.grades = np.asarray(rows, dtype=np.int64), np.asarray(grades, dtype=np.int64)
        self._view = view

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def __getitem__(self, index: SampleIndex) -> dict[str, Any]:
        row = int(self.rows[index.photograph])
        view = self._view(self._stored_image(row), row, index.seed)
        sample = {"grade": int(self.grades[index.photograph]), "index": row}
        if isinstance(view, tuple):
            return {"views": [_channels_first(each) for each in view], **sample}
        return {"image": _channels_first(view), **sample}

    def _stored_image(self, row: int) -> Image:
        if self._images is None:
            self._images = [map_array(path, "prepare it again") for path in self._paths]
            self._ends = np.cumsum([len(images) for images in self._images])
        store = int(np.searchsorted(self._ends, row, side="right"))
        images = self._images[store]
        return np.array(images[row - (int(self._ends[store]) - len(images))])


def _channels_first(image: Image) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


class StreamSampler(Sampler[SampleIndex]):
    """Endless shuffled stream of photographs, cut into epochs of equal length and shared between processes.

    The stream is a sequence of permutations, or of draws with replacement if weights are given. Epochs may
    end inside a permutation, so all batches are full and the number of steps per epoch is the same at every
    label fraction. Position p depends only on the seed and p. Process r of n takes positions r, r + n, ...,
    so n processes together see the same batches as one.

    Args:
        count: Number of photographs.
        length: Samples in an epoch over all processes; a multiple of ``world``.
        seed: Seed of the stream.
        weights: Relative frequency of each photograph, for class-balanced sampling.
        rank: Index of this process.
        world: Number of processes.

    Raises:
        ConfigError: If ``count`` is 0 or ``length`` is not a multiple of ``world``.
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
        if count < 1:
            raise ConfigError("there are no photographs to sample from")
        if length % world:
            raise ConfigError(f"an epoch of {length} samples cannot be shared evenly by {world} processes")
        self.count, self.length, self.seed = count, length, seed
        self.weights = None if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return self.length // self.world

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0. Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleIndex]:
        start = self.epoch * self.length
        indices = self._stream(start, start + self.length)
        for offset in range(self.rank, self.length, self.world):
            yield SampleIndex(int(indices[offset]), augmentation_seed(self.seed, start + offset))

    def _stream(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        blocks = [self._block(number) for number in range(start // self.count, (stop - 1) // self.count + 1)]
        skip = start % self.count
        return np.concatenate(blocks)[skip : skip + stop - start]

    def _block(self, number: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, 1, number])
        if self.weights is None:
            return rng.permutation(self.count)
        return rng.choice(self.count, size=self.count, p=self.weights)


class EvaluationSampler(Sampler[SampleIndex]):
    """All photographs in order, each exactly once over all processes, without augmentation or padding."""

    def __init__(self, count: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleIndex]:
        return (SampleIndex(index, None) for index in self.indices)


def augmentation_seed(seed: int, position: int) -> int:
    """Return the augmentation seed at a position of the stream of a seed, in [0, 2**63)."""
    return int(np.random.SeedSequence([seed, 2, position]).generate_state(1, np.uint64)[0] >> 1)


def balancing_weights(grades: Sequence[int]) -> list[float]:
    """Return sampling weights, with sum 1, under which all occurring grades are equally frequent.

    Example:
        >>> balancing_weights([0, 0, 1])
        [0.25, 0.25, 0.5]
    """
    values, inverse, counts = np.unique(np.asarray(grades), return_inverse=True, return_counts=True)
    weights: list[float] = (1 / counts[inverse] / len(values)).tolist()
    return weights


def local_batch_size(batch_size: int, count: int, world: int) -> int:
    """Return the batch size of one of ``world`` processes, at least 1.

    The global batch is at most as large as the dataset of ``count`` photographs.

    Raises:
        ConfigError: If the batch size is not a multiple of the number of processes.
    """
    if batch_size < 1 or batch_size % world:
        raise ConfigError(
            f"data.batch_size={batch_size} (over all processes) cannot be shared evenly by {world} processes"
        )
    return max(1, min(batch_size // world, count // world))
