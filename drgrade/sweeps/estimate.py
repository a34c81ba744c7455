"""How long a sweep will take: sums over what is to be done, at measured speeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drgrade.errors import ConfigError

_LIGHTNINGS_EPOCHS = 1000
"""What Lightning takes if neither epochs nor steps are limited."""


@dataclass(frozen=True)
class Length:
    """How long one training is.

    Attributes:
        epochs: That are begun.
        images: That go through training steps, over all processes.
        frozen: Those among them that do so while the encoder is frozen.
    """

    epochs: int
    images: int
    frozen: int = 0


@dataclass(frozen=True)
class Training:
    """One training, with what is looked at in between and afterwards.

    Attributes:
        length: Of the training.
        evaluated: Images that are validated or tested on, counted each time.
    """

    length: Length
    evaluated: int


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        trained: Images per second in training steps.
        frozen: The same while the encoder is frozen.
        evaluated: Images per second in validation and test.
        epoch: Seconds that each epoch takes beside its steps and its validation (checkpoints, mostly).
        start: Seconds of a process beside its training.
    """

    trained: float
    frozen: float
    evaluated: float
    epoch: float
    start: float


@dataclass(frozen=True)
class Estimate:
    """What an experiment still needs.

    Attributes:
        name: Of the experiment.
        cells: To be run, finished ones left out.
        pretrainings: To be run, those of encoders that exist left out.
        seconds: One cell after the other.
        parallel: Cells at the same time.
    """

    name: str
    cells: int
    pretrainings: int
    seconds: float
    parallel: int = 1


def training_length(
    photographs: int,
    batch_size: int,
    max_epochs: int | None,
    max_steps: int,
    *,
    steps_per_epoch: int | None = None,
    accumulated: int = 1,
    frozen_epochs: int = 0,
) -> Length:
    """How long a training is by its settings.

    Args:
        photographs: That it learns from.
        batch_size: Over all processes; a batch is no larger than the set.
        max_epochs: Limit of epochs; -1: none; None: Lightning's own, unless steps are limited.
        max_steps: Limit of optimiser steps; -1: none.
        steps_per_epoch: Batches of an epoch; None: one pass over the photographs.
        accumulated: Batches of one optimiser step.
        frozen_epochs: First epochs, in which the encoder is frozen.

    Returns:
        Its length.

    Raises:
        ConfigError: If it would never end.
    """
    if photographs < 1:
        return Length(0, 0)  # such a run fails, and says why
    batch = min(batch_size, photographs)
    batches = steps_per_epoch or math.ceil(photographs / batch)
    if max_epochs is None:
        max_epochs = _LIGHTNINGS_EPOCHS if max_steps == -1 else -1
    if max_epochs == -1 and max_steps == -1:
        raise ConfigError("trainer.max_epochs=-1 with trainer.max_steps=-1 never ends: limit one of them")
    steps = math.ceil(batches / accumulated)  # the last one of an epoch takes what is left of it
    limits = [limit for limit in (max_epochs * steps, max_steps) if limit >= 0]
    whole, rest = divmod(min(limits), steps)
    done = whole * batches + rest * accumulated
    epochs = whole + (rest > 0)
    return Length(epochs, done * batch, min(done, frozen_epochs * batches) * batch)


def training_seconds(training: Training, rates: Rates) -> float:
    """How long a training takes, without the start of its process.

    Args:
        training: What is done.
        rates: How fast.

    Returns:
        Seconds.
    """
    length = training.length
    return (
        (length.images - length.frozen) / rates.trained
        + length.frozen / rates.frozen
        + length.epochs * rates.epoch
        + training.evaluated / rates.evaluated
    )


def cell_seconds(training: Training, rates: Rates) -> float:
    """How long a cell takes, from the start of its process to its end.

    Args:
        training: The cell's.
        rates: Of grading.

    Returns:
        Seconds.
    """
    return rates.start + training_seconds(training, rates)


def table(estimates: Sequence[Estimate], now: datetime, notes: Mapping[str, str] | None = None) -> str:
    """Tell what is to be done, how long it takes, and when it will be done.

    Args:
        estimates: One or more.
        now: When it begins.
        notes: Experiment: what is to be said about its line.

    Returns:
        Lines of text.
    """
    total = sum(each.seconds for each in estimates)
    rows = [("experiment", "cells to run", "pre-trainings to run", "time")]
    rows += [
        (each.name, str(each.cells), str(each.pretrainings), duration(each.seconds)) for each in estimates
    ]
    cells, pretrainings = sum(each.cells for each in estimates), sum(each.pretrainings for each in estimates)
    rows.append(("total", str(cells), str(pretrainings), duration(total)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines += [f"{name}: {note}" for name, note in (notes or {}).items()]
    if not cells:
        return "\n".join([*lines, "Nothing is left to run."])
    lines.append(f"Done about {now + timedelta(seconds=total):%a %d %b %H:%M}{_earlier(estimates, now)}.")
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first column to the left, figures to the right."""
    return [
        row[0].ljust(widths[0]),
        *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
    ]


def _earlier(estimates: Sequence[Estimate], now: datetime) -> str:
    """What cells that run at the same time may save: at most their number, since they share the machine."""
    least = sum(each.seconds / each.parallel for each in estimates)
    if all(each.parallel == 1 for each in estimates):
        return ""
    parallel = max(each.parallel for each in estimates)
    return (
        f" at the latest: that is one cell after the other. With {parallel} at a time it may be as early as "
        f"{now + timedelta(seconds=least):%a %d %b %H:%M} ({duration(least)})"
    )


def duration(seconds: float) -> str:
    """Write a duration for people.

    Args:
        seconds: At least 0.

    Returns:
        ``48 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
