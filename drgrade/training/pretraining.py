"""First weights of a run: pre-train an encoder, or find one that an earlier run has pre-trained."""

import hashlib
import json
import logging
import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from drgrade.artefacts import read_text
from drgrade.config import is_pretrained
from drgrade.data.datamodules import PretextDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DataError, DrgradeError, EncoderError
from drgrade.files import file_sha256, locked, remove_partial_files, replacing
from drgrade.models.encoder import CARD, WEIGHTS, is_complete_encoder, save_encoder, stated_origin
from drgrade.renames import canonical
from drgrade.runs.run_dir import (
    CHECKPOINTS,
    HASHES,
    LAST,
    PROVENANCE,
    SEEN,
    SPLIT,
    intact_checkpoints,
    read_json,
    start_run_dir,
    versions,
    write_metrics,
    write_provenance,
)
from drgrade.runs.settings import (
    IMAGENET,
    RANDOM,
    SSL,
    WITHOUT_EFFECT,
    first_weights,
    label_seed,
    weights_files,
)
from drgrade.tasks import PretextTask
from drgrade.training.build import (
    checkpoint_callbacks,
    final_status,
    instantiate,
    make_encoder,
    make_trainer,
    seed_everything,
)
from drgrade.training.distributed import (
    announce_no_pretraining,
    announce_pretraining,
    announced_pretraining,
    is_main_process,
    wait_for_all,
)
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


def find_initial_encoder(cfg: DictConfig, photographs: Photographs) -> Path | None:
    """Find the pre-trained encoder that a grading run starts from; pre-train it if ``init`` is ``ssl``.

    Returns:
        Folder or file of the encoder; None for ``init=random`` and ``init=imagenet``.

    Raises:
        DrgradeError: If the encoder does not exist, or was pre-trained on test photographs of this run
            without ``pretrain_on=all``.
    """
    if cfg.init in (RANDOM, IMAGENET):
        return None
    if cfg.init == SSL:
        return find_or_pretrain(cfg, photographs)
    path = Path(cfg.init)
    if not path.exists():
        raise ConfigError(
            f"init={cfg.init} is not one of random, imagenet, ssl, and there is no such file or folder"
        )
    weights = path / WEIGHTS if path.is_dir() else path
    if cfg.pretrain_on == "train" and pretraining_saw_test(weights, photographs):
        raise ConfigError(
            f"init={cfg.init}: its pre-training has seen photographs that this run tests on; "
            "pretrain_on=all allows it, and metrics.json records it"
        )
    return path


def find_or_pretrain(cfg: DictConfig, photographs: Photographs) -> Path:
    """Find the encoder of ``init=ssl``, or pre-train it.

    If several runs need the same encoder, one pre-trains it and the others wait. In a distributed run the
    first process decides, and the others join the pre-training, whether Lightning starts them during it or
    torchrun or SLURM has started them before.

    Returns:
        A folder with ``encoder.safetensors`` and ``encoder.json``.

    Raises:
        EncoderError: In a further process, if the encoder of the first one is not visible from here.
    """
    pretext = pretext_config(cfg, photographs)
    folder = Path(pretext.paths.run)
    if is_main_process():
        _pretrain_once(pretext, photographs, folder)
    elif announced_pretraining() == folder.name:
        pretrain(pretext, photographs, folder, _last_checkpoint(folder))
    elif not (folder / CARD).is_file():
        raise EncoderError(
            f"init=ssl: the first process of this run has an encoder in {folder.absolute()}, but this "
            "process sees none there; all machines of a run need the same paths.outputs"
        )
    return folder


def pretext_config(cfg: DictConfig, photographs: Photographs) -> DictConfig:
    """Return the config of the pre-training that a grading run needs; its folder is that of the encoder."""
    pretext = cfg.copy()
    OmegaConf.set_struct(pretext, False)
    pretext.task, pretext.init, pretext.resume = "pretext", cfg.pretext.init, None
    # An override such as trainer.max_epochs=2 applies to the grading run; the pretext has pretext.epochs.
    pretext.trainer.max_epochs, pretext.trainer.max_steps = cfg.pretext.epochs, cfg.pretext.max_steps
    pretext.paths.run = str(encoder_dir(pretext, photographs))
    pretext.name = f"{cfg.name}_pretraining"
    return pretext


def _pretrain_once(pretext: DictConfig, photographs: Photographs, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"waiting for another run that is pre-training the same encoder ({folder})"
    with locked(folder.with_suffix(".lock"), log.info, waiting):
        if is_complete_encoder(folder):
            log.info("encoder: found %s", folder)
            announce_no_pretraining()
            return
        (folder / CARD).unlink(missing_ok=True)  # of a damaged encoder
        limits = {"epochs": pretext.trainer.max_epochs, "steps": pretext.trainer.max_steps}
        length = ", or ".join(f"{limit} {unit}" for unit, limit in limits.items() if limit not in (None, -1))
        log.info("encoder: not found for these settings; pre-training for %s into %s", length, folder)
        with announce_pretraining(folder.name):
            pretrain(pretext, photographs, folder, _last_checkpoint(folder))


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of an interrupted pre-training, if its files are intact."""
    path = folder / CHECKPOINTS / f"{LAST}.ckpt"
    with suppress(DataError):
        if path.is_file() and read_json(folder / HASHES, "") and intact_checkpoints(folder):
            return path
    return None


def run_facts(cfg: DictConfig, photographs: Photographs, initial: Path | None) -> dict[str, Any]:
    """Return the facts that a run's metrics depend on, for ``metrics.json``.

    These are the cell of the table, and the hashes of data, split and first weights; ``initial`` is the
    result of :func:`find_initial_encoder`.
    """
    facts = {name: cfg[name] for name in ("label_fraction", "fold", "folds", "seed")}
    facts |= {"label_seed": label_seed(cfg), "protocol": cfg.protocol.name, "data": cfg.data.name}
    if cfg.protocol.get("shots") is not None:
        facts["shots"] = cfg.protocol.shots
    drawn = [
        source.name
        for source, role in photographs.roles
        if role == "labelled" and source.about and source.about.drawn
    ]
    facts |= {"drawings": ",".join(drawn)} if drawn else {}
    for source, role in photographs.roles[1:]:
        named = facts.get(f"data_{role}")
        facts[f"data_{role}"] = f"{named},{source.name}" if named else source.name
    facts |= {"data_hash": photographs.sha256, "split_hash": photographs.split_hash}
    facts |= {f"split/{remark.name}": remark.count for remark in photographs.remarks}
    if initial is None:
        init = first_weights(cfg)
        facts |= weights_facts(cfg)
        return {**facts, "init": init, "pretraining_saw_test": None if is_pretrained(cfg) else False}
    weights = initial / WEIGHTS if initial.is_dir() else initial
    saw = pretraining_saw_test(weights, photographs)
    if saw and is_main_process():
        log.info("note: pre-training has seen test photographs (without grades); metrics.json records it")
    facts |= {"init": str(cfg.init), "encoder_hash": file_sha256(weights), "pretraining_saw_test": saw}
    if cfg.init != SSL:
        return {**facts, "encoder_file": initial.name, "encoder_says": stated_origin(weights)}
    return {**facts, **weights_facts(cfg)}


def pretraining_saw_test(weights: Path, photographs: Photographs) -> bool | None:
    """Return True if an encoder was pre-trained on photographs that a run tests on, compared by file content.

    ``seen.txt`` lies beside the file with the weights; without it the result is None.
    """
    seen = weights.with_name(SEEN)
    if not seen.exists():
        return None
    learnt = set(read_text(seen, "pre-train again").split())
    tested = photographs.split["subset"].isin(["test", "external"]).to_numpy()
    return not learnt.isdisjoint(photographs.manifest["file_sha256"][tested])


def weights_facts(cfg: DictConfig) -> dict[str, str]:
    """Return name, hash and stated origin of each weights file in the config of an encoder."""
    facts: dict[str, str] = {}
    for setting, path in weights_files(cfg.encoder).items():
        file = Path(path)
        facts |= {f"{setting}_file": file.name, f"{setting}_hash": file_sha256(file)}
        facts[f"{setting}_says"] = stated_origin(file)
    return facts
