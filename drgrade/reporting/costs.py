"""Costs of pre-training, training budgets of methods, and whether the budgets are equal."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drgrade.errors import DataError
from drgrade.models.encoder_file import CARD
from drgrade.reporting.methods import Grouped
from drgrade.reporting.schema import Budget, Method, PretrainingCost
from drgrade.reporting.statistics import images_per_second
from drgrade.runs.reader import Run, initial_encoder_dir
from drgrade.runs.run_dir import read_provenance
from drgrade.stats import formatting
from drgrade.stats.estimates import Range


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
class Equality:
    """Result of comparing budgets.

    Attributes:
        sentences: All findings, including the warnings.
        warnings: Inequalities that the notes repeat.
    """

    sentences: Sequence[str]
    warnings: Sequence[str]


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
    for run in runs:
        by_fraction[run.label_fraction].append(run)
    seconds = [float(run.provenance["seconds"]) for run in runs if run.provenance.get("seconds") is not None]
    return Budget(
        method=key,
        encoders=len(encoders),
        pretraining_steps=_range(each.steps for each in encoders),
        pretraining_images=_range(each.images for each in encoders),
        pretraining_inputs=_range(_inputs(each) for each in encoders),
        pretraining_seconds=_mean([each.seconds for each in encoders if np.isfinite(each.seconds)]),
        trained=is_trained(runs[0]),
        steps={share: _range(map(_steps, of_share)) for share, of_share in sorted(by_fraction.items())},
        images={share: _range(map(_images, of_share)) for share, of_share in sorted(by_fraction.items())},
        seconds=_mean(seconds),
    )


def is_trained(run: Run) -> bool:
    """Return whether a run takes optimiser steps; probes do not."""
    return not run.config["protocol"].get("probe")


def _inputs(cost: PretrainingCost) -> float | None:
    return None if cost.images is None or cost.encoder_inputs is None else cost.images * cost.encoder_inputs


def _steps(run: Run) -> int | None:
    return _whole(run.provenance.get("steps"))


def _images(run: Run) -> int | None:
    return _whole(run.provenance.get("images"))


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _range(values: Iterable[float | None]) -> Range:
    found = [float(value) for value in values if value is not None]
    return Range(min(found), max(found)) if found else Range(float("nan"), float("nan"))


def _mean(found: Sequence[float]) -> float:
    return float(np.mean(found)) if found else float("nan")


def compare_budgets(grouped: Grouped, budgets: Sequence[Budget]) -> Equality:
    """Describe whether the methods had equal budgets."""
    parts = [_compare_pretraining(grouped, budgets), *_compare_fine_tuning(grouped)]
    return Equality(
        [sentence for part in parts for sentence in part.sentences],
        [sentence for part in parts for sentence in part.warnings],
    )


def _compare_pretraining(grouped: Grouped, budgets: Sequence[Budget]) -> Equality:
    """Compare pre-training budgets; methods of one line share encoders and are named once."""
    names = {method.key: method.name for method in grouped.methods}
    trained = [budget for budget in budgets if budget.encoders]
    if len({names[budget.method] for budget in trained}) < 2:
        return Equality([], [])
    sentences, warnings = [], []
    unknown = {names[each.method] for each in trained if not np.isfinite(each.pretraining_images.low)}
    if unknown:
        warnings.append(f"The length of pre-training is not recorded: {formatting.listed(sorted(unknown))}.")
    figures: Mapping[str, Callable[[Budget], Range]] = {
        _STEPS: lambda budget: budget.pretraining_steps,
        _IMAGES: lambda budget: budget.pretraining_images,
    }
    for what, figure in figures.items():
        ranges = {names[each.method]: figure(each) for each in trained if np.isfinite(figure(each).low)}
        if not ranges:
            continue
        low, high = _ends(ranges.values())
        if low == high:
            sentences.append(f"Equal pre-training: {formatting.number(low)} {what} for each pretext.")
        else:
            warnings.append(f"Unequal pre-training: {_extremes(ranges)} {what}.")
    inputs = {
        names[each.method]: Range(
            each.pretraining_inputs.low / each.pretraining_images.low,
            each.pretraining_inputs.high / each.pretraining_images.high,
        )
        for each in trained
        if np.isfinite(each.pretraining_inputs.low)
    }
    if inputs and len({round(each.low, 9) for each in inputs.values()}) > 1:
        sentences.append(
            "The encoder processed different numbers of images per photograph and step (in units of a "
            f"full-size image), so the pretexts took different time: {_extremes(inputs)}."
        )
    return Equality([*warnings, *sentences], warnings)


def _compare_fine_tuning(grouped: Grouped) -> list[Equality]:
    by_protocol: dict[str, list[Method]] = defaultdict(list)
    for method in grouped.methods:
        if is_trained(grouped.runs[method.key][0]):
            by_protocol[method.protocol].append(method)
    return [_compare_protocol(protocol, methods, grouped.runs) for protocol, methods in by_protocol.items()]


def _compare_protocol(
    protocol: str, methods: Sequence[Method], runs: Mapping[str, Sequence[Run]]
) -> Equality:
    prefix = f"Fine-tuning, protocol {protocol}: "
    own = [run for method in methods for run in runs[method.key]]
    figures = {_STEPS: _steps, _IMAGES: _images}
    known = {what: figure for what, figure in figures.items() if all(figure(run) is not None for run in own)}
    if not known:
        return Equality([f"{prefix}the number of steps is not recorded."], [])
    unequal = [what for what, figure in known.items() if _differs_between_methods(own, figure)]
    if unequal:
        what = formatting.listed(unequal)
        warning = f"{prefix}{what} differ between methods at the same label fraction and fold."
        return Equality([warning], [warning])
    ends = {what: _ends_of(own, figure) for what, figure in known.items()}
    if all(low == high for low, high in ends.values()):
        each = " and ".join(f"{formatting.number(low)} {what}" for what, (low, _) in ends.items())
        return Equality([f"{prefix}equal, with {each} in each run at each label fraction."], [])
    least = min(run.label_fraction for run in own)
    most = max(run.label_fraction for run in own)
    growing = " and ".join(
        f"{formatting.number(low)} to {formatting.number(high)} {what}" for what, (low, high) in ends.items()
    )
    return Equality(
        [
            f"{prefix}equal for all methods at the same label fraction and fold, but not across fractions: "
            f"{growing} from {formatting.fraction(least)} to {formatting.fraction(most)} of the labels. "
            "Models with fewer labels are trained for fewer steps."
        ],
        [],
    )


def _differs_between_methods(runs: Sequence[Run], figure: Callable[[Run], int | None]) -> bool:
    found: dict[tuple[float, str, int], set[int | None]] = defaultdict(set)
    for run in runs:
        found[run.label_fraction, run.fold, run.seed].add(figure(run))
    return any(len(values) > 1 for values in found.values())


def _ends_of(runs: Sequence[Run], figure: Callable[[Run], int | None]) -> tuple[float, float]:
    found = _range(map(figure, runs))
    return found.low, found.high


def _ends(ranges: Iterable[Range]) -> tuple[float, float]:
    found = list(ranges)
    return min(each.low for each in found), max(each.high for each in found)


def _extremes(ranges: Mapping[str, Range]) -> str:
    """Format the least and greatest range with names: ``0.25 (mae) to 8 (dino; cpc)``."""
    low, high = _ends(ranges.values())
    least = [name for name, each in ranges.items() if each.low == low]
    most = [name for name, each in ranges.items() if each.high == high]
    return f"{formatting.number(low)} ({_few(least)}) to {formatting.number(high)} ({_few(most)})"


def _few(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return "; ".join(unique[:_NAMED]) + more
