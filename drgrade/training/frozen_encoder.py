"""Frozen encoders: batch statistics, a linear head before fine-tuning, and features for probes.

Photographs and encoders are shared by the runs of one process (:class:`RunCache`): reading them would take
longer than fitting a probe. The features of a store are computed once and kept in a file for all label
fractions, folds and protocols.
"""

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.artefacts import map_array
from drgrade.config import ROLES
from drgrade.data.datasets import UNGRADED, AugmentedView, EvaluationSampler, SampleIndex, StoreDataset
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.store import Store
from drgrade.data.transforms import normalise
from drgrade.errors import DataError, DrgradeError
from drgrade.files import allocate, file_sha256, locked, remove_partial_files, replacing, write_text
from drgrade.models.batch_norm import batch_norms, estimate_statistics
from drgrade.models.encoder import WEIGHTS, Encoder
from drgrade.models.heads import Head
from drgrade.models.probes import LinearProbe
from drgrade.progress import track
from drgrade.renames import canonical
from drgrade.runs.run_dir import versions
from drgrade.tasks import GradingTask
from drgrade.training.build import (
    instantiate,
    make_bare_trainer,
    make_encoder,
    make_photographs,
    seed_everything,
)
from drgrade.training.distributed import is_main_process

log = logging.getLogger(__name__)

_MOST = 4096
"""Largest number of photographs for the statistics; in the paper 1,000 to 10,000 are as accurate as more."""

_MAX_ENCODERS, _MAX_SPLITS = 4, 32
"""Number of entries in the cache; the oldest is dropped first."""

_VERSION = 1
"""Raise it when the same encoder gives other features of the same photographs."""

Floats = npt.NDArray[np.float32]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def statistics_rows(photographs: Photographs) -> npt.NDArray[np.int64]:
    """Choose the photographs (N,) for the statistics, as rows of the manifest, in random order.

    They are those of the training side of the split, whether graded or not, and so are equal for all label
    fractions and validation sets. Data sets of ``data.unlabelled`` are left out: the statistics are to be
    those of the photographs that will be graded. The order mixes grades and cameras within a batch; it
    depends on ``split.seed`` only.
    """
    side = photographs.sides.training_side.to_numpy(dtype=bool)
    rows = np.flatnonzero(side & (photographs.manifest["role"] == "labelled").to_numpy())
    return np.random.default_rng([photographs.spec.seed, 4]).permutation(rows)[:_MOST]


def statistics_key(photographs: Photographs, batch_size: int) -> str:
    """Return the SHA-256 of the photographs and batches that determine the statistics."""
    files = photographs.manifest["file_sha256"].iloc[statistics_rows(photographs)]
    return hashlib.sha256("\n".join([str(batch_size), *files]).encode()).hexdigest()


def estimate_encoder_statistics(
    encoder: Encoder, photographs: Photographs, batch_size: int, device: torch.device
) -> None:
    """Estimate an encoder's running statistics on whole photographs of the training side, without labels.

    A pretext leaves those of its views, which are masked, levelled and jittered; with them, features of whole
    photographs are worse than they could be. Photographs are not augmented. Every process of a run computes
    the same statistics.

    Args:
        encoder: Its running statistics are replaced; the weights do not change.
        photographs: Photographs of the run, with their split.
        batch_size: Photographs in a batch; a last, smaller one is left out.
        device: Device to compute on; the encoder stays there.
    """
    rows = statistics_rows(photographs)
    if len(rows) < 2:  # one photograph may have a single value per channel, and so no variance
        return
    size = min(batch_size, len(rows))
    batches = _batches(photographs, rows[: len(rows) // size * size], size, encoder.to(device))
    count = estimate_statistics(encoder, batches)
    if count and is_main_process():
        log.info("batch statistics: estimated on %d batches of photographs of the training side", count)


def fit_linear_head(
    task: GradingTask,
    head: Callable[..., Head],
    photographs: Photographs,
    batch_size: int,
    device: torch.device,
) -> None:
    """Fit the head to the features of the labelled photographs, before the encoder is trained with it.

    Linear probing, then fine-tuning (Kumar et al., "Fine-tuning can distort pretrained features and
    underperform out-of-distribution", ICLR 2022): gradients of a random head would change good features at
    first. The fit is that of ``protocol=linear``, with its penalty chosen on the validation photographs.

    Args:
        task: Its head, of one linear layer, is replaced; its encoder stays on the device.
        head: Creates such a head.
        photographs: Photographs of the run, with their split.
        batch_size: Photographs that are encoded at once.
        device: Device to compute on.
    """
    probe = LinearProbe(task.encoder.num_features, head)
    train, val = (
        _graded_features(task.encoder.to(device), photographs, subset, batch_size)
        for subset in ("train", "val")
    )
    fitted = probe.fit(*train, val if len(val[1]) else None)
    task.head.layers.load_state_dict(probe.head.layers.state_dict())
    if is_main_process():
        log.info("linear head: fitted to %d photographs, penalty %g", len(train[1]), fitted["penalty"])


@torch.no_grad()
def _graded_features(
    encoder: Encoder, photographs: Photographs, subset: str, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) float32 and grades (N,) of a subset, on the CPU."""
    chosen = photographs.split["subset"] == subset
    rows = np.flatnonzero(chosen).astype(np.int64)
    grades = photographs.split["grade"][chosen].astype("int64").to_numpy(copy=True)
    training = encoder.training
    encoder.eval()
    parts = [encoder(batch).float().cpu() for batch in _batches(photographs, rows, batch_size, encoder)]
    encoder.train(training)
    features = torch.cat(parts) if parts else torch.zeros(0, encoder.num_features)
    return features, torch.from_numpy(grades)


def _batches(
    photographs: Photographs, rows: npt.NDArray[np.int64], size: int, encoder: Encoder
) -> Iterator[Tensor]:
    """Yield photographs without augmentation, normalised, with the dtype and on the device of an encoder."""
    like = next(encoder.parameters())
    dataset = StoreDataset(
        photographs.image_files, rows.tolist(), [UNGRADED] * len(rows), AugmentedView(None)
    )
    for start in range(0, len(rows), size):
        pixels = [dataset[SampleIndex(i, None)]["image"] for i in range(start, min(start + size, len(rows)))]
        yield normalise(torch.stack(pixels).to(like.device)).to(like.dtype)


@dataclass(frozen=True)
class InitialEncoder:
    """An encoder with the first weights of a run; it must not be trained.

    Attributes:
        encoder: In evaluation mode.
        sha256: Hash of all its tensors, with their names, types and shapes; with estimated batch statistics
            also of the photographs that determine these.
    """

    encoder: Encoder
    sha256: str


class RunCache:
    """Cache of photographs, splits and encoders."""

    def __init__(self) -> None:
        self._collections: dict[str, Photographs] = {}
        self._splits: dict[tuple[str, SplitSpec], Photographs] = {}
        self._encoders: dict[str, InitialEncoder] = {}

    def photographs(self, cfg: DictConfig) -> Photographs:
        """Return the photographs of a run; stores are read and duplicates searched once."""
        settings = cast(dict[str, Any], OmegaConf.to_container(cfg.photographs, resolve=True))
        settings.pop("split")
        key = json.dumps([settings, *(_plain(cfg.data.get(role, [])) for role in ROLES)])
        spec = instantiate(cfg.split)
        assert isinstance(spec, SplitSpec)
        if key not in self._collections:
            self._collections[key] = make_photographs(cfg)
        if (key, spec) not in self._splits:
            whole = self._collections[key]
            _ = whole.manifest  # prepared here, and shared by all splits
            _put(self._splits, (key, spec), whole.split_by(spec), _MAX_SPLITS)
        return self._splits[key, spec]

    def encoder(self, cfg: DictConfig, photographs: Photographs, initial: Path | None) -> InitialEncoder:
        """Return the encoder that a run starts from, with the weights of a fine-tuning with the same seed.

        Args:
            cfg: The run's config. With ``protocol.precise_bn`` the batch statistics are estimated.
            photographs: Photographs of the run, with their split.
            initial: Folder or file of a pre-trained encoder; None for the weights that ``init`` names.

        Raises:
            EncoderError: If the pre-trained encoder does not fit, or the model does not exist.
        """
        weights = initial / WEIGHTS if initial is not None and initial.is_dir() else initial
        loaded = file_sha256(weights) if weights is not None and weights.is_file() else None
        # Random weights depend on the seed, and so may parts of an encoder that published weights lack.
        settings = [_plain(cfg.encoder), cfg.init, loaded, None if loaded else cfg.seed]
        precise = cfg.protocol.precise_bn and statistics_key(photographs, cfg.data.batch_size)
        settings.append(precise)
        key = json.dumps(settings, sort_keys=True)
        if key not in self._encoders:
            seed_everything(cfg.seed)
            encoder = make_encoder(cfg, initial).eval()
            sha256 = weights_hash(encoder)
            if precise and batch_norms(encoder):
                sha256 = hashlib.sha256(f"{sha256} {precise}".encode()).hexdigest()
                device = make_bare_trainer(cfg).strategy.root_device
                estimate_encoder_statistics(encoder, photographs, cfg.data.batch_size, device)
                encoder.cpu()
            _put(self._encoders, key, InitialEncoder(encoder, sha256), _MAX_ENCODERS)
        return self._encoders[key]


def weights_hash(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's tensors, buffers included; the device does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _put(kept: dict[K, V], key: K, value: V, most: int) -> None:
    while len(kept) >= most:
        kept.pop(next(iter(kept)))
    kept[key] = value


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


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
    waiting = f"waiting for another run that computes the same features ({path})"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), log.info, waiting):
            array = _read(path, store, initial.encoder)
            if array is not None:
                return array, False
            _compute(cfg, path, store, initial)
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
