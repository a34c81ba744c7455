"""What a run has to say about its split."""

from collections.abc import Iterable
from dataclasses import dataclass

_EXAMPLES = 3


@dataclass(frozen=True)
class Remark:
    """One thing that a reader of the results should know about the split.

    Attributes:
        name: What is counted, as a key for ``metrics.json``: ``copies_of_test``.
        count: How many.
        text: A sentence.
        serious: Whether results may be wrong because of it: to be shown as a warning.
    """

    name: str
    count: int
    text: str
    serious: bool = False


def examples(names: Iterable[str]) -> str:
    """The first few of some names in alphabetical order, in brackets."""
    found = sorted(names)
    return f"({', '.join(found[:_EXAMPLES])}{', ...' if len(found) > _EXAMPLES else ''})"


def number(count: int, noun: str = "photograph") -> str:
    """``1 photograph``, ``2 photographs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
