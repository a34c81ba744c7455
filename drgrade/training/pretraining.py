"""Pre-training: as a run of its own, and for a grading run that asks for ``init=ssl``."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from drgrade.data.datamodules import PretextDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DrgradeError, EncoderError
from drgrade.files import file_sha256
from drgrade.models.encoder_file import CARD, WEIGHTS, save_encoder
from drgrade.renames import canonical
from drgrade.runs.run_dir import (
    LAST,
    PROVENANCE,
    SEEN,
    SPLIT,
    check_hashes,
    versions,
    write_config,
    write_hashes,
    write_metrics,
    write_provenance,
    write_seen,
    write_split,
)
from drgrade.runs.settings import WITHOUT_EFFECT
from drgrade.tasks.pretext import PretextTask
from drgrade.training.build import (
    checkpoints,
    make,
    make_encoder,
    make_trainer,
    seed_everything,
    start_afresh,
    weights_files,
)
from drgrade.training.distributed import (
    announce_none,
    announced,
    announcement,
    is_main_process,
    wait_for_all,
)
from drgrade.training.tracking.session import watched

log = logging.getLogger(__name__)

_VERSION = 2
"""Raise it when the same settings give another encoder, because a pretext or its views have changed."""


def pretrain(
    cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Pre-train an encoder, and leave it in a folder.

    Args:
        cfg: Config with ``task: pretext``.
        photographs: What to learn from.
        folder: The run's folder.
        checkpoint: Go on from here.

    Returns:
        Metrics of the last epoch and ``status``, as in ``metrics.json``.

    Raises:
        DrgradeError: If photographs or encoder cannot be used.
    """
    first = first_weights(cfg)
    if "seed_each_epoch" in cfg.callbacks:
        cfg.callbacks.seed_each_epoch.seed = cfg.pretext.seed
    seed_everything(cfg.pretext.seed)
    data = make(cfg.pretraining.datamodule, photographs=photographs)
    assert isinstance(data, PretextDataModule)
    beginning = cfg.copy()
    beginning.init = first
    task = make(cfg.pretraining.task, encoder=make_encoder(beginning))
    assert isinstance(task, PretextTask)
    hashes = {"photographs_hash": data.photographs_hash()}
    if is_main_process():
        if checkpoint is not None:
            check_hashes(folder, hashes)
        start_afresh(folder, checkpoint)
        write_hashes(folder, hashes)
        subsets = data.subsets()
        write_split(folder, subsets)
        write_seen(folder, photographs.manifest["file_sha256"][subsets["subset"].ne("test").to_numpy()])
        write_config(folder, cfg)
    facts = {"data_hash": photographs.sha256, **hashes}
    with watched(cfg, folder, facts, resumed=checkpoint is not None) as watch:
        trainer, clock = make_trainer(cfg, folder, checkpoints(folder), watch.logger)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        metrics: dict[str, Any] = {
            name: float(value) for name, value in sorted(trainer.callback_metrics.items())
        }
        _refuse_diverged(task, metrics, folder)
        if is_main_process():
            key = encoder_key(cfg, data)
            metrics |= {"status": "finished", **facts}
            write_provenance(folder, **clock.cost(), steps=trainer.global_step, devices=trainer.world_size)
            write_metrics(folder, metrics)
            effort = {
                "steps": trainer.global_step,
                "images": clock.images,
                "encoder_inputs": task.pretext.encoder_inputs,
            }
            save_encoder(task.pretext.final_encoder(task.encoder), folder, _card(cfg, data, key, effort))
            watch.record = {**metrics, "encoder_hash": file_sha256(folder / WEIGHTS)}
    wait_for_all()
    return metrics


def first_weights(cfg: DictConfig) -> str:
    """What a pre-training starts from: ``init``, or ``pretext.init`` where that is left at ``random``.

    Args:
        cfg: Config with ``task: pretext``.

    Returns:
        ``random`` or ``imagenet``.

    Raises:
        ConfigError: If it is neither.
    """
    for name, value in (("init", cfg.init), ("pretext.init", cfg.pretext.init)):
        if value not in ("random", "imagenet"):
            raise ConfigError(f"{name}={value}: pre-training starts from init=random or init=imagenet")
    return str(cfg.pretext.init if cfg.init == "random" else cfg.init)


def _refuse_diverged(task: PretextTask, metrics: dict[str, Any], folder: Path) -> None:
    """An encoder that is not a number must not be kept, nor the checkpoint from which it would come again."""
    weights = all(bool(torch.isfinite(tensor).all()) for tensor in task.encoder.state_dict().values())
    if weights and all(map(math.isfinite, metrics.values())):
        return
    wait_for_all()
    if is_main_process():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    raise DrgradeError("pre-training has diverged (loss or weights not finite): lower pretext.optimizer.lr")


def pretrain_run(
    cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None
) -> dict[str, Any]:
    """Pre-train as a run of its own; later runs with ``init=ssl`` and the same settings find the encoder.

    Args:
        cfg: Config with ``task: pretext``.
        photographs: What to learn from.
        folder: The run's folder.
        checkpoint: Go on from here.

    Returns:
        As :func:`pretrain`.
    """
    metrics = pretrain(cfg, photographs, folder, checkpoint)
    if is_main_process():
        shared = encoder_folder(cfg, photographs)
        with FileLock(shared.with_suffix(".lock")):
            if not (shared / CARD).is_file():
                shared.mkdir(parents=True, exist_ok=True)
                for name in (
                    WEIGHTS,
                    SPLIT,
                    SEEN,
                    PROVENANCE,
                    CARD,
                ):  # the card last: it marks the folder as complete
                    shutil.copyfile(folder / name, shared / f"{name}.partial")
                    (shared / f"{name}.partial").replace(shared / name)
        log.info("encoder: %s (found by init=ssl with the same settings)", shared)
    return metrics


def find_or_pretrain(cfg: DictConfig, photographs: Photographs) -> Path:
    """Folder of the encoder that ``init=ssl`` means; pre-trains it, once, if there is none.

    Several runs may ask at the same time: one pre-trains and the others wait. Of the processes of a DDP run
    the first one decides and the others join it, whether Lightning starts them during the pre-training or
    torchrun or SLURM has started them already.

    Args:
        cfg: Config of a grading run.
        photographs: Of the run.

    Returns:
        A folder with ``encoder.safetensors`` and ``encoder.json``.

    Raises:
        EncoderError: In a further process, if the first one's encoder cannot be seen from here.
    """
    pretext = pretext_config(cfg, photographs)
    folder = Path(pretext.paths.run)
    if is_main_process():
        _pretrain_once(pretext, photographs, folder)
    elif announcement() == folder.name:
        pretrain(pretext, photographs, folder, _last_checkpoint(folder))
    elif not (folder / CARD).is_file():
        raise EncoderError(
            f"init=ssl: the first process of this run has an encoder in {folder.absolute()}, and this one "
            "sees none there; all machines of a run need the same paths.outputs"
        )
    return folder


def _pretrain_once(pretext: DictConfig, photographs: Photographs, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another run that is pre-training the same encoder (%s)", folder)
        lock.acquire()
    try:
        if (folder / CARD).is_file():
            log.info("encoder: found %s", folder)
            announce_none()
            return
        log.info(
            "encoder: none yet for these settings; pre-training it once (%s) into %s",
            _length(pretext.trainer),
            folder,
        )
        with announced(folder.name):
            pretrain(pretext, photographs, folder, _last_checkpoint(folder))
    finally:
        lock.release()


def _length(trainer: DictConfig) -> str:
    """How long a training is set to be, in words."""
    limits = {"epochs": trainer.max_epochs, "steps": trainer.max_steps}
    given = [f"{limit} {unit}" for unit, limit in limits.items() if limit not in (None, -1)]
    return ", or ".join(given) or "without an end"


def _last_checkpoint(folder: Path) -> Path | None:
    path = folder / "checkpoints" / f"{LAST}.ckpt"
    return path if path.is_file() else None


def pretext_config(cfg: DictConfig, photographs: Photographs) -> DictConfig:
    """Config of the pre-training that a grading run needs.

    Args:
        cfg: Config of a grading run.
        photographs: Of the run.

    Returns:
        The same config with ``task: pretext``, the pretext's own first weights and length, and the encoder's
        folder as the run's.
    """
    pretext = cfg.copy()
    OmegaConf.set_struct(pretext, False)
    pretext.task, pretext.init, pretext.resume = "pretext", cfg.pretext.init, None
    # An override such as trainer.max_epochs=2 is meant for the grading; the pretext has pretext.epochs.
    pretext.trainer.max_epochs, pretext.trainer.max_steps = cfg.pretext.epochs, cfg.pretext.max_steps
    pretext.paths.run = str(encoder_folder(pretext, photographs))
    pretext.name = f"{cfg.name}_pretraining"
    return pretext


def encoder_folder(cfg: DictConfig, photographs: Photographs) -> Path:
    """Where the encoder of a pre-training is kept for all runs.

    Args:
        cfg: Config with ``task: pretext``.
        photographs: What it learns from.

    Returns:
        A folder below ``paths.encoders``, named by pretext, encoder, size and key.
    """
    data = make(cfg.pretraining.datamodule, photographs=photographs)
    encoder = str(cfg.encoder._target_).rsplit(".", 1)[-1].lower()
    name = (
        f"{cfg.pretext.name}-{encoder}-{cfg.data.name}-{cfg.data.image_size}px-{encoder_key(cfg, data)[:12]}"
    )
    return Path(cfg.paths.encoders) / name


def encoder_key(cfg: DictConfig, data: PretextDataModule) -> str:
    """Key of a pre-trained encoder: everything that it depends on, and nothing else.

    Args:
        cfg: Config with ``task: pretext``.
        data: Its photographs.

    Returns:
        64 hexadecimal digits.
    """
    settings = {**_settings(cfg), "photographs": data.photographs_hash()}
    return hashlib.sha256(json.dumps(canonical(settings), sort_keys=True).encode()).hexdigest()


def _settings(cfg: DictConfig) -> dict[str, Any]:
    pretext = cast(dict[str, Any], OmegaConf.to_container(cfg.pretext, resolve=True))
    # Those of the trainer count, which may have been overridden, and `init` below.
    for name in ("epochs", "max_steps", "init"):
        pretext.pop(name)
    trainer = {name: value for name, value in cfg.trainer.items() if name not in WITHOUT_EFFECT}
    # Batch statistics: one set for a whole batch, or one for each process.
    shared = "strategy" not in cfg.trainer or (cfg.sync_batchnorm and cfg.trainer.accelerator != "cpu")
    return {
        "pretext": pretext,
        "encoder": _encoder_settings(cfg),
        "image_size": cfg.data.image_size,
        "pretrain_on": cfg.pretrain_on,
        "init": first_weights(cfg),
        "trainer": trainer,
        "normalised_apart": 1 if shared else _processes(cfg.trainer),
        "version": _VERSION,
    }


def _encoder_settings(cfg: DictConfig) -> Any:
    """Settings of the encoder; files of weights by their content, wherever they lie."""
    encoder = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg.encoder, resolve=True)))
    for setting, path in weights_files(encoder).items():
        if Path(path).is_file():  # else making the encoder says so
            OmegaConf.update(encoder, setting, file_sha256(Path(path)))
    settings = cast(dict[str, Any], OmegaConf.to_container(encoder))
    if settings.get("weights") is None:
        settings.pop("weights", None)  # no file is no setting: null says nothing of an encoder
    return settings


def _processes(trainer: DictConfig) -> Any:
    """How many processes a trainer is set to have, as a number or in its own words (``auto``)."""
    nodes = trainer.get("num_nodes", 1)
    return trainer.devices if nodes == 1 else f"{nodes} x {trainer.devices}"


def _card(cfg: DictConfig, data: PretextDataModule, key: str, effort: Mapping[str, float]) -> dict[str, Any]:
    """What goes into ``encoder.json``.

    Args:
        cfg: Config with ``task: pretext``.
        data: Its photographs.
        key: Of the encoder.
        effort: ``steps``: optimiser steps; ``images``: photographs that went through them, over all
            processes; ``encoder_inputs``: images that the encoder saw of each, in units of a whole one.
    """
    return {
        **_settings(cfg),
        "key": key,
        "data": cfg.data.name,
        "data_hash": data.photographs.sha256,
        "photographs_hash": data.photographs_hash(),
        "fold": cfg.fold if cfg.pretrain_on == "train" else None,
        **effort,
        "versions": versions(),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
