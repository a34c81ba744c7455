"""Pre-train an encoder, and keep it where later runs with the same settings find it."""

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from drgrade.data.datamodules import PretextDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DrgradeError
from drgrade.files import file_sha256, remove_partial_files, replacing
from drgrade.models.encoder import CARD, WEIGHTS, is_complete_encoder, save_encoder
from drgrade.renames import canonical
from drgrade.runs.run_dir import (
    CHECKPOINTS,
    PROVENANCE,
    SEEN,
    SPLIT,
    start_run_dir,
    versions,
    write_metrics,
    write_provenance,
)
from drgrade.runs.settings import WITHOUT_EFFECT, first_weights, weights_files
from drgrade.tasks.pretext import PretextTask
from drgrade.training.build import (
    checkpoint_callbacks,
    final_status,
    instantiate,
    make_encoder,
    make_trainer,
    seed_everything,
    weights_facts,
)
from drgrade.training.distributed import is_main_process, wait_for_all
from drgrade.training.tracking.tracker import tracked_run

log = logging.getLogger(__name__)

_VERSION = 2
"""Raise it when the same settings give another encoder, because a pretext or its views have changed."""


def pretrain(
    cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Pre-train an encoder, write it into a folder, and copy it to where ``init=ssl`` finds it.

    Args:
        cfg: Config with ``task: pretext``.
        photographs: Photographs to pre-train on.
        folder: The run's folder.
        checkpoint: Checkpoint to resume from.

    Returns:
        The content of ``metrics.json``: metrics of the last epoch, hashes and ``status``.

    Raises:
        DrgradeError: If photographs or encoder cannot be used, or the training diverges.
    """
    first = pretext_init(cfg)
    if "seed_each_epoch" in cfg.callbacks:
        cfg.callbacks.seed_each_epoch.seed = cfg.pretext.seed
    seed_everything(cfg.pretext.seed)
    data = instantiate(cfg.pretraining.datamodule, photographs=photographs)
    assert isinstance(data, PretextDataModule)
    encoder_cfg = cfg.copy()
    encoder_cfg.init = first
    task = instantiate(cfg.pretraining.task, encoder=make_encoder(encoder_cfg))
    assert isinstance(task, PretextTask)
    hashes = {"photographs_hash": data.photographs_hash()}
    if is_main_process():
        subsets = data.subsets()
        seen = photographs.manifest["file_sha256"][subsets["subset"].ne("test").to_numpy()]
        start_run_dir(folder, cfg, subsets, hashes, seen, checkpoint)
    facts = {"data_hash": photographs.sha256, **hashes, **weights_facts(cfg)}
    facts["init"] = first_weights(encoder_cfg)
    with tracked_run(cfg, folder, facts, resumed=checkpoint is not None) as tracked:
        callbacks = checkpoint_callbacks(folder / CHECKPOINTS)
        trainer, clock = make_trainer(cfg, folder, callbacks, tracked.logger)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        metrics: dict[str, Any] = clock.last_metrics(trainer)
        _check_finite(metrics, folder)
        if is_main_process():
            metrics |= {"status": final_status(cfg), **facts}
            write_provenance(folder, **clock.cost(), steps=trainer.global_step, devices=trainer.world_size)
            card = {
                **_encoder_settings(cfg),
                "key": encoder_key(cfg, data),
                "data": cfg.data.name,
                **facts,
                "fold": cfg.fold if cfg.pretrain_on == "train" else None,
                "steps": trainer.global_step,
                "images": clock.images,
                "encoder_inputs": task.pretext.encoder_inputs,
                "versions": versions(),
                "config": OmegaConf.to_container(cfg, resolve=True),
            }
            save_encoder(task.pretext.final_encoder(task.encoder), folder, card)
            _share(folder, _encoder_dir(cfg, data))
            tracked.record = {**metrics, "encoder_hash": file_sha256(folder / WEIGHTS)}
            write_metrics(folder, metrics)  # last: a run that is killed before is resumed
    wait_for_all()
    return metrics


def _share(folder: Path, shared: Path) -> None:
    """Copy the encoder of a run to where ``init=ssl`` finds it."""
    if folder.resolve() == shared.resolve():
        return
    shared.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(shared.with_suffix(".lock")):
        if not is_complete_encoder(shared):
            shared.mkdir(exist_ok=True)
            remove_partial_files(shared)
            # The card comes last: it marks the folder as complete.
            for name in (WEIGHTS, SPLIT, SEEN, PROVENANCE, CARD):
                with replacing(shared / name) as partial:
                    shutil.copyfile(folder / name, partial)
    log.info("encoder: %s (found by init=ssl with the same settings)", shared)


def pretext_init(cfg: DictConfig) -> str:
    """Return ``init`` of a pre-training, or ``pretext.init`` if that is ``random``.

    Raises:
        ConfigError: If ``init`` is neither ``random`` nor ``imagenet``.
    """
    if cfg.init not in ("random", "imagenet"):
        raise ConfigError(f"init={cfg.init}: pre-training starts from init=random or init=imagenet")
    return str(cfg.pretext.init if cfg.init == "random" else cfg.init)


def _check_finite(metrics: dict[str, Any], folder: Path) -> None:
    """Raise DrgradeError and remove the checkpoints if a metric is not finite."""
    if all(map(math.isfinite, metrics.values())):
        return
    wait_for_all()
    if is_main_process():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    raise DrgradeError("pre-training has diverged (a metric is not finite): lower pretext.optimizer.lr")


def encoder_dir(cfg: DictConfig, photographs: Photographs) -> Path:
    """Return the folder below ``paths.encoders`` where the encoder of a pre-training is kept.

    It is named by pretext, encoder, data set, size and key.
    """
    return _encoder_dir(cfg, instantiate(cfg.pretraining.datamodule, photographs=photographs))


def _encoder_dir(cfg: DictConfig, data: PretextDataModule) -> Path:
    encoder = str(cfg.encoder._target_).rsplit(".", 1)[-1].lower()
    key = encoder_key(cfg, data)[:12]
    return Path(cfg.paths.encoders) / (
        f"{cfg.pretext.name}-{encoder}-{cfg.data.name}-{cfg.data.image_size}px-{key}"
    )


def encoder_key(cfg: DictConfig, data: PretextDataModule) -> str:
    """Return the SHA-256 of everything that a pre-trained encoder depends on."""
    settings = {**_encoder_settings(cfg), "photographs": data.photographs_hash()}
    return hashlib.sha256(json.dumps(canonical(settings), sort_keys=True).encode()).hexdigest()


def _encoder_settings(cfg: DictConfig) -> dict[str, Any]:
    pretext = cast(dict[str, Any], OmegaConf.to_container(cfg.pretext, resolve=True))
    # The trainer's length counts, which may have been overridden, and `init` below.
    for name in ("epochs", "max_steps", "init"):
        pretext.pop(name)
    devices, nodes = cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
    # Batch statistics are those of the whole batch, or of the part of each process.
    shared = "strategy" not in cfg.trainer or (cfg.sync_batchnorm and cfg.trainer.accelerator != "cpu")
    processes = devices if nodes == 1 else f"{nodes} x {devices}"
    return {
        "pretext": pretext,
        "encoder": _architecture_settings(cfg),
        "image_size": cfg.data.image_size,
        "pretrain_on": cfg.pretrain_on,
        "init": pretext_init(cfg),
        "trainer": {name: value for name, value in cfg.trainer.items() if name not in WITHOUT_EFFECT},
        "normalised_apart": 1 if shared else processes,
        "version": _VERSION,
    }


def _architecture_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the encoder's settings; weights files are replaced by the hash of their content."""
    encoder = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg.encoder, resolve=True)))
    for setting, path in weights_files(encoder).items():
        if Path(path).is_file():  # making the encoder reports a missing file
            OmegaConf.update(encoder, setting, file_sha256(Path(path)))
    settings = cast(dict[str, Any], OmegaConf.to_container(encoder))
    if settings.get("weights") is None:
        settings.pop("weights", None)
    return settings
