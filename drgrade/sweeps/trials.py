"""Trials of a search: proposed by Optuna, run by a launcher, recorded in the study from their folders."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import optuna
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
from optuna.trial import FrozenTrial, TrialState

from drgrade.config import as_override
from drgrade.errors import ConfigError
from drgrade.files import write_text
from drgrade.runs.run_dir import AUTO
from drgrade.runs.settings import identity_settings
from drgrade.sweeps.cells import FINISHED, Progress, log_file, progress
from drgrade.sweeps.pruning import Pruning, open_storage, open_trial

if TYPE_CHECKING:
    from drgrade.sweeps.search import SearchSweeper

log = logging.getLogger("drgrade")

_SPACE = "space of"
_MINIMISED = ("val/loss", "val/mae", "val/ece")
_COLUMNS = 3
_STATES = {TrialState.PRUNED: ("pruned", "#b9b9b9"), TrialState.COMPLETE: ("finished", "#1f5f8b")}


@dataclass(frozen=True)
class SearchSpace:
    """Settings that are searched.

    Attributes:
        distributions: Distribution of each setting; the name may begin with ``+``.
    """

    distributions: Mapping[str, BaseDistribution]

    @property
    def names(self) -> list[str]:
        """Names of the settings, without ``+``."""
        return [name.lstrip("+") for name in self.distributions]

    def example(self) -> list[str]:
        """Return overrides of one point of the space: the lowest, or first, value of each setting."""
        return [
            f"{name}={each.choices[0] if isinstance(each, CategoricalDistribution) else each.low}"  # type: ignore[attr-defined]
            for name, each in self.distributions.items()
        ]

    def describe(self) -> dict[str, str]:
        """Describe the distribution of each setting."""
        return {f"{_SPACE} {name}": str(each) for name, each in sorted(self.distributions.items())}


def read_space(overrides: Sequence[Override]) -> SearchSpace:
    """Build the search space from overrides with intervals, ranges or choices.

    Args:
        overrides: Overrides of the search; those with a single value are ignored.

    Returns:
        The search space.

    Raises:
        ConfigError: If no setting is searched, or a distribution is invalid.
    """
    swept = [each for each in overrides if each.is_sweep_override()]
    if not swept:
        raise ConfigError(
            "there is nothing to search: give settings intervals or choices, as in "
            "'optimizer.lr=tag(log, interval(1e-5, 1e-2))' head.dropout=0.2,0.5"
        )
    return SearchSpace({each.get_key_element(): _distribution(each) for each in swept})


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


class Search:
    """One search in its folder.

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
        space: SearchSpace,
        fixed: Sequence[str],
    ) -> None:
        """Open the study, or create it.

        Args:
            sweeper: Settings of the search.
            launcher: Runs the trials.
            name: Name of the search.
            folder: Absolute path of its folder.
            space: The search space.
            fixed: Overrides that all trials share.
        """
        optuna.logging.set_verbosity(logging.WARNING)
        self._sweeper, self._launcher, self._name, self._folder = sweeper, launcher, name, folder
        self._space, self._fixed = space, fixed
        self._metric = sweeper.metric
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

        Args:
            cfg: Config of any trial.
            command: The command line.

        Raises:
            ConfigError: If space, metric or another setting differ.
        """
        settings = {"metric": self._metric, **self._space.describe(), **identity_settings(cfg)}
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
        log.info(
            "search %s by %s: %d trials wanted, %d of them have ended%s\n%s",
            self._name,
            self._metric,
            wanted,
            ended,
            f", {len(left)} resume" if left else "",
            self._folder,
        )
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
            return "\n".join(
                [f"{len(lines)} trials of the search failed:", *lines, f"  output of the first: {first}"]
            )
        wanted = self._sweeper.n_trials
        missing = wanted - len(self._ended())
        return f"{missing} of {wanted} trials of the search have not ended" if missing > 0 else ""

    def report(self, final_command: str) -> str:
        """Write ``trials.csv``, ``search.png`` and the best trial.

        Args:
            final_command: Command that tests the best settings.

        Returns:
            Text on the best trial and the next step.
        """
        write_report(self._folder, self.study, self._metric)
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

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _ended(self) -> list[FrozenTrial]:
        return self._trials(TrialState.COMPLETE, TrialState.PRUNED)

    def _best(self) -> FrozenTrial | None:
        return self.study.best_trial if self._trials(TrialState.COMPLETE) else None

    def _is_complete(self, trial: FrozenTrial) -> bool:
        """Return False for a trial without all its settings, after marking it as failed.

        Its command was killed while Optuna proposed them.
        """
        complete = trial.params.keys() == self._space.distributions.keys()
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
        return self.study.ask(dict(self._space.distributions)).number

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
        waiting = [number for number in numbers if self._progress(number).status not in (FINISHED, "pruned")]
        for number in waiting:
            settings = (f"{name}={_short(value)}" for name, value in trials[number].params.items())
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
        found = self._progress(number)
        value = found.record.get(self._metric)
        if found.status == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        elif found.status == FINISHED and value is not None and math.isfinite(value):
            self.study.tell(number, float(value))
        else:
            missing = f"finished without {self._metric}: are there validation photographs?"
            reason = missing if found.status == FINISHED else f"{found.status} {found.reason}"
            trial = open_trial(self.study, self._storage, number)
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


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_report(folder: Path, study: optuna.Study, metric: str) -> None:
    """Write ``trials.csv`` with a row for each trial, and ``search.png``.

    Args:
        folder: The search's folder.
        study: Optuna's study.
        metric: Name of the objective.
    """
    table = study.trials_dataframe(("number", "value", "state", "params", "duration", "user_attrs"))
    write_text(folder / "trials.csv", table.to_csv(index=False))
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False, states=tuple(_STATES))
        if trial.value is not None  # None: pruned before its first report
    ]
    if trials:
        partial = folder / ".search.png"
        _figure(trials, study, metric).savefig(partial, format="png", dpi=150)
        partial.replace(folder / "search.png")


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
