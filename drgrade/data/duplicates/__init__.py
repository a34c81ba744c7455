"""Photographs that are there twice: the same file, or the same exposure saved anew.

:mod:`.thumbnail` makes the small picture that is kept of every photograph, :mod:`.features` what is compared,
:mod:`.retrieval` finds the pairs worth a look, :mod:`.verification` looks at them, and :mod:`.search` is the
whole. ``docs/audit-duplicates.md`` says how well it works.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drgrade.data.duplicates.search import DUPLICATES_VERSION, clusters, find_duplicates

__all__ = ["DUPLICATES_VERSION", "clusters", "find_duplicates"]


def __getattr__(name: str) -> Any:
    """Import the search when it is asked for: who only makes thumbnails needs no pandas and no SciPy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from drgrade.data.duplicates import search

    return getattr(search, name)
