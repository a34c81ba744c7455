"""What the runs of one process have in common, so that it is read and made once.

A single run has nothing to share. A sweep of probes whose cells run one after the other in its own process
would otherwise read the same photographs and make the same encoder for every cell, which takes longer than
the cell.
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
from drgrade.models.encoder import Encoder
from drgrade.models.encoder_file import WEIGHTS
from drgrade.training.build import make, make_encoder, make_photographs, seed_everything

_ENCODERS, _SPLITS = 4, 32
"""So many are kept; the oldest goes first."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Initial:
    """An encoder as a run begins with it, which nobody may train.

    Attributes:
        encoder: In evaluation mode.
        sha256: Of all its tensors, with their names, types and shapes.
    """

    encoder: Encoder
    sha256: str


class Shared:
    """Photographs, splits and encoders that runs have in common."""

    def __init__(self) -> None:
        self._collections: dict[str, Photographs] = {}
        self._splits: dict[tuple[str, SplitSpec], Photographs] = {}
        self._encoders: dict[str, Initial] = {}

    def photographs(self, cfg: DictConfig) -> Photographs:
        """Photographs of a run; what their stores hold, and their copies, are found once.

        Args:
            cfg: The run's config.

        Returns:
            Stores and split, made on first use.

        Raises:
            ConfigError: If a further data set is not known, or the split makes no sense.
        """
        found = cast(dict[str, Any], OmegaConf.to_container(cfg.photographs, resolve=True))
        found.pop("split")
        key = json.dumps([found, *(_plain(cfg.data.get(role, [])) for role in ROLES)])
        spec = make(cfg.split)
        assert isinstance(spec, SplitSpec)
        if key not in self._collections:
            self._collections[key] = make_photographs(cfg)
        if (key, spec) not in self._splits:
            whole = self._collections[key]
            _ = whole.manifest  # prepared here, and shared by all splits of it
            _put(self._splits, (key, spec), whole.split_by(spec), _SPLITS)
        return self._splits[key, spec]

    def encoder(self, cfg: DictConfig, initial: Path | None) -> Initial:
        """The encoder that a run begins with, the same as a fine-tuning with this seed begins with.

        Args:
            cfg: The run's config.
            initial: Pre-trained encoder to load, a folder or a file; None: as ``init`` says.

        Returns:
            The encoder.

        Raises:
            EncoderError: If the pre-trained encoder does not fit, or there is no such model.
        """
        weights = initial / WEIGHTS if initial is not None and initial.is_dir() else initial
        loaded = file_sha256(weights) if weights is not None and weights.is_file() else None
        # Random weights follow the seed; so may parts of an encoder that published weights do not have.
        settings = [_plain(cfg.encoder), cfg.init, loaded, None if loaded else cfg.seed]
        key = json.dumps(settings, sort_keys=True)
        if key not in self._encoders:
            seed_everything(cfg.seed)
            encoder = make_encoder(cfg, initial).eval()
            _put(self._encoders, key, Initial(encoder, weights_hash(encoder)), _ENCODERS)
        return self._encoders[key]


def weights_hash(encoder: Encoder) -> str:
    """SHA-256 of an encoder's tensors, buffers included.

    Args:
        encoder: On any device.

    Returns:
        64 hexadecimal digits; the same wherever and however the weights were made.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _put(kept: dict[K, V], key: K, value: V, most: int) -> None:
    while len(kept) >= most:
        kept.pop(next(iter(kept)))
    kept[key] = value


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
