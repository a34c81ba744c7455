"""Hydra's sweeper for a search: Optuna chooses the settings of each trial by what the earlier ones came to.

Spaces and samplers are those of hydra-optuna-sweeper. Its loop is not: that tells trials nothing of the
study, so that none can be pruned, begins again instead of going on, and ends at the first that fails.
"""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from drgrade.config import refuse_missing
from drgrade.errors import ConfigError
from drgrade.sweeps.naming import AXES, sweep_name
from drgrade.sweeps.sweeper import Outcome, chosen_folder, conclude, last_overrides

log = logging.getLogger("drgrade")

_OURS = {
    "resume": "a search goes on by itself when its command is repeated",
    "sweep": "a search names itself",
    "callbacks.search": "the search sets it",
}
"""Settings that a search makes itself, and why."""


class SearchSweeper(Sweeper):
    """Searches settings (``conf/hydra/sweeper/search.yaml``)."""

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
        """Check and keep the settings.

        Args:
            sampler: Config of Optuna's sampler.
            metric: What is searched by.
            n_trials: How many shall end, finished or pruned.
            n_jobs: Trials at the same time.
            seed: Of the sampler, with the number of each trial; None: another search each time.
            pruner: Config of Optuna's pruner; None: every trial runs to its end.
            storage: URL of the study's database; None: a file in the search's folder.
            params: Setting: interval, choices or value, as on the command line, which wins.

        Raises:
            ConfigError: If one of them makes no sense for a search.
        """
        if not metric.startswith("val/"):
            raise ConfigError(
                f"hydra.sweeper.metric={metric}: a search looks at validation only; val/qwk, for one"
            )
        for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"hydra.sweeper.{name}={number} is not a whole number of at least 1")
        if str(sampler.get("_target_")).endswith("GridSampler"):
            raise ConfigError("a grid is a table: give the values as in a=1,2 without hydra/sweeper=search")
        self.sampler, self.metric, self.pruner, self.storage = sampler, metric, pruner, storage
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.params = dict(params or {})
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's ``Sweeper``."""
        self.context, self.config = hydra_context, config
        if self.n_jobs > 1 and config.hydra.launcher.get("n_jobs") == "auto":
            with open_dict(config):
                config.hydra.launcher.n_jobs = self.n_jobs
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until enough have ended.

        Args:
            arguments: Task overrides of the command line.

        Raises:
            ConfigError: If the command asks for what a search cannot be, or for another search than
                the one in its folder.
        """
        assert self.config is not None
        from drgrade.sweeps.space import read_space
        from drgrade.sweeps.trials import Search

        overrides = self._overrides(arguments)
        space = read_space(overrides)
        fixed = [each for each in overrides if not each.is_sweep_override()]
        name, folder = self._place(overrides, arguments)
        cfg = self._example([each.input_line or "" for each in fixed], space.example(), folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"another command is at work on the search in {folder}: wait for it, or end it"
            ) from error
        with lock:
            search = Search(self, name, folder, space, tuple(each.input_line or "" for each in fixed))
            search.check(cfg, [Path(sys.argv[0]).name, *sys.argv[1:]])
            try:
                search.run()
            finally:
                # Also if a launcher raised: what it raised goes on.
                best = self._final_command(arguments, space.names, search.best())
                then = search.report(best)
                conclude(Outcome(folder, self.n_trials, bool(search.launched), search.failures(), then=then))

    def _overrides(self, arguments: Sequence[str]) -> list[Override]:
        """The search's overrides, the last one of each setting."""
        assert self.config is not None
        assert self.context is not None
        last = last_overrides(self.context, self.params, arguments)
        for key, override in last.items():
            if key in _OURS:
                raise ConfigError(f"{override.input_line}: {_OURS[key]}; leave this out")
        test = last.pop("test", None)
        if test is not None and (test.is_sweep_override() or test.value() is not False):
            raise ConfigError(
                f"{test.input_line}: a search never looks at the test photographs; leave this out, and run "
                "the settings that it finds afterwards"
            )
        if self.config.task != "grading":
            raise ConfigError(f"task={self.config.task}: a search is for grading, by its {self.metric}")
        return list(last.values())

    def _place(self, overrides: Sequence[Override], arguments: Sequence[str]) -> tuple[str, Path]:
        """Name and folder of the search; the folder is the command's if it names one."""
        assert self.config is not None
        chosen = chosen_folder(self.config)
        if chosen:
            return chosen.absolute().name, chosen.absolute()
        # Unlike a table's, every setting makes it another search, also one that extends a table.
        settings = [
            (f"search.{key}" if key in AXES else key, (each.input_line or "").partition("=")[2])
            for each in overrides
            for key in (each.get_key_element().lstrip("+"),)
            if each.input_line in arguments  # the others are the experiment's, which is in the name
        ]
        if self.metric != "val/qwk":
            settings.append(("search.metric", self.metric))
        name = sweep_name(self.config.name, self.config.data.name, settings)
        return name, (Path(self.config.paths.outputs) / "searches" / name).absolute()

    def _example(self, fixed: Sequence[str], params: Sequence[str], folder: Path) -> DictConfig:
        """Config of a trial with the lowest values: what is wrong is seen before any trial runs."""
        assert self.config is not None
        assert self.context is not None
        cfg = self.context.config_loader.load_sweep_config(self.config, [*fixed, *params, "test=false"])
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        cfg.paths.run = str(folder)
        refuse_missing(cfg)
        return cfg

    def _final_command(
        self, arguments: Sequence[str], searched: Sequence[str], best: Sequence[str] | None
    ) -> str:
        """The command that tests the best settings, on every fold if there are folds."""
        assert self.config is not None
        if best is None:
            return ""
        hydra = [each for each in self.config.hydra.overrides.hydra if "launcher" in each]
        if "hydra/sweeper=search" not in self.config.hydra.overrides.hydra:
            hydra.insert(0, "hydra/sweeper=cells")  # the experiment asks for a search
        folds = isinstance(self.config.fold, int)
        dropped = {*searched, "test", *(["fold"] if folds else [])}
        kept = [each for each in arguments if each.split("=", 1)[0].lstrip("+") not in dropped]
        each_fold = [f"fold={','.join(map(str, range(self.config.folds)))}"] if folds else []
        return shlex.join(["python", "train.py", "-m", *hydra, *kept, *best, *each_fold])
