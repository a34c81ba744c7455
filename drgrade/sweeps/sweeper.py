"""Hydra's sweeper of drgrade: every combination of the swept values is a cell with a folder of its own.

The same command finds the same folder: finished cells are not run again, and a broken one goes on from its
last checkpoint, with every launcher, because each cell gets ``resume=auto``.
"""

import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from drgrade.config import refuse_missing
from drgrade.errors import ConfigError, DrgradeError
from drgrade.runs.run_dir import AUTO, read_config
from drgrade.runs.settings import changed_settings
from drgrade.sweeps.cells import FINISHED, Cell, cell_name, failures, progress, write_sweep
from drgrade.sweeps.grammar import as_override
from drgrade.sweeps.naming import AXES, ROW_AXES, sweep_name
from drgrade.sweeps.rows import Row, read_rows, refuse_without_effect
from drgrade.training.distributed import refuse_several

log = logging.getLogger("drgrade")


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        folder: The sweep's.
        cells: How many it has.
        begun: Whether any of them has been begun.
        failures: Table of those that are not finished; empty if all are.
        report: Whether a report is wanted.
        then: What to do next; empty: nothing.
    """

    folder: Path
    cells: int
    begun: bool
    failures: str
    report: bool = False
    then: str = ""


@dataclass(frozen=True)
class Plan:
    """What a command asks for.

    Attributes:
        name: Of the sweep.
        folder: The sweep's.
        configs: Config of every cell.
    """

    name: str
    folder: Path
    configs: Mapping[Cell, DictConfig]

    def waiting(self) -> list[Cell]:
        """Cells that are not finished.

        Raises:
            ConfigError: If a cell's folder holds another run.
        """
        return [cell for cell, cfg in self.configs.items() if not _is_finished(self.folder / cell.name, cfg)]


_outcomes: list[Outcome] = []


def outcome() -> Outcome | None:
    """What the sweep of this process came to.

    Hydra drops what a sweeper returns.

    Returns:
        None if there was none.
    """
    return _outcomes[-1] if _outcomes else None


def conclude(done: Outcome) -> None:
    """Keep for :func:`outcome` what a sweep came to.

    Args:
        done: The sweep.
    """
    _outcomes.append(done)


def last_overrides(
    context: HydraContext, params: Mapping[str, str], arguments: Sequence[str]
) -> dict[str, Override]:
    """Read the overrides of an experiment and of the command line, which wins.

    Args:
        context: Hydra's.
        params: Of the experiment.
        arguments: Of the command line.

    Returns:
        Setting: the last override of it. ``fold=0`` and ``+fold=0`` are the same setting; ``~fold`` takes one
        out, and is none.
    """
    given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    return {override.get_key_element().lstrip("+"): override for override in parsed}


def chosen_folder(config: DictConfig) -> Path | None:
    """The folder that the command has chosen for a sweep.

    Args:
        config: The sweep's, with Hydra's part.

    Returns:
        None if ``hydra.sweep.dir`` was not given.
    """
    chosen = [each for each in config.hydra.overrides.hydra if each.startswith("hydra.sweep.dir=")]
    return Path(config.hydra.sweep.dir) if chosen else None


class CellSweeper(Sweeper):
    """Names cells, leaves out finished ones, launches the others, and says in the end which failed."""

    def __init__(
        self,
        params: Mapping[str, str] | None = None,
        report: bool = True,
        rows: Mapping[str, Any] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        """Keep the settings (``conf/hydra/sweeper/cells.yaml``).

        Args:
            params: Setting: value or values, as on the command line, which wins.
            report: Ask for a report in the end.
            rows: Name of a row: its overrides (:mod:`drgrade.sweeps.rows`).
            only: Rows that are wanted; None: all.
        """
        self.report = report
        self.params = dict(params or {})
        self._given_rows, self._only = _plain(rows or {}), _plain(only)
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's ``Sweeper``."""
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every cell that is not finished.

        Args:
            arguments: Task overrides of the command line.

        Returns:
            What the launcher returned of each cell; empty if it was not asked.

        Raises:
            ConfigError: If the command asks for what a sweep cannot be.
        """
        assert self.config is not None
        assert self.launcher is not None
        refuse_several()
        plan = self.plan(arguments)  # every cell is composed here: errors come before any run
        waiting = plan.waiting()  # a sweep of other runs is refused before its record is touched
        name, folder, cells = plan.name, plan.folder, list(plan.configs)
        folder.mkdir(parents=True, exist_ok=True)
        write_sweep(folder, name, [Path(sys.argv[0]).name, *sys.argv[1:]], cells)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        finished = len(cells) - len(waiting)
        log.info("sweep %s: %d cells, %d finished\n%s", name, len(cells), finished, folder)
        returns: list[JobReturn] = []
        try:
            if waiting:
                batch = [_arguments(cell, name, folder) for cell in waiting]
                returns += self.launcher.launch(batch, initial_job_idx=0)
        finally:
            # Also if the launcher raised: what it raised goes on, and says why cells are missing.
            begun = any((folder / cell.name).is_dir() for cell in cells)
            table = failures(folder, cells, _told(waiting, returns))
            conclude(Outcome(folder, len(cells), begun, table, self.report))
        return returns

    def plan(self, arguments: Sequence[str]) -> Plan:
        """Compose every cell; nothing is run or written.

        Args:
            arguments: Task overrides of the command line.

        Returns:
            The sweep that they ask for.

        Raises:
            ConfigError: If they ask for what a sweep cannot be.
        """
        overrides = self._overrides(arguments)
        rows = self._rows(overrides)
        name, folder = self._place(list(overrides.values()))
        configs: dict[Cell, DictConfig] = {}
        for cell, cfg in (each for row in rows for each in self._cells(row, overrides)):
            if any(cell.name == known.name for known in configs):
                raise ConfigError(f"{cell.name} is there twice: give every value of a sweep once")
            configs[cell] = cfg
        return Plan(name, folder, configs)

    def _overrides(self, arguments: Sequence[str]) -> dict[str, Override]:
        """The sweep's overrides, the last one of each setting."""
        assert self.context is not None
        last = last_overrides(self.context, self.params, arguments)
        for key, override in last.items():
            if key in ("resume", "sweep") and (override.is_sweep_override() or override.value()):
                raise ConfigError(
                    f"{override.input_line}: a sweep goes on by itself when its command is repeated; "
                    "leave this out"
                )
        return last

    def _rows(self, overrides: Mapping[str, Override]) -> list[Row]:
        """The rows of the table; what some of them do not take up of the overrides is told."""
        assert self.context is not None
        context = self.context
        rows = read_rows(self._given_rows, self._only, lambda given: last_overrides(context, {}, given))
        for override, own in refuse_without_effect(rows, overrides).items():
            log.info("%s: not for the rows that set it themselves: %s", override, ", ".join(own))
        return rows

    @property
    def axes(self) -> tuple[str, ...]:
        """What a sweep is extended along: its cells' names always tell them, its own never does."""
        return (*ROW_AXES, *AXES) if self._given_rows else AXES

    def _place(self, overrides: Sequence[Override]) -> tuple[str, Path]:
        """Name and folder of the sweep; the folder is the command's if it names one."""
        assert self.config is not None
        chosen = chosen_folder(self.config)
        if chosen:
            return chosen.name, chosen
        fixed = [
            (each.get_key_element(), each.get_value_element_as_str())
            for each in overrides
            if not each.is_sweep_override()
        ]
        name = sweep_name(self.config.name, self.config.data.name, fixed, self.axes)
        folder = Path(self.config.paths.outputs) / "sweeps" / name
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        return name, folder

    def _cells(self, row: Row, sweep: Mapping[str, Override]) -> Iterator[tuple[Cell, DictConfig]]:
        """Every combination of the swept values with its config; the last override changes fastest."""
        assert self.config is not None
        assert self.context is not None
        overrides = list(row.with_those_of(sweep).values())
        for combination in itertools.product(*map(_arguments_of, overrides)):
            cfg = self.context.config_loader.load_sweep_config(self.config, list(combination))
            OmegaConf.set_struct(cfg, False)
            cfg.pop("hydra")
            own: tuple[str, ...] = ()
            if row.name and cfg.method is None:
                cfg.method, own = row.name, (f"method={as_override(row.name)}",)
            refuse_missing(cfg)
            swept = {
                each.get_key_element(): argument.split("=", 1)[1]
                for each, argument in zip(overrides, combination, strict=True)
                if each.is_sweep_override()
            }
            # The axes always: a sweep that is extended along one must know its earlier cells again.
            # But for those that the row sets: its name stands for them.
            named = {key: value for key, value in sorted(swept.items()) if key not in self.axes}
            axes = [axis for axis in self.axes if axis not in row.overrides]
            named |= {axis: _axis_value(axis, cfg) for axis in axes}
            yield Cell(cell_name(named, row.name), (*combination, *own)), cfg


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _axis_value(axis: str, cfg: DictConfig) -> str:
    """How a cell's name writes the value of an axis; 1 and 1.0 of the labels are the same."""
    value = cfg[axis].name if isinstance(cfg[axis], DictConfig) else cfg[axis]
    return str(float(value) if axis == "label_fraction" and isinstance(value, int) else value)


def _is_finished(folder: Path, cfg: DictConfig) -> bool:
    """Whether a cell need not run."""
    cfg.paths.run = str(folder)
    if progress(folder).status != FINISHED:
        return False
    changed = changed_settings(read_config(folder), cfg, finished=True)
    if changed:
        raise ConfigError(
            f"{folder} is finished, but was another run ({'; '.join(changed[:5])}): "
            "choose another folder with hydra.sweep.dir=, or remove it"
        )
    return True


def _told(cells: Sequence[Cell], returns: Sequence[JobReturn]) -> dict[str, str]:
    """Cell: what its launcher says that it failed of, in words for the user."""
    return {
        cell.name: str(done._return_value)
        for cell, done in zip(cells, returns, strict=False)  # none, if the launcher was interrupted
        if done.status == JobStatus.FAILED and isinstance(done._return_value, DrgradeError)
    }


def _arguments_of(override: Override) -> list[str]:
    """What an override stands for: itself, or one argument for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a table needs values, as in a=1,2 or range(1,5); "
            "a search over an interval is hydra/sweeper=search"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _arguments(cell: Cell, name: str, folder: Path) -> list[str]:
    """A cell's overrides, with its place and that it may go on there; they win over what was given."""
    return [
        *cell.overrides,
        f"sweep={as_override(name)}",
        f"resume={AUTO}",
        f"hydra.sweep.dir={as_override(str(folder))}",
        f"hydra.sweep.subdir={as_override(cell.name)}",
    ]
