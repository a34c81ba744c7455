"""Features of the frozen encoder, of all photographs of a store: computed once, kept, and found again.

They depend on the encoder's weights, its settings, the pixels and the precision, and on nothing else: so
every label fraction, fold and protocol finds the same file.
"""

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.data.datasets import UNGRADED, AugmentedView, EvaluationSampler, StoreDataset
from drgrade.data.normalisation import normalise
from drgrade.data.photographs import Photographs
from drgrade.data.store import Store
from drgrade.errors import DataError, DrgradeError
from drgrade.files import write_text
from drgrade.models.encoder import Encoder
from drgrade.progress import track
from drgrade.renames import canonical
from drgrade.runs.run_dir import versions
from drgrade.training.build import make
from drgrade.training.cache import Initial
from drgrade.training.distributed import cluster_environment

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_VERSION = 1
"""Raise it when the same encoder gives other features of the same photographs."""


@dataclass(frozen=True)
class Features:
    """Features of a run's photographs.

    Attributes:
        files: Of each store that the run needs, by its place among the run's stores.
        arrays: (N_k, D) float32 of each, memory-mapped.
        starts: Row of the manifest that each begins at.
        images: Photographs that were encoded for it now, not before.
        seconds: What that took.
    """

    files: Sequence[Path]
    arrays: Sequence[Floats]
    starts: Sequence[int]
    images: int
    seconds: float

    def of(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Features of some photographs.

        Args:
            rows: (M,) of the manifest, all in stores that the run needs.

        Returns:
            (M, D) float32.
        """
        found = np.empty((len(rows), self.arrays[0].shape[1]), np.float32)
        for array, start in zip(self.arrays, self.starts, strict=True):
            here = (rows >= start) & (rows < start + len(array))
            found[here] = array[rows[here] - start]
        return torch.from_numpy(found)


def find_or_compute(cfg: DictConfig, photographs: Photographs, initial: Initial) -> Features:
    """Features of a run's photographs as the encoder sees them: in evaluation, not augmented.

    Of data sets that are only pre-trained on there are none: no probe looks at them.

    Args:
        cfg: The run's config.
        photographs: Of the run.
        initial: Its encoder.

    Returns:
        The features, from ``paths.outputs/features``; computed if they are not there. If several runs ask for
        the same at the same time, one computes and the others wait.

    Raises:
        DataError: If they cannot be kept there.
        DrgradeError: If they are not finite.
    """
    files, arrays, starts = [], [], []
    start, images, began = 0, 0, time.monotonic()
    for store, (_, role) in zip(photographs.stores, photographs.roles, strict=True):
        if role != "unlabelled":
            path = features_file(cfg, store, initial)
            array = _read(path, store, initial.encoder)
            if array is None:
                array, computed = _compute_once(cfg, path, store, initial)
                images += len(store) if computed else 0
            files.append(path)
            arrays.append(array)
            starts.append(start)
        start += len(store)
    return Features(files, arrays, starts, images, time.monotonic() - began if images else 0.0)


def features_file(cfg: DictConfig, store: Store, initial: Initial) -> Path:
    """Where the features of a store are kept.

    Args:
        cfg: The run's config.
        store: The photographs.
        initial: The encoder.

    Returns:
        A file below ``paths.outputs/features``, named by encoder, data set, size and key.
    """
    settings = canonical(_key(cfg, store, initial))
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    encoder = str(cfg.encoder._target_).rsplit(".", 1)[-1].lower()
    name = f"{encoder}-{store.name}-{store.image_size}px-{key[:16]}.npy"
    return Path(cfg.paths.outputs) / "features" / name


def _key(cfg: DictConfig, store: Store, initial: Initial) -> dict[str, Any]:
    return {
        "weights": initial.sha256,
        "encoder": OmegaConf.to_container(cfg.encoder, resolve=True),
        "pixels": store.pixels_sha256,
        "image_size": store.image_size,
        "precision": cfg.trainer.precision,
        "version": _VERSION,
    }


def _read(path: Path, store: Store, encoder: Encoder) -> Floats | None:
    """What was computed before; None if that is not there, or damaged."""
    try:
        array = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):  # a power cut may leave an empty file
        return None
    sound = array.shape == (len(store), encoder.num_features) and array.dtype == np.float32
    return array if sound else None


def _compute_once(cfg: DictConfig, path: Path, store: Store, initial: Initial) -> tuple[Floats, bool]:
    """The features, and whether they were computed here rather than by another run."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another run that computes the same features (%s)", path)
            lock.acquire()
        try:
            found = _read(path, store, initial.encoder)
            if found is not None:
                return found, False
            _compute(cfg, path, store, initial)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"features cannot be kept in {path.parent}: {error.strerror or error}; make room, or choose "
            "another folder with paths.outputs=DIR"
        ) from error
    computed = _read(path, store, initial.encoder)
    assert computed is not None
    return computed, True


def _compute(cfg: DictConfig, path: Path, store: Store, initial: Initial) -> None:
    """Encode every photograph of a store, into a file that is there whole or not at all."""
    began = time.monotonic()
    partial = path.with_suffix(".partial")
    shape = (len(store), initial.encoder.num_features)
    array = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
    array[:] = np.nan  # what is left out must not pass for features
    encode(cfg, store, initial.encoder, array)
    if not np.isfinite(array).all():
        raise DrgradeError(
            "the encoder gives features that are not numbers: its pre-training has diverged, or "
            f"trainer.precision={cfg.trainer.precision} is too coarse for it"
        )
    array.flush()
    card = {**_key(cfg, store, initial), "seconds": time.monotonic() - began, "versions": versions()}
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    partial.replace(path)


def encode(cfg: DictConfig, store: Store, encoder: Encoder, array: Floats) -> None:
    """Encode every photograph of a store.

    Args:
        cfg: The run's config: device, precision, size of batches, memory format.
        store: The photographs.
        encoder: Stays as it is, wherever it is: a copy does the work, because precision may convert weights.
        array: (N, D), receives the features.
    """
    count = len(store)
    dataset = StoreDataset([store.images_file], range(count), [UNGRADED] * count, AugmentedView(None))
    loader = DataLoader(dataset, batch_size=cfg.data.batch_size, sampler=EvaluationSampler(count))
    trainer = make(
        cfg.trainer,
        callbacks=[],
        logger=False,
        plugins=[cluster_environment()],
        enable_progress_bar=False,
        enable_checkpointing=False,
        # Whatever a try-out leaves out, what is kept for later runs is whole.
        fast_dev_run=False,
        limit_predict_batches=None,
    )
    assert isinstance(trainer, pl.Trainer)
    task = _Encoding(copy.deepcopy(encoder), array, channels_last=cfg.channels_last)
    batches = _Tracked(loader, f"batches of the {count} photographs of {store.name}")
    trainer.predict(task, batches, return_predictions=False)


class _Encoding(pl.LightningModule):
    """Runs an encoder over photographs, and fills in an array."""

    def __init__(self, encoder: Encoder, array: Floats, channels_last: bool) -> None:
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder, self._array = encoder.eval().to(memory_format=self._format), array

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Encode a batch."""
        images = normalise(batch["image"]).to(self.dtype).contiguous(memory_format=self._format)
        features: Tensor = self.encoder(images).float().cpu()
        self._array[batch["index"].cpu().numpy()] = features.numpy()
        return features


class _Tracked:
    """A loader that shows how far it is."""

    def __init__(self, loader: DataLoader[Any], of: str) -> None:
        self._loader, self._of = loader, of

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return track(self._loader, len(self), "encoding", self._of)
