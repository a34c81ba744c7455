"""The two LightningDataModules: unlabelled photographs for a pretext, graded photographs for grading."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from drgrade.data.augmentation import Augmentation, Image
from drgrade.data.batches import Draw, EverySampler, StreamSampler, balancing_weights
from drgrade.data.normalisation import MEAN, STD
from drgrade.data.photographs import Photographs
from drgrade.data.splits.draw import proportional_order
from drgrade.data.transforms import ViewTransform
from drgrade.errors import ConfigError, DataError

UNGRADED = -1


class Batch(TypedDict):
    """What a loader yields. ``image`` is (B, 3, S, S), uint8 from the loader and normalised float on the
    device; ``grade`` (B,) int64, -1 for none;
    ``index`` (B,) int64, the row in the manifest of all photographs.
    """  # noqa: D205

    image: Tensor
    grade: Tensor
    index: Tensor


class ViewsBatch(TypedDict):
    """What the loader of a pretext yields: as :class:`Batch`, with (B, 3, S_k, S_k) of each view."""

    views: list[Tensor]
    grade: Tensor
    index: Tensor


View = Callable[[Image, int, int | None], Image | tuple[Image, ...]]
"""(image (S, S, 3), row in the manifest, seed or None) -> image, or several views of it."""


@dataclass(frozen=True)
class AugmentedView:
    """Augment where there is a seed; the photograph itself where there is none."""

    augment: Augmentation

    def __call__(self, image: Image, row: int, seed: int | None) -> Image:
        """See :data:`View`."""
        return image if seed is None else self.augment(image, seed)


def no_augmentation(image: Image, seed: int) -> Image:
    """The photograph as it is."""
    return image


@dataclass(frozen=True)
class PretextView:
    """The pretext's views, which have to know how much of each photograph was recorded."""

    views: ViewTransform
    clear: npt.NDArray[np.float64]

    def __call__(self, image: Image, row: int, seed: int | None) -> tuple[Image, ...]:
        """See :data:`View`."""
        seen = self.views(image, float(self.clear[row]), seed)
        return seen if isinstance(seen, tuple) else (seen,)


class StoreDataset(Dataset[dict[str, Any]]):
    """Photographs of one store or several, each seen through a view.

    The stores are opened in each worker on first use: a memory map that is pickled would travel with all its
    pixels.
    """

    def __init__(
        self, images: Sequence[Path], rows: Sequence[int], grades: Sequence[int], view: View
    ) -> None:
        """Choose rows.

        Args:
            images: ``images.npy`` of the stores, (N_k, S, S, 3) uint8.
            rows: Rows that belong to this set, counted through all stores.
            grades: Grade of each of them, -1 for none.
            view: Applied to each photograph.
        """
        self._paths = list(images)
        self._images: list[npt.NDArray[np.uint8]] | None = None
        self._ends = np.zeros(0, np.int64)
        self.rows, self.grades = np.asarray(rows, dtype=np.int64), np.asarray(grades, dtype=np.int64)
        self._view = view

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        row = int(self.rows[draw.photograph])
        seen = self._view(self._photograph(row), row, draw.seed)
        shown = (
            {"views": [_channels_first(view) for view in seen]}
            if isinstance(seen, tuple)
            else {"image": _channels_first(seen)}
        )
        return {**shown, "grade": int(self.grades[draw.photograph]), "index": row}

    def _photograph(self, row: int) -> Image:
        if self._images is None:
            self._images = [np.load(path, mmap_mode="r") for path in self._paths]
            self._ends = np.cumsum([len(images) for images in self._images])
        store = int(np.searchsorted(self._ends, row, side="right"))
        images = self._images[store]
        return np.array(images[row - (int(self._ends[store]) - len(images))])


def _channels_first(image: Image) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def normalise(images: Tensor) -> Tensor:
    """Turn stored pixels into what an encoder takes.

    Args:
        images: (..., 3, H, W) uint8.

    Returns:
        (..., 3, H, W) float32 with ImageNet's mean and standard deviation.
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def _one_opencv_thread(worker: int) -> None:
    """Each loader process has a core; and a forked one lacks its parent's OpenCV threads, so 0 and not 1."""
    cv2.setNumThreads(0)


class _StoreDataModule(pl.LightningDataModule):
    """What both DataModules share: preparation, loaders for several processes, normalisation."""

    def __init__(
        self,
        photographs: Photographs,
        batch_size: int,
        seed: int,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        """Describe the loaders.

        Args:
            photographs: Store and split.
            batch_size: Photographs in a batch over *all* processes, so that a learning rate keeps its meaning
                with more devices.
            seed: Seed of order and augmentation.
            num_workers: Loader processes per training process; "auto" is none on the CPU, else the cores
                there are, at most 8.
        """
        super().__init__()
        self.photographs = photographs
        self.batch_size, self.seed = batch_size, seed
        self._num_workers = num_workers
        self._datasets: dict[str, StoreDataset] = {}

    def prepare_data(self) -> None:
        """Prepare the stores, and search for duplicates, unless that is done."""
        _ = self.photographs.manifest

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise on the device: a quarter of the bytes travels."""
        if "views" in batch:
            return {**batch, "views": [normalise(view) for view in batch["views"]]}
        return {**batch, "image": normalise(batch["image"])}

    @property
    def _process(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _rows(self, subsets: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.photographs.split["subset"].isin(subsets)).astype(np.int64)

    def _dataset(self, rows: npt.NDArray[np.int64], view: View) -> StoreDataset:
        """Photographs with the split's grades: those of copies that disagree are not the manifest's."""
        grades = self.photographs.sides.table["grade"].iloc[rows].fillna(UNGRADED).astype(int).tolist()
        return StoreDataset(self.photographs.image_files, rows.tolist(), grades, view)

    def _loader(
        self, dataset: StoreDataset, sampler: StreamSampler | EverySampler, batch_size: int
    ) -> DataLoader[Any]:
        workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_one_opencv_thread,
            # Its own, so that starting a loader does not move the random numbers of training.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _workers(self) -> int:
        if self._num_workers != "auto":
            return int(self._num_workers)
        on_cpu = self.trainer is None or self.trainer.strategy.root_device.type == "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if on_cpu else min(8, max(1, cores // self._process[1]))

    def _train_loader(
        self, dataset: StoreDataset, steps_per_epoch: int | None, weights: Sequence[float] | None = None
    ) -> DataLoader[Any]:
        rank, world = self._process
        batch = local_batch_size(self.batch_size, len(dataset), world)
        steps = steps_per_epoch or -(-len(dataset) // (batch * world))
        sampler = StreamSampler(
            len(dataset), steps * batch * world, self.seed, weights=weights, rank=rank, world=world
        )
        return self._loader(dataset, sampler, batch)

    def _every_loader(self, dataset: StoreDataset) -> DataLoader[Any]:
        rank, world = self._process
        _check_shareable(len(dataset), world)
        return self._loader(
            dataset, EverySampler(len(dataset), rank=rank, world=world), max(1, self.batch_size // world)
        )


def _check_shareable(count: int, world: int) -> None:
    """Lightning skips a process that has no batch, and the others would wait for it for ever."""
    if count < world:
        raise ConfigError(
            f"{count} photographs cannot be validated or tested on by {world} processes; use fewer"
        )


def local_batch_size(batch_size: int, count: int, world: int) -> int:
    """Share of one process in a batch; a batch is no larger than the set it is drawn from.

    Args:
        batch_size: Over all processes.
        count: Photographs there are.
        world: Number of processes.

    Returns:
        At least 1.

    Raises:
        ConfigError: If the batch cannot be shared evenly.
    """
    if batch_size < 1 or batch_size % world:
        raise ConfigError(
            f"data.batch_size={batch_size} (over all processes) cannot be shared evenly by {world} processes"
        )
    return max(1, min(batch_size // world, count // world))


class GradingDataModule(_StoreDataModule):
    """Graded photographs, in the subsets of the split."""

    def __init__(
        self,
        photographs: Photographs,
        augment: Augmentation,
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        balanced: bool = False,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        """Describe the loaders.

        Args:
            photographs: Store and split.
            augment: Applied to training photographs.
            batch_size: Photographs in a batch over all processes.
            seed: Seed of order and augmentation.
            steps_per_epoch: Optimiser steps of an epoch; None for one pass over the training photographs.
            balanced: Draw every grade equally often.
            num_workers: Loader processes; see the base class.

        Raises:
            ConfigError: If an epoch would have no step.
        """
        super().__init__(photographs, batch_size, seed, num_workers)
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ConfigError(
                f"protocol.steps_per_epoch={steps_per_epoch} is not at least 1; null is one pass over the set"
            )
        self._augment, self._steps, self.balanced = augment, steps_per_epoch, balanced
        self.tested = "test"
        """What the test loader serves: ``test``, or the name of an external data set."""

    def setup(self, stage: str | None = None) -> None:
        """Split and open the store.

        Raises:
            DataError: If the split is impossible.
        """
        view = AugmentedView(self._augment)
        for subset in ("train", "val", "test"):
            self._datasets[subset] = self._dataset(self._rows([subset]), view)
        datasets = self.photographs.manifest["dataset"].to_numpy()
        external = self._rows(["external"])
        for name in self.external:
            self._datasets[name] = self._dataset(external[datasets[external] == name], view)
            _check_shareable(len(self._datasets[name]), self._process[1])  # before training, not after

    def grade_counts(self, subset: str) -> Tensor:
        """How many photographs of each grade a subset has.

        Args:
            subset: ``train``, ``val`` or ``test``.

        Returns:
            (5,) int64.
        """
        return torch.bincount(torch.from_numpy(self._datasets[subset].grades), minlength=5)

    @property
    def external(self) -> list[str]:
        """Names of the external data sets."""
        return [source.name for source, role in self.photographs.roles if role == "external"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless augmented stream, cut into epochs."""
        dataset = self._datasets["train"]
        weights = balancing_weights(dataset.grades.tolist()) if self.balanced else None
        return self._train_loader(dataset, self._steps, weights)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Each validation photograph once; none without validation photographs."""
        return self._every_loader(self._datasets["val"]) if len(self._datasets["val"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Each photograph of :attr:`tested` once."""
        return self._every_loader(self._datasets[self.tested])


PRETRAIN_ON = ("train", "all")
"""What pre-training may see: the training side of the split, or every photograph; external data sets, and
what is in a group with their photographs, never.

The training side includes the validation photographs: their grades choose a checkpoint, their pixels are on
this side of the test; without them there would be an encoder for each validation set instead of one for each
fold.
"""


class PretextDataModule(_StoreDataModule):
    """Unlabelled photographs, as the pretext's views."""

    def __init__(
        self,
        photographs: Photographs,
        views: ViewTransform,
        batch_size: int,
        seed: int,
        pretrain_on: Literal["train", "all"] = "train",
        val_fraction: float = 0.05,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        """Describe the loaders.

        Args:
            photographs: Store and split.
            views: Makes the views of a photograph.
            batch_size: Photographs in a batch over all processes.
            seed: Seed of order and augmentation.
            pretrain_on: ``train`` for the training side of the split, ``all`` for every photograph.
            val_fraction: Share that is held out to watch the pretext (not the grading) on.
            num_workers: Loader processes; see the base class.

        Raises:
            ConfigError: If ``pretrain_on`` is neither, or ``val_fraction`` out of range.
        """
        super().__init__(photographs, batch_size, seed, num_workers)
        if pretrain_on not in PRETRAIN_ON:
            raise ConfigError(f"pretrain_on={pretrain_on!r} is neither 'train' nor 'all'")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"pretext.val_fraction={val_fraction} is not in [0, 1)")
        self.views, self._pretrain_on, self._val_fraction = views, pretrain_on, val_fraction

    def setup(self, stage: str | None = None) -> None:
        """Choose photographs, and hold some out.

        Raises:
            DataError: If there are too few.
        """
        table = self.subsets()
        view = PretextView(self.views, self.photographs.manifest["clear"].to_numpy(dtype=float))
        whole = AugmentedView(no_augmentation)
        side = self.photographs.sides.training_side.to_numpy()
        for subset in ("train", "val"):
            chosen = (table["subset"] == subset).to_numpy()
            rows = np.flatnonzero(chosen).astype(np.int64)
            self._datasets[subset] = self._dataset(rows, view)
            graded = np.flatnonzero(chosen & side & table["grade"].notna().to_numpy()).astype(np.int64)
            self._datasets[f"{subset}_whole"] = self._dataset(rows, whole)
            self._datasets[f"{subset}_graded"] = self._dataset(graded, whole)
        if not len(self._datasets["train"]):
            raise DataError(
                "no photograph is left to pre-train on; use pretrain_on=all or a smaller pretext.val_fraction"
            )

    def subsets(self) -> pd.DataFrame:
        """What pre-training uses.

        Returns:
            The split's columns; ``subset`` is train or val of the pretext, or ``test`` for what it must not
            see.
        """
        return self._subsets.copy()

    @cached_property
    def _subsets(self) -> pd.DataFrame:
        sides = self.photographs.sides
        table = sides.table.copy()
        seen = ~sides.foreign & (sides.training_side if self._pretrain_on == "train" else True)
        held_out = self._held_out(table["group"][seen])
        table["subset"] = np.where(~seen, "test", np.where(table["group"].isin(held_out), "val", "train"))
        return table

    def _held_out(self, groups: pd.Series) -> set[object]:
        """Groups that the pretext is watched on."""
        if not self._val_fraction:
            return set()
        pairs = [(group, 0) for group in groups]
        return set(proportional_order(pairs, [self.photographs.spec.seed, 3], until=self._val_fraction))

    def photographs_hash(self) -> str:
        """SHA-256 of which photographs pre-training sees, and which of them it learns from.

        Returns:
            64 hexadecimal digits; the same for all label fractions, and with ``pretrain_on=all`` for all
            folds.
        """
        table = self._subsets
        seen = (table["subset"] != "test").to_numpy()
        stores = self.photographs.store_numbers(np.flatnonzero(seen))
        used = table[seen]
        rows = sorted(f"{i}\t{subset}" for i, subset in zip(used["image_id"], used["subset"], strict=True))
        pixels = [self.photographs.stores[number].pixels_sha256 for number in stores]
        return hashlib.sha256("\n".join([*pixels, *rows]).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless stream of views, cut into passes over the photographs."""
        return self._train_loader(self._datasets["train"], None)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Each held-out photograph once, in its widest view."""
        return self._every_loader(self._datasets["val"]) if len(self._datasets["val"]) else []

    def whole_photographs(
        self, subset: Literal["train", "val"], *, graded: bool = False
    ) -> DataLoader[Any] | None:
        """Photographs as grading sees them, not as the pretext does, to look at features; each once.

        Args:
            subset: Those that pre-training learns from, or those that are held out.
            graded: Only photographs of the training side that have a grade, whatever pre-training may see:
                the grades of test photographs are nobody's business here.

        Returns:
            The loader; None if there are too few for every process to have one.
        """
        dataset = self._datasets[f"{subset}_{'graded' if graded else 'whole'}"]
        return self._every_loader(dataset) if len(dataset) >= self._process[1] else None
