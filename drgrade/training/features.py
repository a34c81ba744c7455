"""Features of a frozen encoder for all photographs of a store, computed once and kept in a file.

Runs with other label fractions, folds and protocols use the same file.
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

from drgrade.artefacts import map_array
from drgrade.data.datasets import UNGRADED, AugmentedView, EvaluationSampler, StoreDataset
from drgrade.data.photographs import Photographs
from drgrade.data.store import Store
from drgrade.data.transforms import normalise
from drgrade.errors import DataError, DrgradeError
from drgrade.files import allocate, remove_partial_files, replacing, write_text
from drgrade.models.encoder import Encoder
from drgrade.progress import track
from drgrade.renames import canonical
from drgrade.runs.run_dir import versions
from drgrade.training.build import make_bare_trainer
from drgrade.training.cache import InitialEncoder

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_VERSION = 1
"""Raise it when the same encoder gives other features of the same photographs."""


@dataclass(frozen=True)
class Features:
    """Features of a run's photographs.

    Attributes:
        files: File of each store, except those that are only pre-trained on.
        arrays: (N_k, D) float32 of each, memory-mapped.
        starts: Row of the manifest at which each store starts.
        images: Number of photographs encoded by this run.
        seconds: Time of that.
    """

    files: Sequence[Path]
    arrays: Sequence[Floats]
    starts: Sequence[int]
    images: int
    seconds: float

    def of(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the features (M, D) float32 of (M,) rows of the manifest."""
        features = np.empty((len(rows), self.arrays[0].shape[1]), np.float32)
        for array, start in zip(self.arrays, self.starts, strict=True):
            here = (rows >= start) & (rows < start + len(array))
            features[here] = array[rows[here] - start]
        return torch.from_numpy(features)


def find_or_compute(cfg: DictConfig, photographs: Photographs, initial: InitialEncoder) -> Features:
    """Return the features of a run's photographs, encoded in evaluation mode without augmentation.

    They are read from ``paths.outputs/features``, and computed if missing. If several runs need the same
    features, one computes them and the others wait.

    Raises:
        DataError: If they cannot be stored there.
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


def features_file(cfg: DictConfig, store: Store, initial: InitialEncoder) -> Path:
    """Return the path of a store's features, named by encoder, data set, size and key."""
    settings = canonical(_settings(cfg, store, initial))
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    encoder = str(cfg.encoder._target_).rsplit(".", 1)[-1].lower()
    name = f"{encoder}-{store.name}-{store.image_size}px-{key[:16]}.npy"
    return Path(cfg.paths.outputs) / "features" / name


def _settings(cfg: DictConfig, store: Store, initial: InitialEncoder) -> dict[str, Any]:
    """Return everything that the features depend on."""
    return {
        "weights": initial.sha256,
        "encoder": OmegaConf.to_container(cfg.encoder, resolve=True),
        "pixels": store.pixels_sha256,
        "image_size": store.image_size,
        "precision": cfg.trainer.precision,
        "version": _VERSION,
    }


def _read(path: Path, store: Store, encoder: Encoder) -> Floats | None:
    """Read stored features; None if they are missing or damaged."""
    try:
        array: Floats = map_array(path, "")
    except DataError:  # missing, or a power cut may leave an empty file
        return None
    valid = array.shape == (len(store), encoder.num_features) and array.dtype == np.float32
    return array if valid else None


def _compute_once(cfg: DictConfig, path: Path, store: Store, initial: InitialEncoder) -> tuple[Floats, bool]:
    """Return the features, and True if this run has computed them; runs with the same features wait."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another run that computes the same features (%s)", path)
            lock.acquire()
        try:
            array = _read(path, store, initial.encoder)
            if array is not None:
                return array, False
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


def _compute(cfg: DictConfig, path: Path, store: Store, initial: InitialEncoder) -> None:
    """Encode every photograph of a store, and move the complete file into place."""
    began = time.monotonic()
    remove_partial_files(path.parent, path.name)  # this process holds the lock
    with replacing(path) as partial:
        shape = (len(store), initial.encoder.num_features)
        array = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        allocate(partial)
        array[:] = np.nan  # so that a photograph that was left out is detected
        encode(cfg, store, initial.encoder, array)
        if not np.isfinite(array).all():
            raise DrgradeError(
                "the encoder gives features that are not finite: its pre-training has diverged, or "
                f"trainer.precision={cfg.trainer.precision} is not precise enough"
            )
        array.flush()
        card = {**_settings(cfg, store, initial), "seconds": time.monotonic() - began, "versions": versions()}
        write_text(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")


def encode(cfg: DictConfig, store: Store, encoder: Encoder, array: Floats) -> None:
    """Encode every photograph of a store with a copy of an encoder: the precision may convert weights.

    Args:
        cfg: The run's config: device, precision, batch size, memory format.
        store: N photographs.
        encoder: Not changed.
        array: (N, D), receives the features.
    """
    count = len(store)
    dataset = StoreDataset([store.images_file], range(count), [UNGRADED] * count, AugmentedView(None))
    loader = DataLoader(dataset, batch_size=cfg.data.batch_size, sampler=EvaluationSampler(count))
    task = _Encoding(copy.deepcopy(encoder), array, channels_last=cfg.channels_last)
    make_bare_trainer(cfg).predict(task, _TrackedLoader(loader, store), return_predictions=False)


class _Encoding(pl.LightningModule):
    """Encode photographs into an array."""

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


class _TrackedLoader:
    """A loader that shows its progress."""

    def __init__(self, loader: DataLoader[Any], store: Store) -> None:
        self._loader, self._store = loader, store

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = f"batches of the {len(self._store)} photographs of {self._store.name}"
        return track(self._loader, len(self), "encoding", batches)
