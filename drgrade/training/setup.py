"""Makes the parts of a run from its config."""

import logging
import random
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger

from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.models.artefact import load_encoder
from drgrade.models.encoder import Encoder
from drgrade.training.callbacks import Clock
from drgrade.training.processes import is_main_process

log = logging.getLogger(__name__)

LAST, BEST = "last", "best"


def make(node: DictConfig, **given: Any) -> Any:
    """Instantiate a config node, lists and dictionaries as plain Python ones.

    Args:
        node: Has ``_target_``.
        **given: Further arguments, handed over as they are.

    Returns:
        The object.
    """
    if not given:
        return instantiate(node, _convert_="all")
    return instantiate(node, _convert_="all", _partial_=True)(**given)


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
        Store and split, made on first use.
    """
    photographs = make(cfg.photographs)
    assert isinstance(photographs, Photographs)
    return photographs


def make_encoder(cfg: DictConfig, init: Path | None = None) -> Encoder:
    """Make the encoder with the initial weights that ``init`` asks for.

    Args:
        cfg: The run's config.
        init: Pre-trained encoder to load, a folder or a file.

    Returns:
        The encoder.

    Raises:
        EncoderError: If the pre-trained encoder does not fit, or there is no such model.
    """
    encoder = make(cfg.encoder, pretrained=True) if cfg.init == "imagenet" else make(cfg.encoder)
    assert isinstance(encoder, Encoder)
    if init is not None:
        card = load_encoder(encoder, init)
        if is_main_process():
            log.info("encoder: %s parameters loaded from %s, all that it has", f"{card['matched']:,}", init)
    return encoder


def make_trainer(cfg: DictConfig, folder: Path, *, monitor: str | None) -> tuple[pl.Trainer, Clock]:
    """Make the trainer with its callbacks and logger.

    Args:
        cfg: The run's config.
        folder: The run's folder; checkpoints go below it.
        monitor: Metric whose highest value chooses the best checkpoint; None to keep only the last.

    Returns:
        The trainer, and the clock among its callbacks.
    """
    clock = Clock()
    callbacks: list[Callback] = [make(node) for node in cfg.callbacks.values()]
    callbacks += [clock, *_checkpoints(folder / "checkpoints", monitor)]
    logger = make(cfg.logger) if is_main_process() else False
    if isinstance(logger, Logger):
        logger.log_hyperparams(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    bar = any(
        isinstance(callback, ProgressBar) for callback in callbacks
    )  # without one Lightning would add its own
    trainer = make(
        cfg.trainer, callbacks=callbacks, logger=logger, default_root_dir=folder, enable_progress_bar=bar
    )
    assert isinstance(trainer, pl.Trainer)
    return trainer, clock


def _checkpoints(folder: Path, monitor: str | None) -> list[Callback]:
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


def resume_checkpoint(cfg: DictConfig) -> Path | None:
    """Checkpoint that ``resume=`` asks for.

    Args:
        cfg: The run's config.

    Returns:
        The checkpoint, or None.

    Raises:
        ConfigError: If there is none.
    """
    if cfg.resume is None:
        return None
    path = Path(cfg.resume)
    if path.is_dir():
        path = path / "checkpoints" / f"{LAST}.ckpt"
    if not path.is_file():
        raise ConfigError(
            f"resume={cfg.resume}: there is no checkpoint at {path}; give a run's folder or a .ckpt file"
        )
    return path


def finish_logging() -> None:
    """Close W&B's run, if there is one: the next run of this process needs its own."""
    if "wandb" in sys.modules:
        import wandb

        wandb.finish()
