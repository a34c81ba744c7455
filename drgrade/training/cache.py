"""Photographs and encoders shared by runs of one process: the cells of a sweep of probes.

Reading the photographs and making the encoder would take longer than the cell itself.
"""

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from drgrade.config import ROLES
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import SplitSpec
from drgrade.files import file_sha256
from drgrade.models.batch_norm import batch_norms
from drgrade.models.encoder import WEIGHTS, Encoder
from drgrade.training.build import (
    instantiate,
    make_bare_trainer,
    make_encoder,
    make_photographs,
    seed_everything,
)
from drgrade.training.frozen_encoder import estimate_encoder_statistics, statistics_key

_MAX_ENCODERS, _MAX_SPLITS = 4, 32
"""Number of entries kept; the oldest is dropped first."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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
