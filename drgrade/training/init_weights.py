"""Find the first weights of a grading run: a given encoder, or one that is pre-trained once for all runs."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from drgrade.artefacts import read_text
from drgrade.config import is_pretrained
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DataError, EncoderError
from drgrade.files import file_sha256
from drgrade.models.encoder import CARD, WEIGHTS, is_complete_encoder, stated_origin
from drgrade.runs.run_dir import CHECKPOINTS, HASHES, LAST, SEEN, intact_checkpoints, read_json
from drgrade.runs.settings import IMAGENET, RANDOM, SSL, first_weights, label_seed
from drgrade.training.build import weights_facts
from drgrade.training.distributed import (
    announce_no_pretraining,
    announce_pretraining,
    announced_pretraining,
    is_main_process,
)
from drgrade.training.pretraining import encoder_dir, pretrain

log = logging.getLogger(__name__)


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
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another run that is pre-training the same encoder (%s)", folder)
        lock.acquire()
    try:
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
    finally:
        lock.release()


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
