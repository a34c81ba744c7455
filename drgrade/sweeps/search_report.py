"""Table and figure of a search."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from drgrade.files import write_text

_COLUMNS = 3
_STATES = {TrialState.PRUNED: ("pruned", "#b9b9b9"), TrialState.COMPLETE: ("finished", "#1f5f8b")}


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
