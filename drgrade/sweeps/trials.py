"""Trials of a search: proposed by Optuna, run by a launcher, recorded in the study from their folders."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import optuna
import pytorch_lightning as pl
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.callbacks import Callback
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from drgrade.config import as_override
from drgrade.errors import ConfigError
from drgrade.files import replacing, to_csv, write_text
from drgrade.runs.run_dir import AUTO
from drgrade.runs.settings import identity_settings
from drgrade.sweeps.cells import Progress, log_file, progress
from drgrade.tasks import GradingTask

if TYPE_CHECKING:
    from drgrade.sweeps.search import SearchSweeper

log = logging.getLogger("drgrade")

_LOCK_SECONDS = 120
"""Time that a process waits while another one writes to the same SQLite file."""

_SPACE = "space of"
_MINIMISED = ("val/loss", "val/mae", "val/nll", "val/brier")
_COLUMNS = 3
_STATES = {TrialState.PRUNED: ("pruned", "#b9b9b9"), TrialState.COMPLETE: ("finished", "#1f5f8b")}


def read_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Build the search space from overrides with intervals, ranges or choices; others are ignored.

    Returns:
        Distribution of each searched setting; the name may begin with ``+``.

    Raises:
        ConfigError: If no setting is searched, or a distribution is invalid.
    """
    space = {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}
    if not space:
        raise ConfigError(
            "there is nothing to search: give settings intervals or choices, as in "
            "'optimizer.lr=tag(log, interval(1e-5, 1e-2))' head.dropout=0.2,0.5"
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    kind: type[IntDistribution | FloatDistribution]
    try:
        if isinstance(value, RangeSweep) and not value.shuffle:
            values = list(value.range())
            kind = IntDistribution if isinstance(values[0], int) else FloatDistribution
            return kind(min(values), max(values), step=abs(cast(Any, value.step)))
        if isinstance(value, IntervalSweep):
            low, high = cast(Any, (value.start, value.end))
            kind = IntDistribution if isinstance(low, int) else FloatDistribution
            return kind(low, high, log="log" in value.tags)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{override.input_line} cannot be searched: {error}") from error


def example_point(space: Mapping[str, BaseDistribution]) -> list[str]:
    """Return overrides of one point of a space: the lowest value, or first choice, of each setting."""
    return [
        f"{name}={each.choices[0] if isinstance(each, CategoricalDistribution) else each.low}"  # type: ignore[attr-defined]
        for name, each in space.items()
    ]


class Search:
    """One search, whose study is opened or created in its folder.

    Args:
        sweeper: Settings of the search.
        launcher: Runs the trials.
        name: Name of the search.
        folder: Absolute path of its folder.
        space: The search space.
        fixed: Overrides that all trials share.

    Attributes:
        study: Optuna's study.
        launched: Numbers of the trials that this process started or resumed.
    """

    def __init__(
        self,
        sweeper: "SearchSweeper",
        launcher: Launcher,
        name: str,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        fixed: Sequence[str],
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._sweeper, self._launcher, self._name, self._folder = sweeper, launcher, name, folder
        self._space, self._fixed, self._metric = dict(space), fixed, sweeper.metric
        self._url = sweeper.storage or f"sqlite:///{folder / 'study.db'}"
        self._storage = open_storage(self._url)
        # A constant name lets the file move with its folder; a server may contain other studies.
        self.study = optuna.create_study(
            study_name=name if sweeper.storage else "search",
            storage=self._storage,
            direction="minimize" if self._metric in _MINIMISED else "maximize",
            load_if_exists=True,
        )
        self.launched: list[int] = []
        self._failed: list[int] = []
        self._record: dict[str, Any] = {}

    def check(self, cfg: DictConfig, command: Sequence[str]) -> None:
        """Compare the search with the one that the study was created for, and write ``search.json``.

        Raises:
            ConfigError: If space, metric or another setting differ.
        """
        space = {f"{_SPACE} {name}": str(each) for name, each in sorted(self._space.items())}
        settings = {"metric": self._metric, **space, **identity_settings(cfg)}
        settings = json.loads(json.dumps(settings, default=str))
        before = self.study.user_attrs.get("settings", settings)
        changed = [
            f"{name} was {before.get(name)} and is {settings.get(name)}"
            for name in sorted({*before, *settings}, key=lambda each: (not each.startswith(_SPACE), each))
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{self._folder} holds another search ({'; '.join(changed[:5])}): choose another folder with "
                "hydra.sweep.dir=, or remove it"
            )
        self.study.set_user_attr("settings", settings)
        self._write({"name": self._name, "command": list(command), "metric": self._metric})

    def run(self) -> None:
        """Resume the trials that an earlier command left, then run new ones."""
        left = [trial.number for trial in self._trials(TrialState.RUNNING) if self._is_complete(trial)]
        ended, wanted, size = len(self._ended()), self._sweeper.n_trials, self._sweeper.n_jobs
        resumed = f", {len(left)} resume" if left else ""
        heading = f"search {self._name} by {self._metric}: {wanted} trials wanted, {ended} of them have ended"
        log.info("%s%s\n%s", heading, resumed, self._folder)
        for start in range(0, len(left), size):
            self._run(left[start : start + size])
        # A failed trial counts here, so that a search whose trials all fail ends.
        new = wanted - ended - len(left)
        for start in range(0, new, size):
            self._run([self._ask() for _ in range(min(size, new - start))])

    def best_overrides(self) -> list[str] | None:
        """Return the overrides of the best trial; None if no trial has finished."""
        best = self._best()
        return None if best is None else [f"{name}={value}" for name, value in best.params.items()]

    def failures(self) -> str:
        """Describe the trials of this command that failed, or how many are missing; empty if none."""
        trials = self._trials()
        lines = [f"  {_name(number)}  {trials[number].user_attrs['reason']}" for number in self._failed]
        if lines:
            first = log_file(self._folder / _name(self._failed[0]))
            heading = f"{len(lines)} trials of the search failed:"
            return "\n".join([heading, *lines, f"  output of the first: {first}"])
        wanted = self._sweeper.n_trials
        missing = wanted - len(self._ended())
        return f"{missing} of {wanted} trials of the search have not ended" if missing > 0 else ""

    def report(self, final_command: str) -> str:
        """Write ``trials.csv``, ``search.png`` and the best trial; return a text on it and the next step."""
        self._write_table_and_figure()
        best = self._best()
        if best is None:
            return f"no trial has finished yet\n{self._folder}"
        chosen = {"trial": best.number, "value": best.value, "params": best.params, "command": final_command}
        self._write({**self._record, "best": chosen})
        return (
            f"best: {_name(best.number)}, {self._metric} {best.value:.4f}, of {len(self._ended())} trials\n"
            f"{self._folder}\n"
            f"This {self._metric} is biased, because the search selected by it. To test the settings:\n"
            f"{final_command}"
        )

    def _write_table_and_figure(self) -> None:
        columns = ("number", "value", "state", "params", "duration", "user_attrs")
        write_text(self._folder / "trials.csv", to_csv(self.study.trials_dataframe(columns)))
        # A trial that is pruned before its first report has no value.
        trials = [trial for trial in self._trials(*_STATES) if trial.value is not None]
        if trials:
            with replacing(self._folder / "search.png") as partial:
                _figure(trials, self.study, self._metric).savefig(partial, format="png", dpi=150)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _ended(self) -> list[FrozenTrial]:
        return self._trials(TrialState.COMPLETE, TrialState.PRUNED)

    def _best(self) -> FrozenTrial | None:
        return self.study.best_trial if self._trials(TrialState.COMPLETE) else None

    def _is_complete(self, trial: FrozenTrial) -> bool:
        """Mark a trial without all its settings as failed: its command was killed before it ran."""
        complete = trial.params.keys() == self._space.keys()
        if not complete:
            self.study.tell(trial.number, state=TrialState.FAIL)
        return complete

    def _ask(self) -> int:
        """Propose a trial, and return its number.

        Each trial has a new sampler, seeded by its number, so that an interrupted search proposes the same
        trials as an uninterrupted one.
        """
        number = len(self._trials())
        folder = self._folder / _name(number)
        if folder.exists():
            raise ConfigError(
                f"{folder} exists, but the study does not contain this trial: choose another folder with "
                "hydra.sweep.dir=, or remove it"
            )
        self.study.sampler = self._sampler(number)
        return self.study.ask(self._space).number

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = {}
        if self._sweeper.seed is not None:
            sequence = np.random.SeedSequence([self._sweeper.seed, number])
            seed["seed"] = int(sequence.generate_state(1)[0])
        sampler = instantiate(self._sweeper.sampler, _convert_="all", **seed)
        if not isinstance(sampler, optuna.samplers.BaseSampler):
            raise ConfigError(
                f"hydra.sweeper.sampler: {self._sweeper.sampler._target_} is not an Optuna sampler"
            )
        return sampler

    def _run(self, numbers: Sequence[int]) -> None:
        """Launch the trials that have no result yet, and record the results of all in the study."""
        trials = self._trials()
        waiting = [number for number in numbers if not self._has_ended(number)]
        for number in waiting:
            settings = (
                f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in trials[number].params.items()
            )
            log.info("%s  %s", _name(number), "  ".join(settings))
        if waiting:
            self.launched += waiting
            batch = [self._launch_overrides(trials[number]) for number in waiting]
            self._launcher.launch(batch, initial_job_idx=waiting[0])
        for number in numbers:
            self._tell(number)
        best = self._best()
        if best is not None:
            log.info("best so far: %s, %.4f", _name(best.number), best.value)

    def _has_ended(self, number: int) -> bool:
        result = self._progress(number)
        return result.is_finished or result.status == "pruned"

    def _launch_overrides(self, trial: FrozenTrial) -> list[str]:
        pruner = self._sweeper.pruner
        callback = {
            "_target_": f"{Pruning.__module__}.{Pruning.__qualname__}",
            "metric": self._metric,
            "trial": trial.number,
            "study": self.study.study_name,
            "storage": self._url,
            "pruner": None if pruner is None else OmegaConf.to_container(pruner, resolve=True),
        }
        return [
            *self._fixed,
            *(f"{name}={value}" for name, value in trial.params.items()),
            "test=false",
            f"sweep={as_override(self._name)}",
            f"resume={AUTO}",
            f"+callbacks.search={as_override(callback)}",
            f"hydra.sweep.dir={as_override(str(self._folder))}",
            f"hydra.sweep.subdir={_name(trial.number)}",
        ]

    def _tell(self, number: int) -> None:
        """Record the result of a trial from its folder, which is the same with every launcher."""
        result = self._progress(number)
        value = result.record.get(self._metric)
        if result.status == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        elif result.is_finished and value is not None and math.isfinite(value):
            self.study.tell(number, float(value))
        else:
            missing = f"finished without {self._metric}: are there validation photographs?"
            reason = missing if result.is_finished else f"{result.status} {result.reason}"
            trial = _open_trial(self.study, self._storage, number)
            trial.set_user_attr("reason", " ".join(reason.split())[:300])
            self.study.tell(number, state=TrialState.FAIL)
            self._failed.append(number)

    def _write(self, record: dict[str, Any]) -> None:
        self._record = record
        write_text(self._folder / "search.json", json.dumps(record, indent=2) + "\n")

    def _progress(self, number: int) -> Progress:
        return progress(self._folder / _name(number))


def _name(number: int) -> str:
    return f"trial-{number:03d}"


class Pruning(Callback):
    """Reports a metric of every validated epoch to a study, and stops the run if the pruner decides so.

    The search adds this callback to its trials. A pre-training that a trial does first reports nothing.

    Args:
        metric: Name of the reported metric, such as ``val/qwk``.
        trial: Number of the trial.
        study: Name of the study, which is opened with the first report.
        storage: URL of the study's database.
        pruner: Decides whether to stop; None: never.

    Attributes:
        pruned: True once the pruner has stopped the run.
    """

    def __init__(
        self, metric: str, trial: int, study: str, storage: str, pruner: BasePruner | None = None
    ) -> None:
        self.metric, self.number, self.pruned = metric, trial, False
        self._study, self._storage, self._pruner = study, storage, pruner
        self._trial: Trial | None = None
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch was validated; the trainer keeps the metrics of earlier epochs."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metric, and stop the run on all processes if the pruner decides so."""
        if not self._validated or not isinstance(pl_module, GradingTask):
            return
        self._validated = False
        metrics = trainer.callback_metrics  # read by all processes, because it may gather a metric
        if self.metric not in metrics:
            raise ConfigError(f"the search needs {self.metric}, which validation does not compute")
        decision = trainer.is_global_zero and self._report(trainer, float(metrics[self.metric]))
        self.pruned = bool(trainer.strategy.broadcast(decision))
        if self.pruned:
            trainer.should_stop = True

    def _report(self, trainer: pl.Trainer, value: float) -> bool:
        if self._trial is None:
            self._trial = self._open()
        self._trial.report(value, step=trainer.current_epoch)
        if _is_last_epoch(trainer) or not self._trial.should_prune():
            return False
        log.info("the search stops this trial after epoch %d", trainer.current_epoch + 1)
        return True

    def _open(self) -> Trial:
        optuna.logging.set_verbosity(logging.ERROR)  # a resumed run may report an epoch twice
        pruner = self._pruner or optuna.pruners.NopPruner()
        try:
            storage = open_storage(self._storage)
            study = optuna.load_study(study_name=self._study, storage=storage, pruner=pruner)
            return _open_trial(study, storage, self.number)
        except KeyError as error:
            raise ConfigError(f"trial {self.number} of {self._study}: {_unreachable(error)}") from error


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Return True if the run ends after this epoch anyway; it then counts as finished."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step


def open_storage(url: str) -> RDBStorage:
    """Open the database of a study by its URL in SQLAlchemy's format, and create it if necessary.

    Raises:
        ConfigError: If the URL is invalid, or the database cannot be used.
    """
    settings = {"connect_args": {"timeout": _LOCK_SECONDS}} if url.startswith("sqlite") else None
    try:
        return RDBStorage(url, engine_kwargs=settings)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"hydra.sweeper.storage is not the URL of a usable database: {error}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise ConfigError(_unreachable(error)) from error


def _open_trial(study: optuna.Study, storage: RDBStorage, number: int) -> Trial:
    """Open a trial that another process created; raise KeyError if there is none."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def _unreachable(error: Exception) -> str:
    # Without the URL, which may contain a password.
    return (
        f"the database of the search cannot be used ({type(error).__name__}): every machine that runs trials "
        "must reach it under the same URL, with the same version of optuna (hydra.sweeper.storage)"
    )


def _figure(trials: Sequence[FrozenTrial], study: optuna.Study, metric: str) -> Figure:
    """Plot the objective against the number of the trial, and against each setting."""
    names = sorted({name for trial in trials for name in trial.params})
    rows = -(-(1 + len(names)) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    _plot_history(panels[0], trials, study)
    for panel, name in zip(panels[1:], names, strict=False):
        _plot_setting(panel, [trial for trial in trials if name in trial.params], name)
    for panel in panels[1 + len(names) :]:
        panel.set_visible(False)
    for panel in panels[::_COLUMNS]:
        panel.set_ylabel(metric)
    return figure


def _plot_history(panel: Axes, trials: Sequence[FrozenTrial], study: optuna.Study) -> None:
    _scatter(panel, trials, [trial.number for trial in trials])
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if finished:
        maximise = study.direction == optuna.study.StudyDirection.MAXIMIZE
        best = (np.maximum if maximise else np.minimum).accumulate(_values(finished))
        numbers = [trial.number for trial in finished]
        panel.step(numbers, best, where="post", color="#c8641e", label="best so far")
    panel.set_xlabel("trial")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(fontsize="small")


def _plot_setting(panel: Axes, trials: Sequence[FrozenTrial], name: str) -> None:
    distribution = trials[0].distributions[name]
    values = [trial.params[name] for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        panel.set_xticks(range(len(distribution.choices)), list(map(str, distribution.choices)))
        panel.set_xlim(-0.5, len(distribution.choices) - 0.5)
        values = list(map(distribution.choices.index, values))
    elif getattr(distribution, "log", False):
        panel.set_xscale("log")
    _scatter(panel, trials, values)
    panel.set_xlabel(name)


def _scatter(panel: Axes, trials: Sequence[FrozenTrial], places: Sequence[float]) -> None:
    for state, (label, colour) in _STATES.items():
        chosen = [number for number, trial in enumerate(trials) if trial.state == state]
        if chosen:
            values = _values([trials[number] for number in chosen])
            x = [places[number] for number in chosen]
            panel.scatter(x, values, s=22, color=colour, label=label, zorder=3)


def _values(trials: Sequence[FrozenTrial]) -> list[float]:
    return [trial.value for trial in trials if trial.value is not None]
