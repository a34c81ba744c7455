"""What a sweep still has to do: its cells, and the pre-trainings that they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from drgrade.config import CONF
from drgrade.data.datamodules import PretextDataModule
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.models.artefact import CARD
from drgrade.progress import track
from drgrade.sweeps.cells import Cell
from drgrade.sweeps.estimate import Training, training_length
from drgrade.sweeps.inline import InlineLauncher
from drgrade.sweeps.launcher import LocalLauncher
from drgrade.sweeps.naming import AXES
from drgrade.sweeps.sweeper import CellSweeper, Plan
from drgrade.training.build import make
from drgrade.training.cache import Shared
from drgrade.training.pretraining import pretext_config
from drgrade.training.probe import is_probe

_NOT_OF_GRADING = ("pretext",)
_NOT_OF_PRETRAINING = ("protocol", "head", "augment", "optimizer", "schedule")
"""Groups whose settings do not change how fast the other task is: one row of a table stands for several."""


@dataclass(frozen=True)
class Sweep:
    """An experiment that is to be swept.

    Attributes:
        experiment: Its name.
        plan: Its cells.
        waiting: Those that are not finished.
        hydra_overrides: Overrides of Hydra's own settings.
        outputs: Folder of all outputs.
        here: Whether the cells run on this machine.
        parallel: Cells at the same time, if so.
        inline: Whether they run in the process of the sweep.
    """

    experiment: str
    plan: Plan
    waiting: Sequence[Cell]
    hydra_overrides: Sequence[str]
    outputs: Path
    here: bool
    parallel: int
    inline: bool = False


@dataclass(frozen=True)
class Job:
    """Something to be done.

    Attributes:
        cell: That does it.
        group: The settings of the cell's own that may change its speed.
        training: What it is.
    """

    cell: Cell
    group: tuple[str, ...]
    training: Training


@dataclass(frozen=True)
class Workload:
    """What a sweep still has to do.

    Attributes:
        cells: A job for each cell that is not finished and that trains something.
        pretrainings: Encoder's folder: the job of making it.
        probes: Cells that fit a probe instead.
    """

    cells: Sequence[Job]
    pretrainings: Mapping[Path, Job]
    probes: int = 0


def plan_sweep(experiment: str, overrides: Sequence[str]) -> Sweep:
    """Find out what ``python train.py -m +experiment=...`` would run, without running it.

    Args:
        experiment: Name of an experiment of ``conf/experiment``.
        overrides: As on the command line.

    Returns:
        The sweep.

    Raises:
        ConfigError: If that is no table of cells, or a setting makes no sense.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        assert own is not None
        config = own.compose_config("train", [f"+experiment={experiment}", *overrides], RunMode.MULTIRUN)
        if str(config.hydra.sweeper._target_).rsplit(".", 1)[-1] != CellSweeper.__name__:
            raise ConfigError(f"+experiment={experiment} is a search: a table needs hydra/sweeper=cells")
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=own.config_loader, callbacks=Callbacks()),
            task_function=lambda cfg: None,
            config=config,
        )
        assert isinstance(sweeper, CellSweeper)
        plan = sweeper.plan(list(map(str, config.hydra.overrides.task)))
        waiting = plan.waiting()
        launcher = sweeper.launcher
        inline = isinstance(launcher, InlineLauncher)
        here = inline or isinstance(launcher, LocalLauncher)
        parallel = launcher.at_a_time(len(waiting)) if isinstance(launcher, LocalLauncher) and waiting else 1
    outputs = Path(config.paths.outputs)
    return Sweep(
        experiment, plan, waiting, list(config.hydra.overrides.hydra), outputs, here, parallel, inline
    )


def workload(sweep: Sweep) -> Workload:
    """Look at what each cell learns from; photographs are prepared if they are not.

    Args:
        sweep: Planned.

    Returns:
        What is to be done.

    Raises:
        DrgradeError: If photographs or split cannot be used.
    """
    shared, probes = Shared(), 0
    cells: list[Job] = []
    pretrainings: dict[Path, Job] = {}
    for cell in track(sweep.waiting, len(sweep.waiting), "looking at", f"cells of {sweep.experiment}"):
        cfg = sweep.plan.configs[cell]
        if cfg.task != "grading":
            raise ConfigError(f"task={cfg.task}: a table is made of grading runs; leave this out")
        photographs = shared.photographs(cfg)
        if is_probe(cfg):
            probes += 1
        else:
            cells.append(Job(cell, _group(cell, _NOT_OF_GRADING), grading(cfg, photographs)))
        if cfg.init == "ssl":
            pretext = pretext_config(cfg, photographs)
            folder = Path(pretext.paths.run)
            if folder not in pretrainings and not (folder / CARD).is_file():
                own = _group(cell, _NOT_OF_PRETRAINING)
                pretrainings[folder] = Job(cell, own, pretraining(pretext, photographs))
    return Workload(cells, pretrainings, probes)


def grading(cfg: DictConfig, photographs: Photographs) -> Training:
    """What a grading run does.

    Args:
        cfg: Its config.
        photographs: Of the run.

    Returns:
        Its training.
    """
    counts = photographs.split["subset"].value_counts()
    train, val, test, external = (int(counts.get(name, 0)) for name in ("train", "val", "test", "external"))
    length = training_length(
        train,
        cfg.data.batch_size,
        cfg.trainer.max_epochs,
        cfg.trainer.max_steps,
        steps_per_epoch=cfg.protocol.steps_per_epoch,
        accumulated=cfg.trainer.accumulate_grad_batches,
        frozen_epochs=cfg.protocol.frozen_epochs,
    )
    return Training(length, val * (length.epochs + 1) + (test + external if cfg.test else 0))


def pretraining(cfg: DictConfig, photographs: Photographs) -> Training:
    """What a pre-training does.

    Args:
        cfg: Config with ``task: pretext``.
        photographs: Of the run that asks for it.

    Returns:
        Its training.
    """
    data = make(cfg.pretraining.datamodule, photographs=photographs)
    assert isinstance(data, PretextDataModule)
    counts = data.subsets()["subset"].value_counts()
    length = training_length(
        int(counts.get("train", 0)),
        cfg.pretext.batch_size,
        cfg.trainer.max_epochs,
        cfg.trainer.max_steps,
        accumulated=cfg.trainer.accumulate_grad_batches,
    )
    return Training(length, int(counts.get("val", 0)) * length.epochs)


def _group(cell: Cell, without_effect: Sequence[str]) -> tuple[str, ...]:
    """What of a cell's overrides may change its speed."""
    kept = []
    for each in cell.overrides:
        key = each.lstrip("+~").split("=", 1)[0]
        if key.split(".", 1)[0].split("@", 1)[0] not in (*AXES, "method", *without_effect):
            kept.append(each)
    return tuple(kept)
