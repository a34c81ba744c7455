"""Where a run's first weights and its figures come from."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.files import file_sha256
from drgrade.models.encoder_file import WEIGHTS
from drgrade.runs.run_dir import SEEN
from drgrade.training.build import weights_files
from drgrade.training.distributed import is_main_process
from drgrade.training.pretraining import find_or_pretrain

log = logging.getLogger(__name__)


def initial_encoder(cfg: DictConfig, photographs: Photographs) -> Path | None:
    """Where the encoder's first weights come from.

    Args:
        cfg: Config of a grading run.
        photographs: Of the run.

    Returns:
        Folder or file of a pre-trained encoder; None for ``random`` and ``imagenet``.

    Raises:
        DrgradeError: If there is no such encoder, or it has seen what this run tests on without being allowed
            to.
    """
    if cfg.init in ("random", "imagenet"):
        return None
    if cfg.init == "ssl":
        return find_or_pretrain(cfg, photographs)
    path = Path(cfg.init)
    if not path.exists():
        raise ConfigError(
            f"init={cfg.init} is none of random, imagenet, ssl, and there is no such file or folder"
        )
    weights = path / WEIGHTS if path.is_dir() else path
    if cfg.pretrain_on == "train" and pretraining_saw_test(weights, photographs):
        raise ConfigError(
            f"init={cfg.init}: its pre-training has seen photographs that this run tests on; "
            "pretrain_on=all allows it, and metrics.json will say so"
        )
    return path


def provenance(cfg: DictConfig, photographs: Photographs, initial: Path | None) -> dict[str, Any]:
    """Where the figures come from: hashes of data, split and first weights, and the cell of the table.

    Args:
        cfg: The run's config.
        photographs: Of the run.
        initial: As :func:`initial_encoder` gave it.

    Returns:
        Entries of ``metrics.json``.
    """
    choices = {name: cfg[name] for name in ("label_fraction", "fold", "folds", "seed")}
    facts = {**choices, "protocol": cfg.protocol.name, "data": cfg.data.name}
    if cfg.protocol.get("shots") is not None:
        facts["shots"] = cfg.protocol.shots
    for source, role in photographs.roles[1:]:
        named = facts.get(f"data_{role}")
        facts[f"data_{role}"] = f"{named},{source.name}" if named else source.name
    facts |= {"data_hash": photographs.sha256, "split_hash": photographs.split_hash}
    facts |= {f"split/{remark.name}": remark.count for remark in photographs.remarks}
    if initial is None:
        untrained = cfg.init == "random" and not _has_weights(cfg.encoder)
        files = weights_files(cfg.encoder)
        facts |= {f"{setting}_hash": file_sha256(Path(path)) for setting, path in files.items()}
        return {**facts, "init": cfg.init, "pretraining_saw_test": False if untrained else None}
    weights = initial / WEIGHTS if initial.is_dir() else initial
    saw = pretraining_saw_test(weights, photographs)
    if saw and is_main_process():
        log.info("note: pre-training has seen test photographs (without their grades); metrics.json says so")
    return {**facts, "init": str(cfg.init), "encoder_hash": file_sha256(weights), "pretraining_saw_test": saw}


def _has_weights(encoder: DictConfig) -> bool:
    """Whether the encoder's own settings name a weights file or ask for published weights."""
    return any(
        _has_weights(value)
        if isinstance(value, DictConfig)
        else name in ("weights", "pretrained") and bool(value)
        for name, value in encoder.items()
    )


def pretraining_saw_test(weights: Path, photographs: Photographs) -> bool | None:
    """Whether an encoder was pre-trained on photographs that a run tests on, by the content of the files.

    Args:
        weights: An ``encoder.safetensors``, with the files of its run beside it.
        photographs: Of the run.

    Returns:
        None where no file beside the weights tells.
    """
    seen = weights.with_name(SEEN)
    if not seen.is_file():
        return None
    learnt = set(seen.read_text(encoding="utf-8").split())
    tested = photographs.split["subset"].isin(["test", "external"]).to_numpy()
    return not learnt.isdisjoint(photographs.manifest["file_sha256"][tested])
