"""A run that trains nothing: a probe is fitted to the features of the frozen encoder.

It leaves what any grading run leaves. Its checkpoint is one of an encoder with a head, so that whatever tests
a run tests this one too.
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
from torch import Tensor

from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.metrics.distributed import GradingMetrics, Predictions
from drgrade.models.probes import FittedHead
from drgrade.runs.run_dir import LAST, write_metrics, write_predictions, write_provenance
from drgrade.tasks.grading import GradingTask
from drgrade.training.build import grading_task, open_folder, warn_of_idle_data
from drgrade.training.cache import Shared
from drgrade.training.calibration import calibrate, calibrated_figures
from drgrade.training.features import Features, find_or_compute
from drgrade.training.init_weights import initial_encoder, provenance
from drgrade.training.tracking.session import Watch, show_in, watched

log = logging.getLogger(__name__)

_IDLE: Mapping[str, object] = {
    "protocol.epochs": 0,
    "protocol.steps_per_epoch": None,
    "protocol.frozen_epochs": 0,
    "protocol.checkpoint": LAST,
    "protocol.layer_decay": None,
    "protocol.ema_decay": None,
    "data.balanced": False,
    "compile": False,
}
"""Settings of training, with the value that leaves them out."""

_AT_ONCE = 1024
"""Photographs that are graded at once: neighbours are looked for among all labelled ones."""


@dataclass(frozen=True)
class _Graded:
    """Graded photographs of one subset.

    Attributes:
        rows: (N,) of the manifest, rising.
        features: (N, D), or (N, 0) for a probe that needs none.
        grades: (N,) int64.
    """

    rows: npt.NDArray[np.int64]
    features: Tensor
    grades: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def is_probe(cfg: DictConfig) -> bool:
    """Whether a grading run fits a probe instead of training.

    Args:
        cfg: The run's config.
    """
    return cfg.protocol.get("probe") is not None


def check_probe(cfg: DictConfig) -> None:
    """Refuse settings that mean nothing where a probe is fitted.

    Args:
        cfg: Config with ``task: grading`` and a probe.

    Raises:
        ConfigError: Naming the setting and what to do.
    """
    name = cfg.protocol.name
    if "strategy" in cfg.trainer:
        raise ConfigError(
            f"protocol={name} fits a probe, which is the work of one process: use trainer=auto, cpu or gpu "
            "(an encoder can be pre-trained with trainer=ddp beforehand: task=pretext)"
        )
    for setting, idle in _IDLE.items():
        value = OmegaConf.select(cfg, setting)
        if value != idle:
            raise ConfigError(
                f"{setting}={value} has no effect with protocol={name}: the encoder is frozen and a probe is "
                f"fitted, not trained; leave it at {'null' if idle is None else str(idle).lower()}"
            )
    probe = get_class(cfg.protocol.probe._target_)
    if not issubclass(probe, FittedHead):
        raise ConfigError(f"protocol.probe._target_={cfg.protocol.probe._target_} is no head that is fitted")
    if not probe.needs_features and cfg.init != "random":
        raise ConfigError(
            f"init={cfg.init} has no effect with protocol={name}, which looks at no photograph: init=random"
        )
    if "probe_sees_val" not in cfg.protocol:
        raise ConfigError(
            "protocol.probe_sees_val is missing: start from protocol=linear, knn, few_shot or majority"
        )


def fit_probe(
    cfg: DictConfig,
    photographs: Photographs,
    folder: Path,
    checkpoint: Path | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Fit a probe on the labelled photographs, validate, and test unless ``test`` is false.

    Args:
        cfg: Config with ``task: grading`` and a probe.
        photographs: What to learn from and test on.
        folder: The run's folder.
        checkpoint: Of the run that this one repeats; only its photographs are compared.
        shared: What runs of this process have in common.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        DrgradeError: If something is wrong that the user can mend.
    """
    warn_of_idle_data(cfg)
    initial = initial_encoder(cfg, photographs)
    begun = (shared or Shared()).encoder(cfg, initial)
    task = grading_task(cfg, begun.encoder).eval()
    head = task.head
    assert isinstance(head, FittedHead)
    open_folder(cfg, photographs, folder, checkpoint)
    log.info("%s", _announcement(cfg, head))
    facts = provenance(cfg, photographs, initial)
    unsaid = {name: value for name, value in facts.items() if name not in cfg}
    with watched(cfg, folder, unsaid, resumed=checkpoint is not None) as watch:
        began = time.monotonic()
        features = find_or_compute(cfg, photographs, begun) if head.needs_features else None
        settled = _fit(cfg, head, photographs, features)
        seconds = time.monotonic() - began
        _write_checkpoint(task, folder)
        figures = _figures(cfg, head, photographs, features, folder, watch)
        settled = {f"probe/{name}": value for name, value in settled.items()}
        watch.record = record = {
            **figures,
            **settled,
            "checkpoint": f"{LAST}.ckpt",
            "status": "finished",
            **facts,
        }
        write_provenance(folder, **_cost(features, seconds), devices=1, encoder=str(initial or "") or None)
        write_metrics(folder, record)
    return record


def _announcement(cfg: DictConfig, head: FittedHead) -> str:
    idle = ["optimizer", "schedule", "augment"]
    # A linear probe takes loss and reading of the head, and has no hidden layer.
    idle += ["head.hidden", "head.dropout"] if "head" in cfg.protocol.probe else ["head"]
    idle += [] if head.needs_features else ["encoder"]
    return f"protocol={cfg.protocol.name}: nothing is trained; not used: {', '.join(idle)}"


def _fit(
    cfg: DictConfig, head: FittedHead, photographs: Photographs, features: Features | None
) -> dict[str, float]:
    train, val = (_graded(photographs, features, subset) for subset in ("train", "val"))
    if cfg.protocol.probe_sees_val and len(val):
        return head.fit(train.features, train.grades, val.features, val.grades)
    return head.fit(train.features, train.grades)


def _graded(
    photographs: Photographs, features: Features | None, subset: str, dataset: str | None = None
) -> _Graded:
    """Photographs of a subset, and of one data set if it is named, in the order of the manifest."""
    table = photographs.split
    chosen = (table["subset"] == subset).to_numpy()
    if dataset is not None:
        chosen = chosen & (photographs.manifest["dataset"] == dataset).to_numpy()
    rows = np.flatnonzero(chosen).astype(np.int64)
    grades = torch.from_numpy(table["grade"].iloc[rows].astype("int64").to_numpy(copy=True))
    return _Graded(rows, features.of(rows) if features else torch.zeros(len(rows), 0), grades)


def _figures(
    cfg: DictConfig,
    head: FittedHead,
    photographs: Photographs,
    features: Features | None,
    folder: Path,
    watch: Watch,
) -> dict[str, float]:
    """Metrics of a fitted probe; its predictions are written and shown."""
    head.eval()
    train = _graded(photographs, features, "train")
    figures = {"train/loss": float(head.loss(_logits(head, train), train.grades))}
    val = _graded(photographs, features, "val")
    predictions: Predictions | None = None
    if len(val):
        found, predictions = _evaluate(head, val, "val")
        figures |= found
        _show(watch, "val", predictions, photographs)
    calibration, cross_fitted = calibrate(folder, predictions, photographs.split)
    figures |= cross_fitted
    evaluated: dict[str, tuple[str, _Graded]] = {}
    if cfg.test:
        evaluated["test"] = ("", _graded(photographs, features, "test"))
        for source, role in photographs.roles:
            if role == "external":
                those = _graded(photographs, features, "external", source.name)
                evaluated[f"external/{source.name}"] = (source.name, those)
    for name, (file, graded) in evaluated.items():
        found, predictions = _evaluate(head, graded, name)
        figures |= found | calibrated_figures(name, predictions, calibration)
        write_predictions(folder, predictions, photographs.split["image_id"], file)
        _show(watch, name, predictions, photographs)
    if watch.logger:
        watch.logger.log_metrics(figures, step=0)
        watch.logger.save()
    return figures


def _show(watch: Watch, name: str, predictions: Predictions, photographs: Photographs) -> None:
    if watch.logger:
        show_in([watch.logger], name, predictions, photographs, step=0)


def _evaluate(head: FittedHead, graded: _Graded, name: str) -> tuple[dict[str, float], Predictions]:
    """Metrics of one set by their names, and the results that they are computed from."""
    logits = _logits(head, graded)
    # What was fitted on the validation photographs must not be judged by them.
    read = head.predict_unfitted if name == "val" else head.predict
    collector = GradingMetrics()
    collector.update(torch.from_numpy(graded.rows), head.probabilities(logits), read(logits), graded.grades)
    found = {**collector.compute(), "loss": float(head.loss(logits, graded.grades))}
    return {f"{name}/{metric}": value for metric, value in found.items()}, collector.predictions()


@torch.no_grad()
def _logits(head: FittedHead, graded: _Graded) -> Tensor:
    return torch.cat([head(part).float() for part in torch.split(graded.features, _AT_ONCE)])


def _write_checkpoint(task: GradingTask, folder: Path) -> None:
    """Write what Lightning needs to test the encoder with its probe."""
    target = folder / "checkpoints" / f"{LAST}.ckpt"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "state_dict": task.state_dict(),
    }
    torch.save(checkpoint, partial)
    partial.replace(target)


def _cost(features: Features | None, seconds: float) -> dict[str, object]:
    """What goes into ``provenance.json``: ``images`` are those that this run has encoded, null if none."""
    encoded = features.images if features else 0
    return {
        "seconds": seconds,
        "images": encoded or None,
        "images_per_second": encoded / features.seconds if features and encoded else None,
        "peak_memory": None,
        "steps": 0,
        "features": [str(file) for file in features.files] if features else [],
    }
