"""Estimate of the time that sweeps need: measured time of a step, times the number of steps."""

import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from drgrade.config import as_override
from drgrade.data.datamodules import PretextDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DrgradeError
from drgrade.files import write_text
from drgrade.models.encoder import CARD
from drgrade.processes import run_child
from drgrade.progress import format_duration, say, track
from drgrade.sweeps.cells import Cell, cell_command, error_line
from drgrade.sweeps.inline import InlineLauncher
from drgrade.sweeps.launcher import cell_environment
from drgrade.sweeps.sweeper import PlannedSweep
from drgrade.training.build import instantiate, is_probe
from drgrade.training.frozen_encoder import RunCache
from drgrade.training.pretraining import pretext_config
from drgrade.training.validation import rates_to_try

_FORWARD = 1 / 3
"""Cost of a forward pass relative to a training step; used for evaluation and frozen epochs."""

_PROBE_SECONDS, _START_SECONDS = 1.0, 9.0
"""Time to fit a probe, and to start a process for it; both are too short to be measured."""


@dataclass(frozen=True)
class Workload:
    """Work of one training of a cell; ``config`` has ``task: pretext`` for a pre-training.

    Attributes:
        epochs: Number of epochs; a fraction if the number of steps ends the training within an epoch.
        images: Number of images in training steps. Evaluated images and images of frozen epochs count
            as a third of an image.
    """

    cell: Cell
    config: DictConfig
    epochs: float
    images: float


@dataclass(frozen=True)
class TimeEstimate:
    """Estimate for one sweep: ``seconds`` is the total time if the cells run one after the other."""

    experiment: str
    cells: int
    pretrainings: int
    seconds: float
    parallel: int = 1


def estimate_sweeps(sweeps: Sequence[PlannedSweep], seconds: float) -> list[TimeEstimate]:
    """Estimate the time that sweeps need, with short runs that measure the time of a step.

    Photographs are prepared if necessary. A pre-training that several cells need counts once, in the first of
    the sweeps. Each short run trains for ``seconds``.

    Raises:
        DrgradeError: If the photographs, the split or a short run fail.
    """
    # All sweeps are counted before any run is measured, so that errors come early.
    encoders: dict[Path, Workload] = {}
    counted = [(sweep, *count_work(sweep, encoders)) for sweep in sweeps]
    return [_estimate(sweep, gradings, pretrainings, seconds) for sweep, gradings, pretrainings in counted]


def count_work(sweep: PlannedSweep, encoders: dict[Path, Workload]) -> tuple[list[Workload], list[Workload]]:
    """Count the work of a sweep.

    Args:
        sweep: The sweep.
        encoders: Pre-trainings of earlier sweeps, by folder of the encoder; those of this sweep are added.

    Returns:
        Workloads of the cells (probes have 0 epochs), and of the pre-trainings not yet in ``encoders``.

    Raises:
        DrgradeError: If photographs or split cannot be used, or a training would never end.
    """
    cache = RunCache()
    gradings, pretrainings = [], []
    for cell in track(sweep.waiting, len(sweep.waiting), "counting", f"cells of {sweep.experiment}"):
        cfg = sweep.plan.configs[cell]
        if cfg.task != "grading":
            raise ConfigError(f"task={cfg.task}: the cells of a table are grading runs; remove this")
        photographs = cache.photographs(cfg)
        gradings.append(_grading(cell, cfg, photographs))
        if cfg.init == "ssl":
            pretext = pretext_config(cfg, photographs)
            folder = Path(pretext.paths.run)
            if folder not in encoders and not (folder / CARD).is_file():
                encoders[folder] = _pretraining(cell, pretext, photographs)
                pretrainings.append(encoders[folder])
    return gradings, pretrainings


def _grading(cell: Cell, cfg: DictConfig, photographs: Photographs) -> Workload:
    if is_probe(cfg):
        return Workload(cell, cfg, 0, 0)
    counts = photographs.split["subset"].value_counts()
    train, val, test, external = (int(counts.get(name, 0)) for name in ("train", "val", "test", "external"))
    epochs, images = training_length(train, cfg.data.batch_size, cfg.trainer, cfg.protocol.steps_per_epoch)
    frozen = min(epochs, cfg.grading.task.frozen_epochs)
    evaluated = val * (math.ceil(epochs) + 1) + (test + external if cfg.test else 0)
    trained = images * (epochs - frozen + _FORWARD * frozen)
    trainings = len(rates_to_try(cfg.protocol.learning_rates or [0], validated=val > 0))
    return Workload(cell, cfg, trainings * epochs, trainings * (trained + _FORWARD * evaluated))


def _pretraining(cell: Cell, cfg: DictConfig, photographs: Photographs) -> Workload:
    data = instantiate(cfg.pretraining.datamodule, photographs=photographs)
    assert isinstance(data, PretextDataModule)
    counts = data.subsets()["subset"].value_counts()
    epochs, images = training_length(int(counts.get("train", 0)), cfg.pretext.batch_size, cfg.trainer)
    return Workload(cell, cfg, epochs, epochs * (images + _FORWARD * int(counts.get("val", 0))))


def training_length(
    photographs: int, batch_size: int, trainer: DictConfig, steps_per_epoch: int | None = None
) -> tuple[float, int]:
    """Count the epochs of a training and the images of an epoch.

    Args:
        photographs: Size of the training set.
        batch_size: Images of a batch over all processes; a batch is no larger than the training set.
        trainer: Config with ``max_epochs``, ``max_steps`` and ``accumulate_grad_batches``.
        steps_per_epoch: Batches of an epoch; None: one pass over the photographs.

    Returns:
        Epochs, with a fraction if ``max_steps`` ends the training within one; images of an epoch's steps.

    Raises:
        ConfigError: If neither epochs nor steps are limited.
    """
    if photographs < 1:
        return 0, 0  # the run fails and reports the reason
    batch = min(batch_size, photographs)
    batches = steps_per_epoch or math.ceil(photographs / batch)
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if max_epochs is None:
        max_epochs = 1000 if max_steps == -1 else -1  # Lightning's default
    limits = [max_epochs, max_steps / math.ceil(batches / trainer.accumulate_grad_batches)]
    if max(limits) < 0:
        raise ConfigError("trainer.max_epochs=-1 with trainer.max_steps=-1 never ends: limit one of them")
    return min(limit for limit in limits if limit >= 0), batches * batch


def _estimate(
    sweep: PlannedSweep, gradings: Sequence[Workload], pretrainings: Sequence[Workload], seconds: float
) -> TimeEstimate:
    trainings = [work for work in gradings if not is_probe(work.config)]
    start = 0.0 if isinstance(sweep.launcher, InlineLauncher) else _START_SECONDS
    total = (len(gradings) - len(trainings)) * (_PROBE_SECONDS + start)
    groups: dict[str, list[Workload]] = {}
    for work in (*trainings, *pretrainings):
        groups.setdefault(_speed_key(work.config), []).append(work)
    for group in groups.values():
        # The largest training has the fullest batches.
        speed = measure(sweep, max(group, key=lambda work: work.images), seconds)
        total += sum(speed.seconds(work) for work in group)
    return TimeEstimate(sweep.experiment, len(gradings), len(pretrainings), total, sweep.parallel)


def _speed_key(cfg: DictConfig) -> str:
    """Identify the settings that determine the time of a step."""
    nodes = [cfg.encoder] if cfg.task == "grading" else [cfg.encoder, cfg.pretext]
    settings = [OmegaConf.to_container(node, resolve=True) for node in nodes]
    return json.dumps([cfg.task, cfg.data.image_size, cfg.data.batch_size, *settings])


@dataclass(frozen=True)
class Speed:
    """Result of a short run, in seconds."""

    image: float
    """Time per image of a training step."""
    epoch: float
    """Time per epoch beside its steps, mostly for checkpoints."""
    start: float
    """Time of the process beside training; 0 for a pre-training, which a grading run does."""

    def seconds(self, work: Workload) -> float:
        """Return the time that a workload needs."""
        return self.start + work.epochs * self.epoch + work.images * self.image


def measure(sweep: PlannedSweep, work: Workload, seconds: float) -> Speed:
    """Measure the speed of a training with a short run from random weights, in a process of its own.

    The run trains for ``seconds``, and at least two epochs of three steps.

    Raises:
        DrgradeError: If the run fails, as the cells would.
    """
    task = work.config.task
    kind = "grading" if task == "grading" else "pre-training"
    say(f"measuring the speed of {kind} in {sweep.experiment}: {work.cell.name}")
    outputs = Path(sweep.config.paths.outputs)
    outputs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=outputs))  # on the disk that the cells will use
    try:
        own = _short_run(task, seconds, folder)
        names = {_name(override) for override in own}
        kept = [override for override in work.cell.overrides if _name(override) not in names]
        command = cell_command([*sweep.config.hydra.overrides.hydra, *kept, *own], folder)
        output, result = folder / "output.log", folder / StepTimer.FILE
        started = time.monotonic()
        with output.open("wb") as stream:
            status = run_child(command, stdout=stream, env=cell_environment(sweep.parallel))
        wall = time.monotonic() - started
        if status or not result.is_file():
            text = output.read_text(encoding="utf-8", errors="replace").strip()
            message = error_line(text) or text.rsplit("\n", 1)[-1] or "it printed nothing"
            raise DrgradeError(f"a short run to measure the speed has failed: {message}")
        speed = json.loads(result.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)
    start = wall - speed["seconds"] if task == "grading" else 0.0
    return Speed(speed["step"] / speed["images"], speed["epoch"], start)


def _short_run(task: str, seconds: float, folder: Path) -> list[str]:
    """Return the overrides that turn a cell into a short run."""
    timer = {"_target_": f"{__name__}.{StepTimer.__name__}", "folder": str(folder), "seconds": seconds}
    return [
        f"task={task}",
        "init=random",
        "test=false",
        "logger=none",
        "protocol.frozen_epochs=0",
        "protocol.learning_rates=null",
        "trainer.max_epochs=1000",
        "trainer.max_steps=-1",
        "trainer.num_sanity_val_steps=0",
        f"++callbacks.step_timer={as_override(timer)}",
        f"paths.encoders={as_override(str(folder / 'encoders'))}",
    ]


def _name(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


class StepTimer(Callback):
    """Writes the time of training steps to ``speed.json``, and stops after ``seconds`` and two epochs."""

    FILE = "speed.json"

    def __init__(self, folder: str, seconds: float) -> None:
        self._path, self._seconds = Path(folder) / self.FILE, seconds
        self._ends: list[tuple[int, float]] = []
        self._images = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Limit an epoch to three steps and one batch of validation."""
        trainer.limit_train_batches, trainer.limit_val_batches = 3, 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the end of a step, and stop all processes when the time is over."""
        self._images = max(self._images, len(batch["index"]) * trainer.world_size)
        self._ends.append((trainer.current_epoch, time.monotonic()))
        enough = len(self._ends) >= 6 and self._ends[-1][1] - self._ends[0][1] >= self._seconds
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(enough, all=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the median time of a step and of the pause between epochs; the first step is left out."""
        if not trainer.is_global_zero:
            return
        steps, pauses = list[float](), list[float]()
        for (epoch, start), (next_epoch, end) in itertools.pairwise(self._ends):
            (steps if epoch == next_epoch else pauses).append(end - start)
        step = statistics.median(steps or pauses)
        speed = {
            "images": self._images,
            "step": step,
            "epoch": max(0.0, statistics.median(pauses) - step),
            "seconds": self._ends[-1][1] - self._ends[0][1],
        }
        write_text(self._path, json.dumps(speed) + "\n")


def format_estimates(
    estimates: Sequence[TimeEstimate], now: datetime, notes: Mapping[str, str] | None = None
) -> str:
    """Format a table of estimates, with notes on experiments and the time at which all will be finished."""
    table = pd.DataFrame(
        [(each.experiment, each.cells, each.pretrainings, each.seconds) for each in estimates],
        columns=["experiment", "cells to run", "pre-trainings to run", "time"],
    )
    table.loc[len(table)] = ["total", *table.iloc[:, 1:].sum()]
    cells, seconds = table.iloc[-1][["cells to run", "time"]]
    lines = table.to_string(index=False, formatters={"time": format_duration}).splitlines()
    lines += [f"{name}: {note}" for name, note in (notes or {}).items()]
    if not cells:
        return "\n".join([*lines, "Nothing is left to run."])
    bound = ""
    if (parallel := max(each.parallel for each in estimates)) > 1:
        bound = f" at the latest: {parallel} cells run at a time, but are counted one after the other"
    return "\n".join([*lines, f"Done about {now + timedelta(seconds=seconds):%a %d %b %H:%M}{bound}."])
