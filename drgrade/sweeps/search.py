"""Hydra sweeper for a search: Optuna proposes the settings of each trial from the results so far."""

import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from drgrade.config import refuse_missing
from drgrade.errors import ConfigError
from drgrade.sweeps.cells import AXES, sweep_name
from drgrade.sweeps.sweeper import HydraSweeper, SweepOutcome, chosen_folder, last_overrides, store_outcome

log = logging.getLogger("drgrade")

_RESERVED = {
    "resume": "a search resumes by itself when its command is repeated",
    "sweep": "the search sets its own name",
    "callbacks.search": "the search sets it",
}
"""Settings that the search sets, with the reason."""


class SearchSweeper(HydraSweeper):
    """Searches settings with Optuna (``conf/hydra/sweeper/search.yaml``).

    Args:
        sampler: Config of Optuna's sampler.
        metric: Objective, a validation metric.
        n_trials: Number of trials that end finished or pruned.
        n_jobs: Number of trials at the same time.
        seed: Seed of the sampler, combined with the number of the trial; None: not reproducible.
        pruner: Config of Optuna's pruner; None: no pruning.
        storage: URL of the study's database; None: a file in the search's folder.
        params: Search space: interval, choices or value of each setting, as on the command line, which wins.

    Raises:
        ConfigError: If a setting is invalid, or Optuna is not installed.
    """

    def __init__(
        self,
        sampler: DictConfig,
        metric: str = "val/qwk",
        n_trials: int = 20,
        n_jobs: int = 1,
        seed: int | None = 0,
        pruner: DictConfig | None = None,
        storage: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        if find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=search needs a package: pip install 'drgrade[search]'")
        if not metric.startswith("val/"):
            raise ConfigError(f"hydra.sweeper.metric={metric}: use a validation metric, such as val/qwk")
        if metric == "val/ece":
            raise ConfigError(
                "hydra.sweeper.metric=val/ece is not an objective: its best value is 0; use val/nll"
            )
        for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"hydra.sweeper.{name}={number} is not a whole number of at least 1")
        self.sampler, self.metric, self.pruner, self.storage = sampler, metric, pruner, storage
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.sweeper.Sweeper`."""
        if self.n_jobs > 1 and config.hydra.launcher.get("n_jobs") == "auto":
            with open_dict(config):
                config.hydra.launcher.n_jobs = self.n_jobs
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until enough have ended.

        Raises:
            ConfigError: If an override is not valid in a search, or the folder contains another search.
        """
        from drgrade.sweeps.trials import Search, example_point, read_space

        overrides = self._overrides(arguments)
        space = read_space(overrides)
        fixed = [each.input_line or "" for each in overrides if not each.is_sweep_override()]
        name, folder = self._place(overrides, arguments)
        cfg = self._compose_example([*fixed, *example_point(space)], folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"another command runs the search in {folder}: wait for it, or stop it"
            ) from error
        try:
            search = Search(self, self._launcher, name, folder, space, fixed)
            search.check(cfg, [Path(sys.argv[0]).name, *sys.argv[1:]])
            try:
                search.run()
            finally:  # also if a launcher raises
                then = search.report(self._final_command(arguments, space, search.best_overrides()))
                store_outcome(SweepOutcome(folder, bool(search.launched), search.failures(), then=then))
        finally:
            lock.release()

    def _overrides(self, arguments: Sequence[str]) -> list[Override]:
        """Return the last override of each setting."""
        last = last_overrides(self._context, self.params, arguments)
        for key, override in last.items():
            if key in _RESERVED:
                raise ConfigError(f"{override.input_line}: {_RESERVED[key]}; remove this")
        test = last.pop("test", None)
        if test is not None and (test.is_sweep_override() or test.value() is not False):
            raise ConfigError(
                f"{test.input_line}: a search never uses the test photographs; remove this, and test the "
                "settings that it finds afterwards"
            )
        if self._config.task != "grading":
            raise ConfigError(
                f"task={self._config.task}: a search needs grading runs, which have {self.metric}"
            )
        return list(last.values())

    def _place(self, overrides: Sequence[Override], arguments: Sequence[str]) -> tuple[str, Path]:
        """Return the name and the folder of the search."""
        chosen = chosen_folder(self._config)
        if chosen:
            return chosen.absolute().name, chosen.absolute()
        # Every setting of the command line counts, also the axes of a table.
        settings = [
            (f"search.{key}" if key in AXES else key, (each.input_line or "").partition("=")[2])
            for each in overrides
            for key in (each.get_key_element().lstrip("+"),)
            if each.input_line in arguments
        ]
        if self.metric != "val/qwk":
            settings.append(("search.metric", self.metric))
        name = sweep_name(self._config.name, self._config.data.name, settings)
        return name, (Path(self._config.paths.outputs) / "searches" / name).absolute()

    def _compose_example(self, overrides: Sequence[str], folder: Path) -> DictConfig:
        """Compose the config of one point of the space, so that errors come before any trial."""
        cfg = self._context.config_loader.load_sweep_config(self._config, [*overrides, "test=false"])
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        cfg.paths.run = str(folder)
        refuse_missing(cfg)
        return cfg

    def _final_command(
        self, arguments: Sequence[str], searched: Iterable[str], best: Sequence[str] | None
    ) -> str:
        """Return the command that tests the best settings, on every fold if there are folds."""
        if best is None:
            return ""
        hydra = [each for each in self._config.hydra.overrides.hydra if "launcher" in each]
        if "hydra/sweeper=search" not in self._config.hydra.overrides.hydra:
            hydra.insert(0, "hydra/sweeper=cells")  # the experiment chooses hydra/sweeper=search
        folds = isinstance(self._config.fold, int)
        dropped = {*(name.lstrip("+") for name in searched), "test", *(["fold"] if folds else [])}
        kept = [each for each in arguments if each.split("=", 1)[0].lstrip("+") not in dropped]
        each_fold = [f"fold={','.join(map(str, range(self._config.folds)))}"] if folds else []
        return shlex.join(["python", "train.py", "-m", *hydra, *kept, *best, *each_fold])
