"""Costs of pre-training, training budgets of methods, and whether the budgets are equal."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drgrade.artefacts import is_number
from drgrade.models.encoder import CARD
from drgrade.reporting.methods import Grouped, is_trained
from drgrade.reporting.schema import Budget, PretrainingCost
from drgrade.reporting.statistics import images_per_second, mean_known
from drgrade.runs.reader import Run, initial_encoder_dir
from drgrade.runs.run_dir import read_json, read_provenance
from drgrade.stats.estimates import Range
from drgrade.stats.formatting import fraction, listed, number, span

_FIGURES = {"optimiser steps": "steps", "photographs": "images"}
_NAMED = 3


@dataclass(frozen=True)
class BudgetFinding:
    """A sentence on the equality of budgets; warnings are repeated in the notes."""

    text: str
    warning: bool = False


def pretraining_costs(grouped: Grouped) -> dict[Path, PretrainingCost]:
    """Read the cost of each pre-trained encoder, by its folder.

    An encoder that several methods use belongs to the first of them. Values that are not recorded in the
    folder are NaN or None.
    """
    costs: dict[Path, PretrainingCost] = {}
    for method in grouped.methods:
        for folder in _encoders(grouped.runs[method.key]):
            if folder not in costs:
                costs[folder] = _pretraining_cost(folder, method.key)
    return costs


def _encoders(runs: Sequence[Run]) -> list[Path]:
    """Return the folders of the encoders from which runs started, by name."""
    folders = {initial_encoder_dir(run.folder, run.provenance) for run in runs}
    return sorted(filter(None, folders), key=lambda folder: (folder.name, folder))


def _pretraining_cost(folder: Path, method: str) -> PretrainingCost:
    facts = read_provenance(folder)
    card = _card(folder)
    seconds, speed, peak = facts.get("seconds"), images_per_second(facts), facts.get("peak_memory")
    steps, images, inputs = (
        _number(card.get(name, facts.get(name))) for name in ("steps", "images", "encoder_inputs")
    )
    return PretrainingCost(
        method,
        folder.name,
        math.nan if seconds is None else float(seconds),
        math.nan if speed is None else speed,
        None if peak is None else int(peak),
        None if steps is None else int(steps),
        None if images is None else int(images),
        inputs,
    )


def _card(folder: Path) -> dict[str, Any]:
    return read_json(folder / CARD, "pre-train again, or leave its runs out")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and is_number(value) else None


def compute_budgets(grouped: Grouped, costs: Mapping[Path, PretrainingCost]) -> list[Budget]:
    """Compute the budget of each method; ``costs`` are those of :func:`pretraining_costs`."""
    return [_budget(method.key, grouped.runs[method.key], costs) for method in grouped.methods]


def _budget(key: str, runs: Sequence[Run], costs: Mapping[Path, PretrainingCost]) -> Budget:
    encoders = [costs[folder] for folder in _encoders(runs)]
    by_fraction: dict[float, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.label_fraction):
        by_fraction[run.label_fraction].append(run)
    return Budget(
        method=key,
        encoders=len(encoders),
        pretraining_steps=Range.of(each.steps for each in encoders),
        pretraining_images=Range.of(each.images for each in encoders),
        pretraining_inputs=Range.of(_inputs(each) for each in encoders),
        pretraining_seconds=mean_known(each.seconds for each in encoders),
        trained=is_trained(runs[0]),
        steps={share: _range("steps", of_share) for share, of_share in by_fraction.items()},
        images={share: _range("images", of_share) for share, of_share in by_fraction.items()},
        seconds=mean_known(run.provenance.get("seconds") for run in runs),
    )


def _range(name: str, runs: Sequence[Run]) -> Range:
    return Range.of(_number(run.provenance.get(name)) for run in runs)


def _inputs(cost: PretrainingCost) -> float | None:
    return None if cost.images is None or cost.encoder_inputs is None else cost.images * cost.encoder_inputs


def compare_budgets(grouped: Grouped, budgets: Sequence[Budget]) -> list[BudgetFinding]:
    """Describe whether the methods had equal budgets."""
    by_protocol: dict[str, list[Run]] = defaultdict(list)
    for method in grouped.methods:
        if is_trained(grouped.runs[method.key][0]):
            by_protocol[method.protocol] += grouped.runs[method.key]
    pretraining = sorted(_compare_pretraining(grouped, budgets), key=lambda finding: not finding.warning)
    return [*pretraining, *(_compare_runs(protocol, runs) for protocol, runs in by_protocol.items())]


def _compare_pretraining(grouped: Grouped, budgets: Sequence[Budget]) -> Iterator[BudgetFinding]:
    """Compare pre-training budgets; methods of one line share encoders and are named once."""
    names = {method.key: method.name for method in grouped.methods}
    trained = {names[budget.method]: budget for budget in budgets if budget.encoders}
    if len(trained) < 2:
        return
    unknown = sorted(name for name, budget in trained.items() if np.isnan(budget.pretraining_images.low))
    if unknown:
        yield BudgetFinding(f"The length of pre-training is not recorded: {listed(unknown)}.", True)
    steps = {name: budget.pretraining_steps for name, budget in trained.items()}
    images = {name: budget.pretraining_images for name, budget in trained.items()}
    for unit, ranges in zip(_FIGURES, (steps, images), strict=True):
        known = {name: each for name, each in ranges.items() if np.isfinite(each.low)}
        ends = Range.union(known.values())
        if ends.low == ends.high:
            yield BudgetFinding(f"Equal pre-training: {number(ends.low)} {unit} for each pretext.")
        elif known:
            yield BudgetFinding(f"Unequal pre-training: {_extremes(known)} {unit}.", True)
    inputs = {
        name: Range(
            budget.pretraining_inputs.low / budget.pretraining_images.low,
            budget.pretraining_inputs.high / budget.pretraining_images.high,
        )
        for name, budget in trained.items()
        if np.isfinite(budget.pretraining_inputs.low)
    }
    if len({round(each.low, 9) for each in inputs.values()}) > 1:
        yield BudgetFinding(
            "The encoder processed different numbers of images per photograph and step (in units of a "
            f"full-size image), so the pretexts took different time: {_extremes(inputs)}."
        )


def _compare_runs(protocol: str, runs: Sequence[Run]) -> BudgetFinding:
    """Compare the steps and photographs of the runs of a protocol."""
    prefix = f"Fine-tuning, protocol {protocol}: "
    known = {
        unit: name
        for unit, name in _FIGURES.items()
        if all(_number(run.provenance.get(name)) is not None for run in runs)
    }
    if not known:
        return BudgetFinding(f"{prefix}the number of steps is not recorded.")
    unequal = [unit for unit, name in known.items() if _differs_between_methods(runs, name)]
    if unequal:
        text = f"{prefix}{listed(unequal)} differ between methods at the same label fraction and fold."
        return BudgetFinding(text, True)
    ends = {unit: _range(name, runs) for unit, name in known.items()}
    counts = " and ".join(f"{span(each)} {unit}" for unit, each in ends.items())
    if all(each.low == each.high for each in ends.values()):
        return BudgetFinding(f"{prefix}equal, with {counts} in each run at each label fraction.")
    shares = Range.of(run.label_fraction for run in runs)
    return BudgetFinding(
        f"{prefix}equal for all methods at the same label fraction and fold, but not across fractions: "
        f"{counts} from {fraction(shares.low)} to {fraction(shares.high)} of the labels. "
        "Models with fewer labels are trained for fewer steps."
    )


def _differs_between_methods(runs: Sequence[Run], name: str) -> bool:
    values: dict[tuple[object, ...], object] = {}
    return any(
        values.setdefault((run.label_fraction, run.fold, run.replicate), run.provenance[name])
        != run.provenance[name]
        for run in runs
    )


def _extremes(ranges: Mapping[str, Range]) -> str:
    """Format the least and greatest range with names: ``0.25 (mae) to 8 (dino; cpc)``."""
    ends = Range.union(ranges.values())

    def names(at_end: Callable[[Range], bool]) -> str:
        chosen = [name for name, each in ranges.items() if at_end(each)]
        more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
        return "; ".join(chosen[:_NAMED]) + more

    least, most = names(lambda each: each.low == ends.low), names(lambda each: each.high == ends.high)
    return f"{number(ends.low)} ({least}) to {number(ends.high)} ({most})"
