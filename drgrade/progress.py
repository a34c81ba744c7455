"""Telling the user how far a long job is. On stderr: stdout belongs to results."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 30.0


def say(text: str) -> None:
    """Print a line to stderr, at once."""
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
    """Hand items on and show how far they are: a bar on a terminal, else a line now and then.

    Args:
        items: To be handed on.
        total: How many there are; None if nobody knows.
        doing: What is being done, as in "preparing".
        of: To what, as in "photographs of idrid".

    Yields:
        The items.
    """
    if total == 0:
        yield from items
        return
    if sys.stderr.isatty():
        yield from _bar(items, total, f"{doing} {of}")
        return
    say(f"{doing} {of}" if total is None else f"{doing} {total} {of}")
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES and done != total:
            last, rate = now, done / (now - start)
            say(f"  {done} ({rate:.0f}/s)" if total is None else _line(done, total, rate))


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
