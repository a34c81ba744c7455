"""Costs of pre-training, training budgets of methods, and whether the budgets are equal."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drgrade.errors import DataError
from drgrade.models.encoder_file import CARD
from drgrade.reporting.methods import Grouped
from drgrade.reporting.schema import Budget, PretrainingCost
from drgrade.reporting.statistics import images_per_second
from drgrade.runs.reader import Run, initial_encoder_dir
from drgrade.runs.run_dir import read_provenance
from drgrade.stats.estimates import Range
from drgrade.stats.formatting import fraction, listed, number, span


def pretraining_costs(runs: Sequence[Run], methods: Sequence[str]) -> list[PretrainingCost]:
    """Return the cost of each pre-trained encoder once.

    Args:
        runs: All runs of a report.
        methods: Keys of the methods in display order.

    Returns:
        Costs by method and name; an encoder that several methods use belongs to the first of them. Values
        that are not recorded in the folder of the encoder are NaN or None.
    """
    used: dict[Path, str] = {}
    for run in sorted(runs, key=lambda run: methods.index(run.method)):
        encoder = initial_encoder_dir(run.folder, run.provenance)
        if encoder is not None:
            used.setdefault(encoder, run.method)
    costs = [pretraining_cost(encoder, method) for encoder, method in used.items()]
    return sorted(costs, key=lambda cost: (methods.index(cost.method), cost.encoder))


def pretraining_cost(encoder: Path, method: str) -> PretrainingCost:
    """Read the cost of pre-training from the folder of an encoder that ``method`` (key) uses."""
    facts = read_provenance(encoder)
    card = _card(encoder)
    seconds, speed, peak = facts.get("seconds"), images_per_second(facts), facts.get("peak_memory")
    steps, images, inputs = (
        _number(card.get(name, facts.get(name))) for name in ("steps", "images", "encoder_inputs")
    )
    return PretrainingCost(
        method,
        encoder.name,
        float("nan") if seconds is None else float(seconds),
        float("nan") if speed is None else speed,
        None if peak is None else int(peak),
        None if steps is None else int(steps),
        None if images is None else int(images),
        inputs,
    )


def _card(encoder: Path) -> dict[str, Any]:
    path = encoder / CARD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): pre-train again, or leave its runs out") from error


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


_STEPS, _IMAGES = "optimiser steps", "photographs"
_NAMED = 3


@dataclass(frozen=True)
class BudgetFinding:
    """A sentence on the equality of budgets; warnings are repeated in the notes."""

    text: str
    warning: bool = False


def compute_budgets(grouped: Grouped) -> list[Budget]:
    """Compute the budget of each method."""
    known: dict[Path, PretrainingCost] = {}
    return [_budget(method.key, grouped.runs[method.key], known) for method in grouped.methods]


def _budget(key: str, runs: Sequence[Run], known: dict[Path, PretrainingCost]) -> Budget:
    folders = sorted({*filter(None, (initial_encoder_dir(run.folder, run.provenance) for run in runs))})
    for folder in folders:
        if folder not in known:
            known[folder] = pretraining_cost(folder, key)
    encoders = [known[folder] for folder in folders]
    by_fraction: dict[float, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.label_fraction):
        by_fraction[run.label_fraction].append(run)
    seconds = [float(run.provenance["seconds"]) for run in runs if run.provenance.get("seconds") is not None]
    return Budget(
        method=key,
        encoders=len(encoders),
        pretraining_steps=Range.of(each.steps for each in encoders),
        pretraining_images=Range.of(each.images for each in encoders),
        pretraining_inputs=Range.of(_inputs(each) for each in encoders),
        pretraining_seconds=_mean([each.seconds for each in encoders if np.isfinite(each.seconds)]),
        trained=is_trained(runs[0]),
        steps={share: Range.of(map(_steps, of_share)) for share, of_share in by_fraction.items()},
        images={share: Range.of(map(_images, of_share)) for share, of_share in by_fraction.items()},
        seconds=_mean(seconds),
    )


def is_trained(run: Run) -> bool:
    """Return whether a run takes optimiser steps; probes do not."""
    return not run.config["protocol"].get("probe")


def _inputs(cost: PretrainingCost) -> float | None:
    return None if cost.images is None or cost.encoder_inputs is None else cost.images * cost.encoder_inputs


def _steps(run: Run) -> float | None:
    return _number(run.provenance.get("steps"))


def _images(run: Run) -> float | None:
    return _number(run.provenance.get("images"))


def _mean(found: Sequence[float]) -> float:
    return float(np.mean(found)) if found else float("nan")


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
    for what, ranges in ((_STEPS, steps), (_IMAGES, images)):
        ranges = {name: each for name, each in ranges.items() if np.isfinite(each.low)}
        ends = Range.union(ranges.values())
        if ends.low == ends.high:
            yield BudgetFinding(f"Equal pre-training: {number(ends.low)} {what} for each pretext.")
        elif ranges:
            yield BudgetFinding(f"Unequal pre-training: {_extremes(ranges)} {what}.", True)
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
    figures = {_STEPS: _steps, _IMAGES: _images}
    known = {what: figure for what, figure in figures.items() if all(figure(run) is not None for run in runs)}
    if not known:
        return BudgetFinding(f"{prefix}the number of steps is not recorded.")
    unequal = [what for what, figure in known.items() if _differs_between_methods(runs, figure)]
    if unequal:
        text = f"{prefix}{listed(unequal)} differ between methods at the same label fraction and fold."
        return BudgetFinding(text, True)
    ends = {what: Range.of(map(figure, runs)) for what, figure in known.items()}
    counts = " and ".join(f"{span(each)} {what}" for what, each in ends.items())
    if all(each.low == each.high for each in ends.values()):
        return BudgetFinding(f"{prefix}equal, with {counts} in each run at each label fraction.")
    shares = Range.of(run.label_fraction for run in runs)
    return BudgetFinding(
        f"{prefix}equal for all methods at the same label fraction and fold, but not across fractions: "
        f"{counts} from {fraction(shares.low)} to {fraction(shares.high)} of the labels. "
        "Models with fewer labels are trained for fewer steps."
    )


def _differs_between_methods(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> bool:
    found: dict[tuple[float, str, int], set[float | None]] = defaultdict(set)
    for run in runs:
        found[run.label_fraction, run.fold, run.seed].add(figure(run))
    return any(len(values) > 1 for values in found.values())


def _extremes(ranges: Mapping[str, Range]) -> str:
    """Format the least and greatest range with names: ``0.25 (mae) to 8 (dino; cpc)``."""
    ends = Range.union(ranges.values())
    least = [name for name, each in ranges.items() if each.low == ends.low]
    most = [name for name, each in ranges.items() if each.high == ends.high]
    return f"{number(ends.low)} ({_few(least)}) to {number(ends.high)} ({_few(most)})"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
