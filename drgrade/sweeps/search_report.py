"""What a search leaves for its reader: a table of its trials, and a figure."""

from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from drgrade.files import write_text

TABLE, FIGURE = "trials.csv", "search.png"
_COLUMNS = 3
_COLOURS = {TrialState.COMPLETE: "#1f5f8b", TrialState.PRUNED: "#b9b9b9"}


def write_report(folder: Path, study: optuna.Study, metric: str) -> None:
    """Write ``trials.csv``, one row for each trial, and ``search.png``.

    Args:
        folder: The search's.
        study: Its trials.
        metric: What it goes by.
    """
    table = study.trials_dataframe(("number", "value", "state", "params", "duration", "user_attrs"))
    write_text(folder / TABLE, table.to_csv(index=False))
    trials = [
        each
        for each in study.get_trials(deepcopy=False, states=tuple(_COLOURS))
        if each.value is not None  # one may be pruned before it has reported
    ]
    if trials:
        partial = folder / f".{FIGURE}"
        _figure(trials, metric, study.direction == optuna.study.StudyDirection.MAXIMIZE).savefig(
            partial, format="png", dpi=150
        )
        partial.replace(folder / FIGURE)


def _figure(trials: list[FrozenTrial], metric: str, maximise: bool) -> Figure:
    """The trials in their order, and against each setting."""
    names = sorted({name for each in trials for name in each.params})
    rows = -(-(1 + len(names)) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    _history(panels[0], trials, maximise)
    for panel, name in zip(panels[1:], names, strict=False):
        _slice(panel, [each for each in trials if name in each.params], name)
    for panel in panels[1 + len(names) :]:
        panel.set_visible(False)
    for panel in panels[::_COLUMNS]:
        panel.set_ylabel(metric)
    return figure


def _history(panel: Axes, trials: list[FrozenTrial], maximise: bool) -> None:
    """Each trial's value, and the best so far of those that were not pruned."""
    _points(panel, trials, [each.number for each in trials])
    done = [each for each in trials if each.state == TrialState.COMPLETE]
    if done:
        values = np.array([each.value for each in done])
        best = np.maximum.accumulate(values) if maximise else np.minimum.accumulate(values)
        panel.step([each.number for each in done], best, where="post", color="#c8641e", label="best so far")
    panel.set_xlabel("trial")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(fontsize="small")


def _slice(panel: Axes, trials: list[FrozenTrial], name: str) -> None:
    """Values against one setting."""
    distribution = trials[0].distributions[name]
    values = [each.params[name] for each in trials]
    if isinstance(distribution, CategoricalDistribution):
        texts = [str(choice) for choice in distribution.choices]
        panel.set_xticks(range(len(texts)), texts)
        panel.set_xlim(-0.5, len(texts) - 0.5)
        _points(panel, trials, [texts.index(str(value)) for value in values])
    else:
        _points(panel, trials, values)
        if _is_logarithmic(distribution):
            panel.set_xscale("log")
    panel.set_xlabel(name)


def _points(panel: Axes, trials: list[FrozenTrial], places: list[float]) -> None:
    for state, label in ((TrialState.PRUNED, "pruned"), (TrialState.COMPLETE, "finished")):
        chosen = [number for number, each in enumerate(trials) if each.state == state]
        if chosen:
            x, y = [places[number] for number in chosen], [trials[number].value or 0.0 for number in chosen]
            panel.scatter(x, y, s=22, color=_COLOURS[state], label=label, zorder=3)


def _is_logarithmic(distribution: BaseDistribution) -> bool:
    return isinstance(
        distribution,
        optuna.distributions.LogUniformDistribution | optuna.distributions.IntLogUniformDistribution,
    )
