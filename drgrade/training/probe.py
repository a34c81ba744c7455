"""Fit a probe to the features of a frozen encoder, instead of fine-tuning.

The run writes the same files as any grading run; its checkpoint holds the encoder with the probe as its head.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import Tensor

from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.metrics.distributed import GradingMetrics, Predictions
from drgrade.models.probes import FittedHead
from drgrade.runs.run_dir import CHECKPOINTS, LAST, write_predictions, write_provenance
from drgrade.tasks import GradingTask
from drgrade.training.build import final_status, finish_run_dir, make_task, open_run_dir, save_checkpoint
from drgrade.training.frozen_encoder import Features, RunCache, find_or_compute
from drgrade.training.pretraining import run_facts
from drgrade.training.tracking.tracker import log_evaluation, tracked_run
from drgrade.training.validation import calibrate, calibrated_figures

log = logging.getLogger(__name__)

_UNUSED: Mapping[str, object] = {
    "protocol.epochs": 0,
    "protocol.steps_per_epoch": None,
    "protocol.steps": -1,
    "protocol.frozen_epochs": 0,
    "protocol.decay_norms": True,
    "protocol.gradient_clip": None,
    "protocol.probe_first": False,
    "protocol.learning_rates": None,
    "protocol.checkpoint": LAST,
    "protocol.layer_decay": None,
    "protocol.ema_decay": None,
    "data.balanced": False,
    "compile": False,
}
"""Settings of training, with the value that disables them."""

_BATCH_SIZE = 1024
"""Photographs graded at once; a k-nearest-neighbour probe compares each with all labelled ones."""


@dataclass(frozen=True)
class GradedFeatures:
    """N photographs of a subset: rows (N,) of the manifest, grades (N,), features (N, D), or (N, 0)."""

    rows: npt.NDArray[np.int64]
    features: Tensor
    grades: Tensor


def check_probe(cfg: DictConfig) -> None:
    """Raise ConfigError for a setting that has no effect where a probe is fitted."""
    name = cfg.protocol.name
    if "strategy" in cfg.trainer:
        raise ConfigError(
            f"protocol={name} fits a probe in one process: use trainer=auto, cpu or gpu "
            "(an encoder can be pre-trained with trainer=ddp beforehand: task=pretext)"
        )
    for setting, unused in _UNUSED.items():
        value = OmegaConf.select(cfg, setting)
        if value != unused:
            raise ConfigError(
                f"{setting}={value} has no effect with protocol={name}: the encoder is frozen and a probe is "
                f"fitted, not trained; leave it at {'null' if unused is None else str(unused).lower()}"
            )
    probe = get_class(cfg.protocol.probe._target_)
    if not issubclass(probe, FittedHead):
        raise ConfigError(f"protocol.probe._target_={cfg.protocol.probe._target_} is not a FittedHead")
    if not probe.needs_features and cfg.init != "random":
        raise ConfigError(
            f"init={cfg.init} has no effect with protocol={name}, which uses no photograph: init=random"
        )
    if "probe_sees_val" not in cfg.protocol:
        raise ConfigError(
            "protocol.probe_sees_val is missing: start from protocol=linear, knn, few_shot or majority"
        )


def fit_probe(
    cfg: DictConfig,
    photographs: Photographs,
    initial: Path | None,
    folder: Path,
    checkpoint: Path | None,
    cache: RunCache,
) -> dict[str, Any]:
    """Fit a probe to the labelled photographs, validate, calibrate and test.

    Args:
        cfg: Config with ``task: grading`` and a probe.
        photographs: Photographs of the run, with their split.
        initial: Folder or file of a pre-trained encoder.
        folder: The run's folder.
        checkpoint: Checkpoint of the run that this one repeats; its photographs must be the same.
        cache: Encoders shared with other runs.

    Returns:
        The content of ``metrics.json``.
    """
    frozen = cache.encoder(cfg, photographs, initial)
    task = make_task(cfg, frozen.encoder).eval()
    head = task.head
    assert isinstance(head, FittedHead)
    open_run_dir(cfg, photographs, folder, checkpoint)
    log.info("protocol=%s: nothing is trained; not used: %s", cfg.protocol.name, _unused_parts(cfg, head))
    facts = run_facts(cfg, photographs, initial)
    with tracked_run(cfg, folder, facts, resumed=checkpoint is not None) as tracked:
        began = time.monotonic()
        features = find_or_compute(cfg, photographs, frozen) if head.needs_features else None
        train, val = (select(photographs, features, subset) for subset in ("train", "val"))
        use_val = cfg.protocol.probe_sees_val and len(val.rows)
        fitted = head.fit(train.features, train.grades, (val.features, val.grades) if use_val else None)
        seconds = time.monotonic() - began
        _write_checkpoint(task, folder)
        record: dict[str, Any] = _evaluate(cfg, head, photographs, features, folder, tracked.logger)
        record |= {f"probe/{name}": value for name, value in fitted.items()}
        record |= {"checkpoint": f"{LAST}.ckpt", "status": final_status(cfg), **facts}
        tracked.record = record
        write_provenance(folder, **_cost(features, seconds), devices=1, encoder=str(initial or "") or None)
        finish_run_dir(folder, record)
    return record


def _unused_parts(cfg: DictConfig, head: FittedHead) -> str:
    # A linear probe takes loss and decoding of the head, and has no hidden layer.
    parts = ["head.hidden", "head.dropout"] if "head" in cfg.protocol.probe else ["head"]
    return ", ".join(
        ["optimizer", "schedule", "augment", *parts, *([] if head.needs_features else ["encoder"])]
    )


def select(
    photographs: Photographs, features: Features | None, subset: str, dataset: str | None = None
) -> GradedFeatures:
    """Return the photographs of a subset, or of one data set in it, in the order of the manifest."""
    table = photographs.split
    chosen = (table["subset"] == subset).to_numpy()
    if dataset is not None:
        chosen = chosen & (photographs.manifest["dataset"] == dataset).to_numpy()
    rows = np.flatnonzero(chosen).astype(np.int64)
    grades = torch.from_numpy(table["grade"].iloc[rows].astype("int64").to_numpy(copy=True))
    return GradedFeatures(rows, features.of(rows) if features else torch.zeros(len(rows), 0), grades)


def _evaluate(
    cfg: DictConfig,
    head: FittedHead,
    photographs: Photographs,
    features: Features | None,
    folder: Path,
    logger: Logger | bool,
) -> dict[str, float]:
    """Validate, calibrate and test a fitted probe; write and log its predictions."""
    loggers = [logger] if isinstance(logger, Logger) else []
    head.eval()
    train, val = (select(photographs, features, subset) for subset in ("train", "val"))
    figures = {"train/loss": float(head.loss(_logits(head, train), train.grades))}
    validated: Predictions | None = None
    if len(val.rows):
        metrics, validated = _grade(head, val, "val")
        figures |= metrics
        log_evaluation(loggers, "val", validated, photographs, step=0)
    calibration, cross_fitted = calibrate(folder, validated, photographs.split)
    figures |= cross_fitted
    external = [source.name for source, role in photographs.roles if role == "external"]
    for dataset in [None, *external] if cfg.test else []:
        name = "test" if dataset is None else f"external/{dataset}"
        graded = select(photographs, features, "external" if dataset else "test", dataset)
        metrics, predictions = _grade(head, graded, name)
        figures |= metrics | calibrated_figures(name, predictions, calibration, cross_fitted)
        write_predictions(folder, predictions, photographs.split["image_id"], dataset or "")
        log_evaluation(loggers, name, predictions, photographs, step=0)
    for each in loggers:
        each.log_metrics(figures, step=0)
        each.save()
    return figures


def _grade(head: FittedHead, graded: GradedFeatures, name: str) -> tuple[dict[str, float], Predictions]:
    """Return the metrics of one set, and the predictions from which they are computed."""
    logits = _logits(head, graded)
    # Thresholds fitted to the validation photographs must not be validated with them.
    predict = head.predict_unfitted if name == "val" else head.predict
    collector = GradingMetrics()
    rows = torch.from_numpy(graded.rows)
    collector.update(rows, head.probabilities(logits), predict(logits), graded.grades)
    metrics = {**collector.compute(), "loss": float(head.loss(logits, graded.grades))}
    return {f"{name}/{metric}": value for metric, value in metrics.items()}, collector.predictions()


@torch.no_grad()
def _logits(head: FittedHead, graded: GradedFeatures) -> Tensor:
    return torch.cat([head(part).float() for part in torch.split(graded.features, _BATCH_SIZE)])


def _write_checkpoint(task: GradingTask, folder: Path) -> None:
    """Write a checkpoint that Lightning can test."""
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "state_dict": task.state_dict(),
    }
    save_checkpoint(checkpoint, folder / CHECKPOINTS / f"{LAST}.ckpt")


def _cost(features: Features | None, seconds: float) -> dict[str, object]:
    """Return cost entries of ``provenance.json``; ``images`` counts the photographs encoded by this run."""
    encoded = features.images if features else 0
    return {
        "seconds": seconds,
        "images": encoded or None,
        "images_per_second": encoded / features.seconds if features and encoded else None,
        "peak_memory": None,
        "steps": 0,
        "features": [str(file) for file in features.files] if features else [],
    }
