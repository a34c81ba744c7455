"""LightningDataModules: ungraded photographs for pretext tasks, graded photographs for grading."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.data.datasets import (
    UNGRADED,
    AugmentedView,
    EvaluationSampler,
    PretextView,
    StoreDataset,
    StreamSampler,
    View,
    balancing_weights,
    local_batch_size,
)
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import proportional_order
from drgrade.data.transforms import Augmentation, ViewTransform, normalise
from drgrade.errors import ConfigError, DataError


class _StoreDataModule(pl.LightningDataModule):
    """Base class: preparation, loaders for several processes, normalisation."""

    def __init__(
        self,
        photographs: Photographs,
        batch_size: int,
        seed: int,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.photographs = photographs
        self.batch_size, self.seed = batch_size, seed
        self._num_workers = num_workers
        self._datasets: dict[str, StoreDataset] = {}

    def prepare_data(self) -> None:
        """Prepare the stores and search for duplicates, unless both were done before."""
        _ = self.photographs.manifest

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise on the device, so that only uint8 pixels are transferred."""
        if "views" in batch:
            return {**batch, "views": [normalise(view) for view in batch["views"]]}
        return {**batch, "image": normalise(batch["image"])}

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return a loader that yields each validation photograph once; an empty list if there are none."""
        return self._evaluation_loader(self._datasets["val"]) if len(self._datasets["val"]) else []

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _rows(self, subset: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.photographs.split["subset"] == subset).astype(np.int64)

    def _dataset(self, rows: npt.NDArray[np.int64], view: View) -> StoreDataset:
        # Grades of the split, not of the manifest: the split settles disagreement between copies.
        grades = self.photographs.sides.table["grade"].iloc[rows].fillna(UNGRADED).astype(int).tolist()
        return StoreDataset(self.photographs.image_files, rows.tolist(), grades, view)

    def _loader(
        self, dataset: StoreDataset, sampler: StreamSampler | EvaluationSampler, batch_size: int
    ) -> DataLoader[Any]:
        workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_disable_opencv_threads,
            # A separate generator: starting a loader must not advance the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _workers(self) -> int:
        if self._num_workers != "auto":
            return int(self._num_workers)
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(1, cores // self._rank_and_world[1]))

    def _train_loader(
        self, dataset: StoreDataset, steps_per_epoch: int | None, weights: Sequence[float] | None = None
    ) -> DataLoader[Any]:
        rank, world = self._rank_and_world
        batch = local_batch_size(self.batch_size, len(dataset), world)
        length = batch * world * (steps_per_epoch or -(-len(dataset) // (batch * world)))
        sampler = StreamSampler(len(dataset), length, self.seed, weights=weights, rank=rank, world=world)
        return self._loader(dataset, sampler, batch)

    def _evaluation_loader(self, dataset: StoreDataset) -> DataLoader[Any]:
        rank, world = self._rank_and_world
        _check_shareable(len(dataset), world)
        sampler = EvaluationSampler(len(dataset), rank=rank, world=world)
        return self._loader(dataset, sampler, max(1, self.batch_size // world))


def _disable_opencv_threads(worker: int) -> None:
    # 0, not 1: a forked worker lacks the OpenCV threads of its parent and must not wait for them.
    cv2.setNumThreads(0)


def _check_shareable(count: int, world: int) -> None:
    # Lightning skips a process that has no batch; the other processes would wait for it indefinitely.
    if count < world:
        raise ConfigError(f"{count} photographs cannot be shared by {world} processes; use fewer processes")


class GradingDataModule(_StoreDataModule):
    """Graded photographs in the subsets of a split.

    Args:
        photographs: Stores and split.
        augment: Augmentation of training photographs; None for none.
        batch_size: Photographs in a batch over all processes. A learning rate therefore keeps its meaning
            when the number of devices changes.
        seed: Seed of order and augmentation.
        steps_per_epoch: Optimiser steps in an epoch; None for one pass over the training photographs.
        balanced: Sample all grades equally often.
        num_workers: Loader processes per training process. "auto" is 0 on the CPU, otherwise the number of
            available cores, at most 8.

    Raises:
        ConfigError: If ``steps_per_epoch`` is less than 1.
    """

    def __init__(
        self,
        photographs: Photographs,
        augment: Augmentation | None,
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        balanced: bool = False,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(photographs, batch_size, seed, num_workers)
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ConfigError(
                f"protocol.steps_per_epoch={steps_per_epoch} is less than 1; use null for one pass over the "
                "training photographs"
            )
        self._augment, self._steps, self.balanced = augment, steps_per_epoch, balanced
        self.tested = "test"
        """Dataset of the test loader: "test" or the name of an external data set."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the split and create the datasets.

        Raises:
            DataError: If the split is impossible.
        """
        view = AugmentedView(self._augment)
        for subset in ("train", "val", "test"):
            self._datasets[subset] = self._dataset(self._rows(subset), view)
        names = self.photographs.manifest["dataset"].to_numpy()
        external = self._rows("external")
        for name in self.external:
            self._datasets[name] = self._dataset(external[names[external] == name], view)
            # Here, so that a run fails before training and not after.
            _check_shareable(len(self._datasets[name]), self._rank_and_world[1])

    def grade_counts(self, subset: str) -> Tensor:
        """Count the photographs of each grade in ``train``, ``val`` or ``test``: (5,) int64."""
        return torch.bincount(torch.from_numpy(self._datasets[subset].grades), minlength=5)

    @property
    def external(self) -> list[str]:
        """Names of the external data sets."""
        return [source.name for source, role in self.photographs.roles if role == "external"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the augmented training stream."""
        dataset = self._datasets["train"]
        weights = balancing_weights(dataset.grades.tolist()) if self.balanced else None
        return self._train_loader(dataset, self._steps, weights)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader that yields each photograph of :attr:`tested` once."""
        return self._evaluation_loader(self._datasets[self.tested])


PRETRAIN_ON = ("train", "all")
"""Photographs available to pre-training: the training side of the split, or all photographs.

External data sets and photographs in a group with theirs are always excluded. The training side includes the
validation photographs. Their grades choose a checkpoint, but their pixels are not test data; without them
every validation set would need its own encoder, instead of one per fold.
"""


class PretextDataModule(_StoreDataModule):
    """Ungraded photographs in the views of a pretext.

    Args:
        photographs: Stores and split.
        views: Transform of a photograph into its views.
        batch_size: See :class:`GradingDataModule`, also for ``seed`` and ``num_workers``.
        seed: Seed of order and augmentation.
        pretrain_on: One of :data:`PRETRAIN_ON`.
        val_fraction: Share held out to monitor the pretext, in [0, 1).
        num_workers: Loader processes per training process.

    Raises:
        ConfigError: If ``pretrain_on`` or ``val_fraction`` is invalid.
    """

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
        super().__init__(photographs, batch_size, seed, num_workers)
        if pretrain_on not in PRETRAIN_ON:
            raise ConfigError(f"pretrain_on={pretrain_on!r} is neither 'train' nor 'all'")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"pretext.val_fraction={val_fraction} is not in [0, 1)")
        self.views, self._pretrain_on, self._val_fraction = views, pretrain_on, val_fraction

    def setup(self, stage: str | None = None) -> None:
        """Choose the photographs and hold some out.

        Raises:
            DataError: If no photograph is left to train on.
        """
        table = self.subsets()
        view = PretextView(self.views, self.photographs.manifest["clear"].to_numpy(dtype=float))
        side = self.photographs.sides.training_side.to_numpy()
        for subset in ("train", "val"):
            chosen = (table["subset"] == subset).to_numpy()
            rows = np.flatnonzero(chosen).astype(np.int64)
            graded = np.flatnonzero(chosen & side & table["grade"].notna().to_numpy()).astype(np.int64)
            self._datasets[subset] = self._dataset(rows, view)
            self._datasets[f"{subset}_whole"] = self._dataset(rows, AugmentedView(None))
            self._datasets[f"{subset}_graded"] = self._dataset(graded, AugmentedView(None))
        if not len(self._datasets["train"]):
            raise DataError(
                "no photograph is left to pre-train on; use pretrain_on=all or a smaller pretext.val_fraction"
            )

    def subsets(self) -> pd.DataFrame:
        """Return the split as pre-training uses it.

        Returns:
            Columns of the split; ``subset`` is "train", "val" (both of the pretext) or "test" for photographs
            that pre-training must not use.
        """
        return self._subsets.copy()

    @cached_property
    def _subsets(self) -> pd.DataFrame:
        sides = self.photographs.sides
        table = sides.table.copy()
        used = ~sides.foreign & (sides.training_side if self._pretrain_on == "train" else True)
        held_out = self._held_out_groups(table["group"][used])
        table["subset"] = np.where(~used, "test", np.where(table["group"].isin(held_out), "val", "train"))
        return table

    def _held_out_groups(self, groups: pd.Series) -> set[object]:
        if not self._val_fraction:
            return set()
        pairs = [(group, 0) for group in groups]
        return set(proportional_order(pairs, [self.photographs.spec.seed, 3], until=self._val_fraction))

    def photographs_hash(self) -> str:
        """Return the SHA-256 of the photographs that pre-training uses and of their subsets.

        It is equal for all label fractions and, with ``pretrain_on="all"``, for all folds.
        """
        used = self._subsets[self._subsets["subset"] != "test"]
        stores = self.photographs.store_numbers(used.index.to_numpy())
        rows = sorted(f"{i}\t{subset}" for i, subset in zip(used["image_id"], used["subset"], strict=True))
        pixels = [self.photographs.stores[number].pixels_sha256 for number in stores]
        return hashlib.sha256("\n".join([*pixels, *rows]).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the stream of training views; an epoch is one pass over the photographs."""
        return self._train_loader(self._datasets["train"], None)

    def whole_photographs(
        self, subset: Literal["train", "val"], *, graded: bool = False
    ) -> DataLoader[Any] | None:
        """Return a loader of unaugmented photographs, each once, for measuring features.

        Args:
            subset: Subset of the pretext.
            graded: Only graded photographs of the training side. Grades of test photographs are excluded even
                if pre-training uses the photographs themselves.

        Returns:
            None if there are fewer photographs than processes.
        """
        dataset = self._datasets[f"{subset}_{'graded' if graded else 'whole'}"]
        return self._evaluation_loader(dataset) if len(dataset) >= self._rank_and_world[1] else None
