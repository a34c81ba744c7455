"""Progress of a long job, on stderr; stdout is for results."""

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 30.0
_CHUNK = 16
"""Number of items after which the clock is read."""


def say(text: str) -> None:
    """Print a line to stderr and flush it."""
    print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units.

    Args:
        seconds: At least 0.

    Returns:
        ``48 s``, ``12 min``, ``3 h 20 min`` or ``2 d 4 h``.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def track(items: Iterable[T], total: int | None, doing: str, of: str) -> Iterator[T]:
    """Return an iterator over items that shows the progress: a bar on a terminal, otherwise a line at times.

    Args:
        items: Items to iterate over.
        total: Number of items; None if it is unknown.
        doing: Verb, such as "preparing".
        of: Its object, such as "photographs of idrid".
    """
    if total == 0:
        return iter(items)
    if sys.stderr.isatty():
        return _bar(items, total, f"{doing} {of}")
    say(f"{doing} {of}" if total is None else f"{doing} {total} {of}")
    return chain.from_iterable(_chunks(items, total))


def _chunks(items: Iterable[T], total: int | None) -> Iterator[Iterable[T]]:
    """Yield the items in chunks, and print a line between chunks if enough time has passed."""
    items, done = iter(items), 0
    start = last = time.monotonic()
    for first in items:
        now = time.monotonic()
        if done and now - last > _SECONDS_BETWEEN_LINES:
            last, rate = now, done / (now - start)
            say(f"  {done} ({rate:.0f}/s)" if total is None else _line(done, total, rate))
        yield chain([first], islice(items, _CHUNK - 1))
        done += _CHUNK


def _line(done: int, total: int, rate: float) -> str:
    return f"  {done} of {total} ({rate:.0f}/s, {max(total - done, 0) / rate / 60:.1f} min left)"


def _bar(items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=text)
