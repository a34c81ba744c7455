"""Build the parts of a run from its config: photographs, encoder, task, callbacks and trainer."""

import inspect
import logging
import os
import random
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import hydra.utils
import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger

from drgrade.artefacts import is_number
from drgrade.config import further_sources, nearest
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import SUBSETS
from drgrade.errors import ConfigError, DataError, DrgradeError
from drgrade.files import checkpoint_fault, replacing
from drgrade.models.encoder import Encoder, load_encoder
from drgrade.models.grading_model import check_model_settings, model_class, model_settings, without_weights
from drgrade.runs.run_dir import (
    BEST,
    CHECKPOINTS,
    FINISHED,
    LAST,
    TRIAL,
    start_run_dir,
    write_metrics,
)
from drgrade.runs.settings import partial_settings
from drgrade.tasks import GradingTask
from drgrade.training.callbacks import Clock, DivergenceCheck, MovingAverage
from drgrade.training.distributed import (
    cluster_environment,
    is_main_process,
    supervise,
)

log = logging.getLogger(__name__)

_HARMLESS = (
    # Lightning 2.6 calls torch >= 2.10 in a way that torch deprecates.
    r".*isinstance\(treespec, LeafSpec\)",
    # On two cores, loading is fastest in the training process; num_workers=auto has chosen that.
    r".*does not have many workers",
    # A checkpoint is tested without the callbacks that have written it.
    r"Be aware that when using `ckpt_path`, callbacks used to create",
    # A resumed run writes into its own folder.
    r".*Checkpoint directory .* exists and is not empty",
    # Metrics are computed from results that are already gathered from all processes.
    r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True",
    # drgrade.training.distributed detects the processes itself.
    r"The `srun` command is available on your system",
)
"""Texts of known warnings, as regular expressions."""


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a config node; lists and dictionaries become plain Python ones.

    Args:
        node: Config with ``_target_``.
        **arguments: Further arguments, passed unchanged.

    Raises:
        ConfigError: If the class or function rejects an argument.
    """
    if not arguments:
        return hydra.utils.instantiate(node, _convert_="all")
    try:
        return hydra.utils.instantiate(node, _convert_="all", _partial_=True)(**arguments)
    except (TypeError, ValueError, MisconfigurationException, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{node._target_} refuses its settings: {reason}") from error


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)


def make_photographs(cfg: DictConfig) -> Photographs:
    """Make the photographs of a run; stores and split are made on first use."""
    photographs = instantiate(cfg.photographs, **further_sources(cfg))
    assert isinstance(photographs, Photographs)
    return photographs


def make_encoder(cfg: DictConfig, initial: Path | None = None) -> Encoder:
    """Make the encoder with its first weights.

    Args:
        cfg: The run's config. With ``init: imagenet`` the weights are those in the file ``encoder.weights``,
            or are downloaded.
        initial: Folder or file of a pre-trained encoder to load.

    Raises:
        EncoderError: If the pre-trained encoder does not fit, or the model does not exist.
    """
    download = cfg.init == "imagenet" and not cfg.encoder.get("weights")
    encoder = instantiate(cfg.encoder, pretrained=True) if download else instantiate(cfg.encoder)
    assert isinstance(encoder, Encoder)
    if initial is not None:
        card = load_encoder(encoder, initial)
        if is_main_process():
            log.info("encoder: all %s parameters loaded from %s", f"{card['matched']:,}", initial)
    return encoder


def make_task(cfg: DictConfig, encoder: Encoder) -> GradingTask:
    """Make the task of a grading run; its head is the protocol's probe if there is one."""
    probe = cfg.protocol.get("probe")
    head = {} if probe is None else {"head": instantiate(probe)}
    task = instantiate(cfg.grading.task, encoder=encoder, **head)
    assert isinstance(task, GradingTask)
    return task


def is_probe(cfg: DictConfig) -> bool:
    """Return True if a grading run fits a probe to a frozen encoder instead of fine-tuning."""
    return cfg.protocol.get("probe") is not None


_SET_BY_DRGRADE = {
    "logger": "use logger=NAME",
    "callbacks": "use +callbacks.NAME._target_=CLASS",
    "default_root_dir": "use hydra.run.dir=DIR",
    "enable_checkpointing": "protocol.checkpoint chooses the checkpoint",
    "enable_progress_bar": "~callbacks.progress removes the bar",
    "plugins": "leave it out",
    "barebones": "leave it out",
    "model_registry": "leave it out",
    "reload_dataloaders_every_n_epochs": "leave it out",
    "val_check_interval": "an epoch ends with a validation, and protocol.steps_per_epoch is its length",
}
_FALSE = {
    "sync_batchnorm": "the top-level sync_batchnorm=true does this, and keeps activations",
    "use_distributed_sampler": "photographs are distributed already, without repetition",
}
"""Arguments of Lightning's Trainer that a config must not set, or not to true, and what to do instead."""


def check_trainer(cfg: DictConfig) -> None:
    """Check the arguments for Lightning's Trainer in a config.

    Raises:
        ConfigError: If an argument is unknown or drgrade's own, or if nothing or not everything would be
            trained or tested.
    """
    for name in ("devices", "num_nodes"):
        if cfg.trainer.get(name, 1) != 1 and "strategy" not in cfg.trainer:
            raise ConfigError(
                f"trainer.{name}={cfg.trainer[name]}: for several devices use trainer=ddp or trainer=ddp_cpu"
            )
    from_environment = sorted(name for name in os.environ if name.startswith("PL_TRAINER_"))
    if from_environment:
        raise ConfigError(f"{from_environment[0]}: unset this variable, and set trainer.NAME=VALUE instead")
    partial = partial_settings(cfg)
    if partial:
        raise ConfigError(
            f"{partial[0]} would give figures of a part of the photographs or of the training: leave it out "
            "(debug=default tries a run in two steps; protocol.steps_per_epoch makes a short one)"
        )
    known = [*inspect.signature(pl.Trainer).parameters, "_target_"]
    for name, value in cfg.trainer.items():
        if name not in known:
            raise ConfigError(
                f"trainer.{name}: Lightning's Trainer has no such argument; {nearest(str(name), known)}"
            )
        advice = _SET_BY_DRGRADE.get(str(name)) or (_FALSE.get(str(name)) if value else None)
        if advice:
            raise ConfigError(f"trainer.{name}={value} is not allowed: {advice}")
    if cfg.trainer.get("check_val_every_n_epoch", 1) == 0:
        raise ConfigError(
            "trainer.check_val_every_n_epoch=0 is not allowed; protocol.val_fraction=0 validates nothing"
        )
    if isinstance(cfg.trainer.get("strategy"), str):
        raise ConfigError(f"trainer.strategy={cfg.trainer.strategy}: use trainer=ddp or trainer=ddp_cpu")
    if cfg.task == "pretext" or not is_probe(cfg):
        _check_length("trainer", cfg.trainer)
    if cfg.task == "grading" and cfg.init == "ssl":
        _check_length("pretext", {"max_epochs": cfg.pretext.epochs, "max_steps": cfg.pretext.max_steps})


def check_loadable(cfg: DictConfig) -> None:
    """Check that the trained model can be loaded again (:mod:`drgrade.models.grading_model`).

    A class outside drgrade gives a warning, because a package that offers it may be installed later.

    Raises:
        ConfigError: If a setting of encoder or head would be refused afterwards.
    """
    encoder, head = model_settings(cast(Any, OmegaConf.to_container(cfg, resolve=True)))
    targets = [part.get("_target_") for part in (encoder, head)]
    foreign = [str(target) for target in targets if model_class(target) is None]
    if foreign:
        log.warning(
            "%s: predict, evaluate, export and publish will refuse this run, unless an installed package "
            "offers this class as an entry point (docs/security.md)",
            " and ".join(foreign),
        )
        return
    try:
        check_model_settings(without_weights(encoder), head)
    except DataError as error:
        raise ConfigError(
            f"{error}: the run could be trained, but not be loaded afterwards (docs/security.md)"
        ) from error


def check_learning_rates(cfg: DictConfig) -> None:
    """Raise ConfigError if ``protocol.learning_rates`` is invalid or contradicts another setting."""
    rates = cfg.protocol.get("learning_rates")
    if rates is None:
        return
    if not rates or len(set(rates)) != len(rates) or not all(is_number(each, 0) and each for each in rates):
        raise ConfigError(
            f"protocol.learning_rates={list(rates)}: give different rates above 0, or null for optimizer.lr"
        )
    if not OmegaConf.is_interpolation(cfg.optimizer, "lr"):
        raise ConfigError(
            f"optimizer.lr={cfg.optimizer.get('lr')} has no effect with protocol={cfg.protocol.name}, which "
            f"tries protocol.learning_rates={list(rates)}: set protocol.learning_rates=[RATE] or null"
        )
    if "search" in cfg.callbacks:
        raise ConfigError(
            "protocol.learning_rates: a search chooses the learning rate itself; set "
            "protocol.learning_rates=null and search optimizer.lr"
        )
    if "batchnorm_momentum" in cfg.callbacks:
        raise ConfigError("callbacks.batchnorm_momentum needs one training: protocol.learning_rates=null")


def _check_length(group: str, length: Mapping[Any, Any]) -> None:
    """Raise ConfigError if nothing would be trained, or if the training would not end."""
    epochs, steps = length["max_epochs"], length["max_steps"]
    names = f"{group}.{'max_epochs' if group == 'trainer' else 'epochs'}={epochs}, {group}.max_steps={steps}"
    if epochs == 0 or steps == 0:
        raise ConfigError(f"{names}: nothing would be trained (protocol=linear or knn fits a probe instead)")
    if epochs in (None, -1) and steps == -1:
        raise ConfigError(f"{names}: the training would not end; limit one of them")


def make_trainer(
    cfg: DictConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Literal[False] = False,
) -> tuple[pl.Trainer, Clock]:
    """Make the trainer with the callbacks of the config; return also the clock among its callbacks.

    Args:
        cfg: The run's config.
        folder: The run's folder.
        callbacks: Further callbacks: those that write checkpoints.
        logger: Receives the metrics.
    """
    clock = Clock()
    from_config = [instantiate(node) for node in cfg.callbacks.values()]
    every: list[Callback] = [*from_config, clock, DivergenceCheck(), *callbacks]
    decay = OmegaConf.select(cfg, "protocol.ema_decay")
    if cfg.task == "grading" and decay is not None:
        every.append(MovingAverage(decay))
    trainer = instantiate(
        cfg.trainer,
        callbacks=every,
        logger=logger,
        default_root_dir=folder,
        plugins=[cluster_environment(), CheckpointFiles()],
        # Without a progress bar of ours, Lightning would add its own.
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in every),
        enable_checkpointing=bool(callbacks),
    )
    assert isinstance(trainer, pl.Trainer)
    # With max_steps Lightning resumes as if within an epoch, whose number and random numbers then repeat; all
    # checkpoints here are of the end of an epoch.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    supervise(trainer)
    return trainer, clock


def make_bare_trainer(cfg: DictConfig) -> pl.Trainer:
    """Make a trainer that keeps nothing: no callbacks, logger or checkpoints; its device is the config's."""
    trainer = instantiate(
        cfg.trainer,
        callbacks=[],
        logger=False,
        plugins=[cluster_environment()],
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    assert isinstance(trainer, pl.Trainer)
    return trainer


def checkpoint_callbacks(checkpoints: Path, monitor: str | None = None) -> list[Callback]:
    """Make the callbacks that write ``last.ckpt`` into a folder and, to maximise a metric, ``best.ckpt``."""
    keep = partial(ModelCheckpoint, checkpoints, enable_version_counter=False)
    last = keep(filename=LAST, save_on_train_epoch_end=True)
    if monitor is None:
        return [last]
    return [last, keep(filename=BEST, monitor=monitor, mode="max", save_on_train_epoch_end=False)]


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its target and rename it.

    Raises:
        OSError: If it cannot be written.
    """
    # With a path instead of an open file, torch raises a RuntimeError without the cause.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, staged in their own folder.

    Lightning stages a checkpoint in ``$TMPDIR`` and moves it. From another file system, a move is a copy over
    the last good checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """See :func:`save_checkpoint`; there are no ``storage_options``."""
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options} has no effect on local files")
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *arguments: Any, **more: Any) -> dict[str, Any]:
        """Load a checkpoint after its checksums have been compared.

        Raises:
            DataError: If it is damaged.
        """
        content, fault = {}, checkpoint_fault(Path(path))
        if fault is None:
            try:
                content = super().load_checkpoint(path, *arguments, **more)
                fault = _missing_part(content)
            except Exception as error:  # a file of anything else raises errors of many types
                fault = str(error).split("\n", 1)[0] or type(error).__name__
        if fault is not None:
            raise DataError(f"{path} is damaged ({fault}); train again without resume=")
        return content


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Raise DataError if Lightning cannot restore a training from a checkpoint of a run's folder."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        called = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = [code.co_name for code in called if code.co_filename.endswith("checkpoint_connector.py")]
        restored = any(name.lstrip("_").startswith(("restore", "resume")) for name in names)
        if not restored or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = str(error).split("\n", 1)[0]
        raise DataError(
            f"a checkpoint in {folder / CHECKPOINTS} does not fit the run ({reason}); "
            "train again without resume="
        ) from error


_PARTS: Mapping[str, type] = {
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}


def _missing_part(content: object) -> str | None:
    """Return what a checkpoint of Lightning would have; None if it has all of it."""
    parts = content if isinstance(content, Mapping) else {}
    for name, kind in _PARTS.items():
        if not isinstance(parts.get(name), kind):
            return f"it has no {name}"
    return None


def open_run_dir(cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None) -> None:
    """Log the split of a grading run and write the files of a run that starts into its folder.

    Raises:
        DataError: If the resumed run used other photographs or another split.
    """
    if not is_main_process():
        return
    split, split_hash = photographs.split, photographs.split_hash
    counts = split["subset"].value_counts()
    listed = ", ".join(f"{subset} {counts[subset]}" for subset in SUBSETS if subset in counts)
    log.info("photographs: %s (split %s)", listed, split_hash[:12])
    for remark in photographs.remarks:
        log.log(logging.WARNING if remark.serious else logging.INFO, "split: %s", remark.text)
    hashes = {"data_hash": photographs.sha256, "split_hash": split_hash}
    learnt = split["subset"].isin(["train", "val"]).to_numpy()
    start_run_dir(folder, cfg, split, hashes, photographs.manifest["file_sha256"][learnt], checkpoint)
    if cfg.data.unlabelled and cfg.init != "ssl":
        log.warning("data.unlabelled is not used: init=%s pre-trains nothing (init=ssl does)", cfg.init)


def final_status(cfg: DictConfig) -> str:
    """Return the status of a run that has reached its end; ``trial`` is no result."""
    return TRIAL if cfg.get("trial") else FINISHED


def finish_run_dir(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the model card of a finished grading run, then ``metrics.json``.

    The status in ``metrics.json`` comes last, so that a run that is killed before has no result and is
    resumed. An error of the model card is logged, because the training itself has succeeded.
    """
    from drgrade.model_card.card import MODEL_CARD, write_model_card

    if record["status"] == FINISHED:
        try:
            write_model_card(folder, record=record)
        except DrgradeError as error:
            log.warning("%s was not written: %s", MODEL_CARD, error)
    write_metrics(folder, record)


def silence_known_warnings() -> None:
    """Silence Lightning's notices about devices and checkpoints, and known, harmless warnings."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
