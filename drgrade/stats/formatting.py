"""Formatting of numbers and names in pages, tables and figures."""

import math
import re
from collections.abc import Callable, Sequence

from drgrade.stats.estimates import Estimate, Interval, Range

DASH = "\N{EN DASH}"
"""Marks a missing value; tables explain the reason."""

MINUS = "\N{MINUS SIGN}"
BETTER, WORSE = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
GRADE_NAMES = ("none", "mild", "moderate", "severe", "proliferative")

_LEAST_P = 0.001
_MIB, _GIB = 2.0**20, 2.0**30


def decimal(value: float, places: int = 3) -> str:
    """Format a number with a fixed number of decimals; a dash if it is not finite."""
    if not math.isfinite(value):
        return DASH
    text = f"{abs(value):.{places}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def signed(value: float, places: int = 3) -> str:
    """Format a difference with its sign."""
    text = decimal(value, places)
    return text if text.startswith((MINUS, DASH)) or not float(text) else f"+{text}"


def interval(ends: Interval, places: int = 3) -> str:
    """Format an interval; a dash if it is not finite."""
    if not (math.isfinite(ends.low) and math.isfinite(ends.high)):
        return DASH
    return f"{decimal(ends.low, places)} to {decimal(ends.high, places)}"


def estimate(figure: Estimate, places: int = 3) -> str:
    """Format a value with its interval in brackets."""
    value, ends = decimal(figure.value, places), interval(figure.interval, places)
    return value if ends == DASH else f"{value} ({ends})"


def percent(share: float, places: int = 0) -> str:
    """Format a proportion in per cent."""
    return DASH if not math.isfinite(share) else f"{decimal(100 * share, places)} %"


def fraction(share: float) -> str:
    """Format a label fraction in per cent without trailing zeros: ``5 %``, ``2.5 %``."""
    return f"{100 * share:.6g} %"


def fraction_slug(share: float) -> str:
    """Format a label fraction for file names: ``5pct``, ``2.5pct``."""
    return f"{100 * share:.6g}pct"


def p_value(value: float) -> str:
    """Format a p-value."""
    return f"< {_LEAST_P}" if value < _LEAST_P else decimal(value)


def count(value: float) -> str:
    """Format a count; a fractional mean below 100 gets one decimal."""
    if not math.isfinite(value):
        return DASH
    return f"{value:.0f}" if float(value).is_integer() or value >= 100 else f"{value:.1f}"


def number(value: float) -> str:
    """Format a number with thousands separators; a fractional one with three digits."""
    if not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def span(ends: Range, text: Callable[[float], str] = number) -> str:
    """Format minimum and maximum; a single number if both look the same.

    Example:
        >>> span(Range(0.2, 0.25), decimal), span(Range(0.2, 0.2001), decimal)
        ('0.200 to 0.250', '0.200')
    """
    low, high = text(ends.low), text(ends.high)
    return low if low == high else f"{low} to {high}"


def hours(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours; a dash if it is NaN."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    if round(seconds / 60) < 100:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:.0f} h"


def speed(images_per_second: float) -> str:
    """Format a number of photographs per second."""
    return decimal(images_per_second, 1 if images_per_second < 10 else 0)


def memory(size: int | None) -> str:
    """Format a number of bytes in MiB or GiB; a dash if it is None."""
    if size is None:
        return DASH
    return f"{size / _MIB:.0f} MiB" if size < _GIB else f"{size / _GIB:.1f} GiB"


def listed(items: Sequence[str]) -> str:
    """Join items: ``a``, ``a and b``, ``a, b and c``; with semicolons if an item contains a comma."""
    if any("," in item for item in items):
        return "; ".join(items)
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def plural(number: int, noun: str) -> str:
    """Format a count with its noun: ``1 run``, ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_SPECIAL = re.compile(r"([\\`*_\[\]>|~#$])")


def escape_markdown(text: str) -> str:
    r"""Escape Markdown and HTML markup.

    Example:
        >>> escape_markdown("<b>R&D</b> *")
        '&lt;b\\>R&amp;D&lt;/b\\> \\*'
    """
    # Not every renderer knows \< and \&, so that HTML would remain.
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code_markdown(text: object) -> str:
    """Format text as code; text that could end the code, or a table's cell, is escaped instead."""
    shown = str(text)
    return escape_markdown(shown) if re.search(r"[`|<\n\r]", shown) else f"`{shown}`"
