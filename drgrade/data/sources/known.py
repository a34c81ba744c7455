"""Sources that an artefact may name: those of drgrade, and those of installed entry points."""

import importlib
import re
from collections.abc import Mapping
from functools import cache

from drgrade.artefacts import installed_class, shortened
from drgrade.config import CONF
from drgrade.data.sources.base import Source
from drgrade.errors import DataError

ENTRY_POINTS = "drgrade.sources"
"""Group of the entry points by which an installed package offers its own sources."""

_PACKAGE = "drgrade.data.sources."


def source_class(target: object) -> type[Source] | None:
    """Return the class of a source that an artefact may name; None for every other name.

    These are the sources of drgrade that ``conf/data`` names, and those that installed packages offer as
    entry points of the group :data:`ENTRY_POINTS`. Nothing else is imported.

    Example:
        >>> source_class("drgrade.data.sources.ddr.DDR").__name__
        'DDR'
        >>> source_class("os.system")
    """
    if not isinstance(target, str):
        return None
    if target in _own_sources():
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    else:
        found = installed_class(ENTRY_POINTS, target)
    return found if isinstance(found, type) and issubclass(found, Source) else None


@cache
def _own_sources() -> frozenset[str]:
    targets = re.compile(rf"^  _target_: ({re.escape(_PACKAGE)}\w+\.\w+)$", re.MULTILINE)
    files = (CONF / "data").glob("*.yaml")
    return frozenset(name for file in files for name in targets.findall(file.read_text(encoding="utf-8")))


def make_source(node: object) -> Source:
    """Make a source from the settings of an artefact, which are text, numbers and truth values.

    Raises:
        DataError: If they name no source, or a source refuses them.
    """
    settings = dict(node) if isinstance(node, Mapping) else {}
    target = settings.pop("_target_", None)
    kind = source_class(target)
    if kind is None:
        raise DataError(f"its source is {shortened(target)}, which is not a data set of drgrade")
    for name, value in settings.items():
        if isinstance(value, dict | list) or str(name).startswith("_"):
            raise DataError(f"its source has {name}={shortened(value)}, which is not allowed")
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise DataError(f"its source {kind.__name__} refuses its settings: {error}") from error
