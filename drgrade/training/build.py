"""Makes the parts of a run from its config."""

import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger

from drgrade.config import further_sources
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import SUBSETS
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.models.encoder_file import load_encoder
from drgrade.runs.run_dir import (
    BEST,
    LAST,
    check_hashes,
    write_config,
    write_hashes,
    write_seen,
    write_split,
)
from drgrade.tasks.grading import GradingTask
from drgrade.training.callbacks.ema import MovingAverage
from drgrade.training.callbacks.progress import Clock
from drgrade.training.distributed import cluster_environment, is_main_process

log = logging.getLogger(__name__)


def make(node: DictConfig, **given: Any) -> Any:
    """Instantiate a config node, lists and dictionaries as plain Python ones.

    Args:
        node: Has ``_target_``.
        **given: Further arguments, handed over as they are.

    Returns:
        The object.

    Raises:
        ConfigError: If it refuses a setting.
    """
    if not given:
        return instantiate(node, _convert_="all")
    try:
        return instantiate(node, _convert_="all", _partial_=True)(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{node._target_} refuses its settings: {error}") from error


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch.

    Args:
        seed: The run's seed.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)


def make_photographs(cfg: DictConfig) -> Photographs:
    """Describe the photographs of a run.

    Args:
        cfg: The run's config.

    Returns:
        Stores and split, made on first use.

    Raises:
        ConfigError: If a further data set is not known.
    """
    photographs = make(cfg.photographs, **further_sources(cfg))
    assert isinstance(photographs, Photographs)
    return photographs


def make_encoder(cfg: DictConfig, init: Path | None = None) -> Encoder:
    """Make the encoder with the initial weights that ``init`` asks for.

    Args:
        cfg: The run's config. With ``init: imagenet`` and a file in ``encoder.weights`` it is the file's
            weights, without a download.
        init: Pre-trained encoder to load, a folder or a file.

    Returns:
        The encoder.

    Raises:
        EncoderError: If the pre-trained encoder does not fit, or there is no such model.
    """
    published = cfg.init == "imagenet" and not cfg.encoder.get("weights")
    encoder = make(cfg.encoder, pretrained=True) if published else make(cfg.encoder)
    assert isinstance(encoder, Encoder)
    if init is not None:
        card = load_encoder(encoder, init)
        if is_main_process():
            log.info("encoder: %s parameters loaded from %s, all that it has", f"{card['matched']:,}", init)
    return encoder


def grading_task(cfg: DictConfig, encoder: Encoder) -> GradingTask:
    """Make the task of a grading run, whose head is the protocol's probe if it has one.

    Args:
        cfg: The run's config.
        encoder: Of the run.

    Returns:
        The task.

    Raises:
        ConfigError: If a setting of it makes no sense.
    """
    probe = cfg.protocol.get("probe")
    given = {} if probe is None else {"head": make(probe)}
    task = make(cfg.grading.task, encoder=encoder, **given)
    assert isinstance(task, GradingTask)
    return task


def weights_files(encoder: DictConfig) -> dict[str, str]:
    """Local weights files that an encoder's settings name.

    Args:
        encoder: Its config.

    Returns:
        Setting, below the encoder: path.
    """
    found: dict[str, str] = {}
    for name, value in encoder.items():
        if isinstance(value, DictConfig):
            found |= {f"{name!s}.{setting}": path for setting, path in weights_files(value).items()}
        elif name == "weights" and value:
            found["weights"] = str(value)
    return found


def without_weights(encoder: DictConfig) -> DictConfig:
    """An encoder's settings for a model whose weights come from elsewhere: no file of theirs need be there.

    Args:
        encoder: Its config; it is left as it is.

    Returns:
        A copy that names no weights file.
    """
    encoder = encoder.copy()
    for setting in weights_files(encoder):
        OmegaConf.update(encoder, setting, None)
    return encoder


def make_trainer(
    cfg: DictConfig,
    folder: Path,
    checkpoints: Sequence[Callback] = (),
    logger: Logger | Literal[False] = False,
) -> tuple[pl.Trainer, Clock]:
    """Make the trainer with its callbacks.

    Args:
        cfg: The run's config.
        folder: The run's folder.
        checkpoints: Callbacks that write checkpoints.
        logger: Gets the curves.

    Returns:
        The trainer, and the clock among its callbacks.
    """
    clock = Clock()
    callbacks: list[Callback] = [make(node) for node in cfg.callbacks.values()]
    callbacks += [clock, *checkpoints]
    decay = OmegaConf.select(cfg, "protocol.ema_decay")
    if cfg.task == "grading" and decay is not None:
        callbacks.append(MovingAverage(decay))
    trainer = make(
        cfg.trainer,
        callbacks=callbacks,
        logger=logger,
        default_root_dir=folder,
        plugins=[cluster_environment()],
        # Without ours Lightning would add its own.
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_checkpointing=bool(checkpoints),
    )
    assert isinstance(trainer, pl.Trainer)
    return trainer, clock


def checkpoints(folder: Path, monitor: str | None = None) -> list[Callback]:
    """Callbacks that keep the last epoch, and the best one.

    Args:
        folder: The run's folder; they write to ``checkpoints/`` in it.
        monitor: Metric whose highest value is the best; None to keep only the last epoch.

    Returns:
        One or two callbacks.
    """
    folder = folder / "checkpoints"
    last = ModelCheckpoint(folder, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    if monitor is None:
        return [last]
    best = ModelCheckpoint(
        folder,
        filename=BEST,
        monitor=monitor,
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    return [last, best]


def start_afresh(folder: Path, checkpoint: Path | None) -> None:
    """Remove checkpoints that an earlier run may have left in the folder, unless this run goes on from them.

    Args:
        folder: The run's folder.
        checkpoint: What the run goes on from.
    """
    if checkpoint is None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def warn_of_idle_data(cfg: DictConfig) -> None:
    """Say so if photographs were named that nothing learns from.

    Args:
        cfg: Config with ``task: grading``.
    """
    if cfg.data.unlabelled and cfg.init != "ssl" and is_main_process():
        log.warning(
            "data.unlabelled is not learnt from: init=%s pre-trains nothing (init=ssl does)",
            cfg.init,
        )


def open_folder(cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None) -> None:
    """Tell what the run learns from and is tested on, and write that into its folder.

    Args:
        cfg: Config with ``task: grading``.
        photographs: Of the run.
        folder: The run's folder.
        checkpoint: What the run goes on from.

    Raises:
        DataError: If it goes on from a run of other photographs, or another split of them.
    """
    if not is_main_process():
        return
    log.info("photographs: %s", _counts(photographs))
    for remark in photographs.remarks:
        log.log(logging.WARNING if remark.serious else logging.INFO, "split: %s", remark.text)
    hashes = {"data_hash": photographs.sha256, "split_hash": photographs.split_hash}
    if checkpoint is not None:
        check_hashes(folder, hashes)
    start_afresh(folder, checkpoint)
    write_split(folder, photographs.split)
    write_hashes(folder, hashes)
    learnt = photographs.split["subset"].isin(["train", "val"]).to_numpy()
    write_seen(folder, photographs.manifest["file_sha256"][learnt])
    write_config(folder, cfg)


def _counts(photographs: Photographs) -> str:
    counts = photographs.split["subset"].value_counts()
    listed = ", ".join(f"{subset} {counts[subset]}" for subset in SUBSETS if subset in counts)
    return f"{listed} (split {photographs.split_hash[:12]})"
