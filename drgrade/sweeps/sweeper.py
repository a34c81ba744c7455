"""Hydra sweeper that runs every combination of the swept values as a cell in its own folder.

The same command finds the same folder: finished cells are skipped, and the others resume from their last
checkpoint with every launcher, because each cell gets ``resume=auto``.
"""

import itertools
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from drgrade.config import as_override, initialized_hydra, nearest, refuse_missing
from drgrade.errors import ConfigError, DrgradeError, EncoderError
from drgrade.files import write_text
from drgrade.runs.run_dir import AUTO, read_config
from drgrade.runs.settings import changed_settings, label_seed
from drgrade.sweeps.cells import (
    AXES,
    LABEL_SEED,
    ROW_AXES,
    Cell,
    cell_name,
    failures,
    progress,
    sweep_name,
    write_sweep,
)
from drgrade.sweeps.inline import InlineLauncher
from drgrade.sweeps.launcher import LocalLauncher
from drgrade.training.distributed import require_single_process

log = logging.getLogger("drgrade")

_ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Pattern of a row's name, which begins the folder names of its cells."""

Overrides = Mapping[str, Override]
"""The last override of each setting."""


@dataclass(frozen=True)
class SweepOutcome:
    """Result of a sweep or a search."""

    folder: Path
    begun: bool
    """True if at least one cell has started."""
    failures: str
    """Table of the cells that are not finished; empty if all are."""
    report: bool = False
    """True if a report is wanted."""
    then: str = ""
    """Text on the next step; may be empty."""


@dataclass(frozen=True)
class SweepPlan:
    """Name and folder of a sweep, and the config of every cell that a command asks for."""

    name: str
    folder: Path
    configs: Mapping[Cell, DictConfig]

    def waiting(self) -> list[Cell]:
        """Return the cells that are not finished; raise ConfigError for a folder with another run."""
        return [cell for cell, cfg in self.configs.items() if not _is_finished(self.folder / cell.name, cfg)]


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep that has not started yet; ``config`` includes the ``hydra`` node."""

    experiment: str
    config: DictConfig
    launcher: Launcher
    plan: SweepPlan
    waiting: Sequence[Cell]

    @property
    def local(self) -> bool:
        """True if the cells run on this machine."""
        return isinstance(self.launcher, LocalLauncher | InlineLauncher)

    @property
    def parallel(self) -> int:
        """Number of cells that will run at the same time on this machine."""
        if isinstance(self.launcher, LocalLauncher) and self.waiting:
            return self.launcher.parallel(len(self.waiting))
        return 1


_outcomes: list[SweepOutcome] = []


def outcome() -> SweepOutcome | None:
    """Return the result of this process's sweep, if any; Hydra drops the return value of a sweeper."""
    return _outcomes[-1] if _outcomes else None


def store_outcome(done: SweepOutcome) -> None:
    """Store the result of a sweep for :func:`outcome`."""
    _outcomes.append(done)


def last_overrides(
    context: HydraContext, params: Mapping[str, str], arguments: Sequence[str]
) -> dict[str, Override]:
    """Parse the overrides of an experiment and of the command line, and return the last one of each setting.

    ``fold=0`` and ``+fold=0`` are the same setting.
    """
    given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    return {override.get_key_element().lstrip("+"): override for override in parsed}


def chosen_folder(config: DictConfig) -> Path | None:
    """Return the folder of a sweep if the command sets ``hydra.sweep.dir``, else None."""
    chosen = any(each.startswith("hydra.sweep.dir=") for each in config.hydra.overrides.hydra)
    return Path(config.hydra.sweep.dir) if chosen else None


class HydraSweeper(Sweeper):
    """Base class of the sweepers, which stores the arguments of ``setup``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.sweeper.Sweeper`."""
        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class CellSweeper(HydraSweeper):
    """Runs the cells of a sweep that are not finished (``conf/hydra/sweeper/cells.yaml``).

    A product over ``pretext`` and ``init`` would repeat the baseline without pre-training for every pretext.
    Rows name the combinations that make sense; each is crossed with the swept values.

    Args:
        params: Value or values of settings, as on the command line, which wins.
        report: Write a report at the end.
        rows: Overrides of each row, by its name: a mapping from settings to values, or a list of overrides.
        only: Names of the rows to run; None: all.
    """

    def __init__(
        self,
        params: Mapping[str, str] | None = None,
        report: bool = True,
        rows: Mapping[str, Any] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self.report = report
        self.params = dict(params or {})
        self._given_rows, self._only = _plain(rows or {}), _plain(only)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every cell that is not finished, and return the results of the launcher.

        Raises:
            ConfigError: If an override is not valid in a sweep.
        """
        require_single_process()
        plan = self.plan(arguments)  # composes every cell, so that errors come before any run
        waiting = plan.waiting()  # raises for a folder of other runs, before anything is written there
        name, folder, cells = plan.name, plan.folder, list(plan.configs)
        folder.mkdir(parents=True, exist_ok=True)
        write_sweep(folder, name, [Path(sys.argv[0]).name, *sys.argv[1:]], cells)
        write_text(folder / "multirun.yaml", OmegaConf.to_yaml(self._config))
        finished = len(cells) - len(waiting)
        log.info("sweep %s: %d cells, %d finished\n%s", name, len(cells), finished, folder)
        returns: list[JobReturn] = []
        try:
            if waiting:
                batch = [launch_overrides(cell, name, folder) for cell in waiting]
                returns += self._launcher.launch(batch, initial_job_idx=0)
        finally:  # also if the launcher raises, which explains the missing cells
            begun = any((folder / cell.name).is_dir() for cell in cells)
            table = failures(folder, cells, _errors(waiting, returns))
            store_outcome(SweepOutcome(folder, begun, table, self.report))
        return returns

    def plan(self, arguments: Sequence[str]) -> SweepPlan:
        """Compose every cell without running or writing anything.

        Raises:
            ConfigError: If an override is not valid in a sweep.
        """
        overrides = last_overrides(self._context, self.params, arguments)
        for key, override in overrides.items():
            if key in ("resume", "sweep") and (override.is_sweep_override() or override.value()):
                raise ConfigError(
                    f"{override.input_line}: a sweep resumes by itself when its command is repeated; "
                    "remove this"
                )
        rows = self._read_rows()
        _refuse_unused(rows, overrides)
        name, folder = self._place(list(overrides.values()))
        configs: dict[Cell, DictConfig] = {}
        asked = (
            self._only is not None
            or "init" in last_overrides(self._context, {}, arguments)
            or any("imagenet" in each for each in self._config.hydra.overrides.hydra)  # a row that was added
        )
        weights = _ImageNetWeights()
        for cell, cfg in (each for row, own in rows.items() for each in self._cells(row, own, overrides)):
            if cfg.init == "imagenet" and not asked and not weights.fit(cfg):
                continue
            known = next((each for each in configs if each.name == cell.name), None)
            if known is None:
                configs[cell] = cfg
            elif not _differ_in_label_seed(known, cell):
                raise ConfigError(f"{cell.name} occurs twice: give every value of a sweep once")
        return SweepPlan(name, folder, configs)

    def _read_rows(self) -> dict[str, Overrides]:
        """Return the chosen rows by name; one row without a name and overrides if there are none."""
        rows, only = self._given_rows, self._only
        if only is not None and (isinstance(only, str) or not isinstance(only, Sequence) or not only):
            raise ConfigError(
                f"hydra.sweeper.only={only} is not a list of rows: hydra.sweeper.only=[rotation]"
            )
        for name in only or ():
            if name not in rows:
                known = nearest(str(name), list(rows)) if rows else "this sweep has no rows"
                raise ConfigError(f"hydra.sweeper.only: there is no row {name!r}; {known}")
        chosen = {name: value for name, value in rows.items() if only is None or name in only}
        return {str(name): self._read_row(name, value) for name, value in chosen.items()} or {"": {}}

    def _read_row(self, name: str, value: Any) -> Overrides:
        where = f"hydra.sweeper.rows.{name}"
        if not _ROW_NAME.fullmatch(str(name)):
            raise ConfigError(f"{where}: the name of a row may contain letters, digits and . + - _")
        if isinstance(value, Mapping):
            given = [f"{key}={as_override(item)}" for key, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            given = list(map(str, value))
        elif value is None:
            given = []
        else:
            raise ConfigError(f"{where}={value} is neither a mapping of settings nor a list of overrides")
        overrides = last_overrides(self._context, {}, given)
        for key, override in overrides.items():
            if override.is_sweep_override():
                raise ConfigError(
                    f"{where}: {override.input_line}: a row has one value of each setting; "
                    "several values belong on the command line or into hydra.sweeper.params"
                )
            if key in ("resume", "sweep"):
                raise ConfigError(f"{where}: {override.input_line}: the sweep sets this itself; remove it")
        return overrides

    @property
    def axes(self) -> tuple[str, ...]:
        """Settings that extend a sweep: part of the names of its cells, but not of its own."""
        return (*(ROW_AXES if self._given_rows else ()), *AXES, LABEL_SEED)

    def _place(self, overrides: Sequence[Override]) -> tuple[str, Path]:
        """Return the name and the folder of the sweep."""
        chosen = chosen_folder(self._config)
        if chosen:
            return chosen.name, chosen
        fixed = [
            (each.get_key_element(), each.get_value_element_as_str())
            for each in overrides
            if not each.is_sweep_override()
        ]
        name = sweep_name(self._config.name, self._config.data.name, fixed, self.axes)
        folder = Path(self._config.paths.outputs) / "sweeps" / name
        with open_dict(self._config):
            self._config.hydra.sweep.dir = str(folder)
        return name, folder

    def _cells(self, row: str, own: Overrides, sweep: Overrides) -> Iterator[tuple[Cell, DictConfig]]:
        """Yield every combination of the swept values with its config; the last override varies fastest.

        The row's own overrides replace those of the sweep.
        """
        overrides = [*(each for key, each in sweep.items() if key not in own), *own.values()]
        for combination in itertools.product(*map(_values, overrides)):
            cfg = self._context.config_loader.load_sweep_config(self._config, list(combination))
            OmegaConf.set_struct(cfg, False)
            cfg.pop("hydra")
            method: tuple[str, ...] = ()
            if row and cfg.method is None:
                cfg.method, method = row, (f"method={as_override(row)}",)
            refuse_missing(cfg)
            if cfg.split.label_seed and not label_seed(cfg):  # no labels are drawn
                cfg.split.label_seed, method = 0, (*method, f"{LABEL_SEED}=0")
            swept = {
                each.get_key_element(): argument.split("=", 1)[1]
                for each, argument in zip(overrides, combination, strict=True)
                if each.is_sweep_override()
            }
            # Names always contain the axes, so that a sweep that is extended along one finds its earlier
            # cells; except axes that the row sets, since the name of the row determines them.
            named = {key: value for key, value in sorted(swept.items()) if key not in self.axes}
            axes = self.axes if cfg.split.label_seed else self.axes[:-1]
            named |= {axis: _axis_value(axis, cfg) for axis in axes if axis not in own}
            yield Cell(cell_name(named, row), (*combination, *method)), cfg


class _ImageNetWeights:
    """Find out whether weights files for ``init=imagenet`` fit the encoders of a table, each tried once."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def fit(self, cfg: DictConfig) -> bool:
        """Return True if the files of a cell's encoder fit it; log once why the cells are left out."""
        from drgrade.runs.settings import weights_files
        from drgrade.training.build import make_encoder

        key = OmegaConf.to_yaml(cfg.encoder, resolve=True)
        if key not in self._known:
            reason = "no file with them (encoder.weights=FILE, or paths.weights=FOLDER)"
            try:
                if self._known.setdefault(key, bool(weights_files(cfg.encoder))):
                    make_encoder(cfg)
            except (EncoderError, InstantiationException) as error:
                self._known[key], reason = False, str(error.__cause__ or error)
            if not self._known[key]:
                log.info("the cells with ImageNet's weights are left out: %s", reason)
        return self._known[key]


def _refuse_unused(rows: Mapping[str, Overrides], sweep: Overrides) -> None:
    """Raise an error for overrides that every row replaces, and log those that some rows replace."""
    for key, override in sweep.items():
        replacing = [name for name, own in rows.items() if key in own]
        if replacing and len(replacing) == len(rows):
            raise ConfigError(
                f"{override.input_line} has no effect: every row sets {key} itself. Change a row with "
                f"hydra.sweeper.rows.{replacing[0]}.{key}=, or choose rows with "
                f"hydra.sweeper.only=[{replacing[0]}]"
            )
        if replacing:
            names = ", ".join(replacing)
            log.info("%s: not applied to the rows that set it themselves: %s", override.input_line, names)


def _differ_in_label_seed(one: Cell, other: Cell) -> bool:
    """Return whether two cells of one name, which draw no labels, have different label seeds."""
    first, second = (
        [each for each in cell.overrides if not each.startswith(f"{LABEL_SEED}=")] for cell in (one, other)
    )
    return first == second and one.overrides != other.overrides


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _axis_value(axis: str, cfg: DictConfig) -> str:
    """Format the value of an axis for a cell's name; label fractions 1 and 1.0 are the same."""
    value = OmegaConf.select(cfg, axis)
    value = value.name if isinstance(value, DictConfig) else value
    return str(float(value) if axis == "label_fraction" and isinstance(value, int) else value)


def _is_finished(folder: Path, cfg: DictConfig) -> bool:
    cfg.paths.run = str(folder)
    if not progress(folder).is_finished:
        return False
    changed = changed_settings(read_config(folder), cfg, finished=True)
    if changed:
        raise ConfigError(
            f"{folder} is finished, but was another run ({'; '.join(changed[:5])}): "
            "choose another folder with hydra.sweep.dir=, or remove it"
        )
    return True


def _errors(cells: Sequence[Cell], returns: Sequence[JobReturn]) -> dict[str, str]:
    """Return the errors that the launcher reported, by the name of the cell."""
    return {
        cell.name: str(done._return_value)
        for cell, done in zip(cells, returns, strict=False)  # empty if the launcher was interrupted
        if done.status == JobStatus.FAILED and isinstance(done._return_value, DrgradeError)
    }


def _values(override: Override) -> list[str]:
    """Expand an override into one argument for each of its values."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a table needs values, as in a=1,2 or range(1,5); "
            "use hydra/sweeper=search to search an interval"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def launch_overrides(cell: Cell, name: str, folder: Path) -> list[str]:
    """Append folder and name of the sweep, and ``resume=auto``, to the overrides of a cell."""
    return [
        *cell.overrides,
        f"sweep={as_override(name)}",
        f"resume={AUTO}",
        f"hydra.sweep.dir={as_override(str(folder))}",
        f"hydra.sweep.subdir={as_override(cell.name)}",
    ]


def plan_sweep(experiment: str, overrides: Sequence[str]) -> PlannedSweep:
    """Plan the sweep of ``python train.py -m +experiment=EXPERIMENT OVERRIDES`` without running it.

    Raises:
        ConfigError: If the experiment is a search, or a setting is invalid.
    """
    with initialized_hydra() as main:
        config = main.compose_config("train", [f"+experiment={experiment}", *overrides], RunMode.MULTIRUN)
        if str(config.hydra.sweeper._target_).rsplit(".", 1)[-1] != CellSweeper.__name__:
            raise ConfigError(f"+experiment={experiment} is a search: a table needs hydra/sweeper=cells")
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=main.config_loader, callbacks=Callbacks()),
            task_function=lambda cfg: None,
            config=config,
        )
        assert isinstance(sweeper, CellSweeper)
        # As text: an override may contain an interpolation, which each cell resolves.
        given = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
        plan = sweeper.plan(given)
        return PlannedSweep(experiment, config, sweeper._launcher, plan, plan.waiting())
