"""The grammar of Hydra's overrides: write values, quote paths."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


def as_override(value: object) -> str:
    """Write a value so that Hydra reads the same one.

    Args:
        value: Text, path, number, truth value, None, or a list or mapping of such; keys are plain words.

    Returns:
        The right side of ``setting=...``.

    Raises:
        TypeError: If it is of another kind.

    Example:
        >>> as_override(["a (copy)", None, True])
        "['a (copy)',null,true]"
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str | os.PathLike):
        return "'" + _escaped(os.fspath(value)) + "'"
    if isinstance(value, Sequence):
        return "[" + ",".join(as_override(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"{value!r} cannot be written as an override")


def _escaped(text: str) -> str:
    """Escape quotes. Backslashes count only before a quote, and at the end, where a quote follows."""
    return re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)


def quote(argument: str, many: bool, sweeps: bool) -> str:
    """Quote the value of an override that is a text or a path, where Hydra would read something else.

    Args:
        argument: ``name=value``.
        many: The setting is a list, written with commas; a value that is an existing path is one item.
        sweeps: Commas separate the values of a sweep, unless the value is an existing path.

    Returns:
        The override for Hydra; one that Hydra reads as it stands is returned unchanged.

    Example:
        >>> quote("data.root=/photos/ddr (copy)", many=False, sweeps=True)
        "data.root='/photos/ddr (copy)'"
    """
    name, _, value = argument.partition("=")
    if value.startswith("~/"):
        value = os.path.expanduser(value)  # noqa: PTH111 - a Path would drop a slash at the end
    exists = os.path.lexists(value)
    read = _parsed(f"{name}={value}")
    if value in ("", "null") or read == value:
        return f"{name}={value}"
    explicit = read is not None and (value[0] in "'\"[" or sweeps)
    if explicit and not exists:
        return argument
    if many and not exists:
        return f"{name}={as_override([part.strip() for part in value.split(',') if part.strip()])}"
    return f"{name}={as_override(value)}"


def with_paths(overrides: Sequence[str], setting: str, paths: Sequence[str]) -> list[str]:
    """Add positional paths to the overrides, as further values of a setting."""
    begin = f"{setting}="
    values: list[str] = []
    for override in overrides:
        if override.startswith(begin):
            read = _parsed(override)
            values += read if isinstance(read, list) else [str(read)]
    values += paths
    value = values[0] if len(values) == 1 else values
    return [*(each for each in overrides if not each.startswith(begin)), begin + as_override(value)]


def is_sweep(argument: str) -> bool:
    """Return whether Hydra would sweep over the values of an override."""
    override = _override(argument)
    return override is not None and override.is_sweep_override()


def _parsed(argument: str) -> Any:
    """Return the value that Hydra reads; None if it cannot read one."""
    override = _override(argument)
    return None if override is None else override.value()


def _override(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
