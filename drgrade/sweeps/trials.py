"""Trials of a search: chosen by Optuna, run by a launcher, told to the study by what their folders say."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, Trial, TrialState

from drgrade.errors import ConfigError
from drgrade.files import write_text
from drgrade.runs.run_dir import AUTO
from drgrade.runs.settings import identity_settings
from drgrade.sweeps.cells import FINISHED, Progress, log_file, progress
from drgrade.sweeps.grammar import as_override
from drgrade.sweeps.search_report import write_report
from drgrade.sweeps.space import SPACE, Space
from drgrade.training.studies import open_storage

if TYPE_CHECKING:
    from drgrade.sweeps.search import SearchSweeper

log = logging.getLogger("drgrade")

SEARCH = "search.json"
DATABASE = "study.db"
PRUNED = "pruned"
_ONLY = "search"
"""Name of the study in a file of its own."""

_SETTINGS = "settings"
"""Attribute of the study: what makes it this search."""

REASON = "reason"
"""Attribute of a trial that failed: why."""

_MINIMISED = ("loss", "mae", "ece")


@dataclass
class Search:
    """One search, in its folder.

    Attributes:
        sweeper: Its settings, and its launcher.
        name: Its name, and its study's.
        folder: Its place, which does not depend on where the process is.
        space: What is searched.
        fixed: Overrides that all trials share.
        launched: Trials that this process has begun, or gone on with.
        failed: Those of them that failed.
    """

    sweeper: "SearchSweeper"
    name: str
    folder: Path
    space: Space
    fixed: Sequence[str]
    launched: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open the study, or begin it."""
        optuna.logging.set_verbosity(logging.WARNING)
        self.storage = self.sweeper.storage or f"sqlite:///{self.folder / DATABASE}"
        self.direction = "minimize" if self.sweeper.metric[len("val/") :] in _MINIMISED else "maximize"
        # Its own file may be moved with the folder; in a database there may be others'.
        self.study_name = self.name if self.sweeper.storage else _ONLY
        self.study = self._study()

    def _study(self) -> optuna.Study:
        """Open the study anew: one that is open does not see what other processes report of its trials."""
        return optuna.create_study(
            study_name=self.study_name,
            storage=open_storage(self.storage),
            direction=self.direction,
            load_if_exists=True,
        )

    def check(self, cfg: DictConfig, command: Sequence[str]) -> None:
        """Compare with what the search was when it began, and write it down.

        Args:
            cfg: Config of any trial.
            command: The command line.

        Raises:
            ConfigError: If it was another search.
        """
        now = {"metric": self.sweeper.metric, **self.space.described(), **identity_settings(cfg)}
        now = json.loads(json.dumps(now, default=str))
        before = self.study.user_attrs.get(_SETTINGS, now)
        changed = [
            f"{name} was {before.get(name)} and is {now.get(name)}"
            for name in sorted({*before, *now}, key=lambda each: (not each.startswith(SPACE), each))
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{self.folder} holds another search ({'; '.join(changed[:5])}): choose another folder with "
                "hydra.sweep.dir=, or remove it"
            )
        self.study.set_user_attr(_SETTINGS, now)
        self._write({"name": self.name, "command": list(command), "metric": self.sweeper.metric})

    def run(self) -> None:
        """Go on with the trials that an earlier command has left, then choose new ones."""
        left = [each.number for each in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        budget = self.sweeper.n_trials - len(self._ended()) - len(left)
        log.info(
            "search %s by %s: %d trials wanted, %d of them have ended%s\n%s",
            self.name,
            self.sweeper.metric,
            self.sweeper.n_trials,
            len(self._ended()),
            f", {len(left)} go on" if left else "",
            self.folder,
        )
        for batch in _batches(left, self.sweeper.n_jobs):
            self._run([self._open(number) for number in batch])
        # Trials that fail count here, so that a search of which every trial fails comes to an end.
        for batch in _batches(range(max(0, budget)), self.sweeper.n_jobs):
            self._run([self._ask() for _ in batch])

    def best(self) -> list[str] | None:
        """Overrides of the best trial; None if none has finished."""
        trial = self._best()
        return None if trial is None else [f"{name}={value}" for name, value in trial.params.items()]

    def failures(self) -> str:
        """Which trials of this command failed, and why; or that others are missing. Empty if all is well."""
        trials = self.study.get_trials(deepcopy=False)
        rows = [f"  {_folder_name(each)}  {trials[each].user_attrs.get(REASON, '')}" for each in self.failed]
        if rows:
            first = log_file(self.folder / _folder_name(self.failed[0]))
            return "\n".join(
                [f"{len(rows)} trials of the search failed:", *rows, f"  output of the first: {first}"]
            )
        missing = self.sweeper.n_trials - len(self._ended())
        return (
            f"{missing} of {self.sweeper.n_trials} trials of the search have not ended" if missing > 0 else ""
        )

    def report(self, final_command: str) -> str:
        """Write ``trials.csv``, ``search.png`` and the best trial, and say what to do next.

        Args:
            final_command: Tests the best settings.

        Returns:
            Lines of text.
        """
        best = self._best()
        write_report(self.folder, self.study, self.sweeper.metric)
        if best is None:
            return f"no trial has finished yet\n{self.folder}"
        chosen = {"trial": best.number, "value": best.value, "params": best.params, "command": final_command}
        self._write({**self._record, "best": chosen})
        return (
            f"best: {_folder_name(best.number)}, {self.sweeper.metric} {best.value:.4f}, "
            f"of {len(self._ended())} trials\n"
            f"{self.folder}\n"
            f"{self.sweeper.metric} is what the search chose by, and no result. To test the settings:\n"
            f"{final_command}"
        )

    def _ended(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def _best(self) -> FrozenTrial | None:
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self.direction == "maximize" else -1
        return max(done, key=lambda each: sign * float(each.value or 0), default=None)

    def _ask(self) -> Trial:
        """Choose the next trial's settings.

        The sampler is a new one each time, seeded by the trial's number: a search that was
        interrupted chooses as if it had not been, and does not draw its first trials once more.
        """
        number = len(self.study.get_trials(deepcopy=False))
        folder = self.folder / _folder_name(number)
        if folder.exists():
            raise ConfigError(
                f"{folder} is there, but the study does not know of it: choose another folder with "
                "hydra.sweep.dir=, or remove it"
            )
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        self._params(trial)
        return trial

    def _open(self, number: int) -> Trial:
        """A trial that was chosen by an earlier command."""
        self.study.sampler = self._sampler(number)
        trial_id = self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return Trial(self.study, trial_id)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        settings = OmegaConf.to_container(self.sweeper.sampler, resolve=True)
        assert isinstance(settings, dict)
        if "seed" in settings and self.sweeper.seed is not None:
            sequence = np.random.SeedSequence([self.sweeper.seed, number])
            settings["seed"] = int(sequence.generate_state(1)[0])
        sampler = instantiate(settings)
        if not isinstance(sampler, optuna.samplers.BaseSampler):
            raise ConfigError(f"hydra.sweeper.sampler: {settings.get('_target_')} is no sampler of Optuna's")
        return sampler

    def _params(self, trial: Trial) -> dict[str, Any]:
        """A trial's settings; those of one that was cut off while it was chosen are chosen to the end."""
        return {name: trial._suggest(name, each) for name, each in self.space.distributions.items()}

    def _run(self, trials: Sequence[Trial]) -> None:
        assert self.sweeper.launcher is not None
        waiting = [each for each in trials if not _is_over(self._progress(each.number))]
        for each in waiting:
            shown = "  ".join(f"{name}={_short(value)}" for name, value in self._params(each).items())
            log.info("%s  %s", _folder_name(each.number), shown)
        if waiting:
            arguments = [self._arguments(each) for each in waiting]
            self.launched += [each.number for each in waiting]
            self.sweeper.launcher.launch(arguments, initial_job_idx=waiting[0].number)
        self.study = self._study()
        for each in trials:
            self._tell(each.number)
        best = self._best()
        if best is not None:
            log.info("best so far: %s, %.4f", _folder_name(best.number), best.value)

    def _arguments(self, trial: Trial) -> list[str]:
        """A trial's overrides; the last ones win over what was given."""
        pruner = self.sweeper.pruner
        callback = {
            "_target_": "drgrade.training.pruning.Pruning",
            "metric": self.sweeper.metric,
            "trial": trial.number,
            "study": self.study_name,
            "storage": self.storage,
            "pruner": None if pruner is None else OmegaConf.to_container(pruner, resolve=True),
        }
        return [
            *self.fixed,
            *(f"{name}={value}" for name, value in self._params(trial).items()),
            "test=false",
            f"sweep={as_override(self.name)}",
            f"resume={AUTO}",
            f"+callbacks.search={as_override(callback)}",
            f"hydra.sweep.dir={as_override(str(self.folder))}",
            f"hydra.sweep.subdir={_folder_name(trial.number)}",
        ]

    def _tell(self, number: int) -> None:
        """Tell the study what a trial's folder says: that is the same with every launcher."""
        found = self._progress(number)
        value = found.record.get(self.sweeper.metric)
        if found.status == PRUNED:
            self.study.tell(number, state=TrialState.PRUNED)
        elif found.status == FINISHED and value is not None and math.isfinite(value):
            self.study.tell(number, float(value))
        else:
            finished = f"finished without {self.sweeper.metric}: has it photographs to validate on?"
            reason = finished if found.status == FINISHED else f"{found.status} {found.reason}"
            self._open(number).set_user_attr(REASON, " ".join(reason.split())[:300])
            self.study.tell(number, state=TrialState.FAIL)
            self.failed.append(number)

    def _write(self, record: dict[str, Any]) -> None:
        self._record = record
        write_text(self.folder / SEARCH, json.dumps(record, indent=2) + "\n")

    def _progress(self, number: int) -> Progress:
        return progress(self.folder / _folder_name(number))


def _is_over(found: Progress) -> bool:
    """Whether a trial has come to its end, though the study has not been told."""
    return found.status in (FINISHED, PRUNED)


def _folder_name(number: int) -> str:
    return f"trial-{number:03d}"


def _batches(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
