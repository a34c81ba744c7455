"""Arguments of commands that have no config: paths first, then ``setting=value``."""

import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from drgrade.config import nearest
from drgrade.errors import ConfigError, DrgradeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
"""A dataclass whose fields are the command's settings, each with its default.

Types that can be read: ``str``, ``int``, ``float``, ``bool``, ``Path``, ``Literal[...]`` of strings,
``tuple[X, ...]`` of these (written with commas), and ``X | None`` of all of them (written ``null``).
``metadata={"help": ...}`` of a field explains it.
"""

_SETTING = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_HELP = ("-h", "--help", "help")
_TRUTH = {"true": True, "false": False}


def run(
    work: Callable[[list[Path], Settings], object],
    settings: Settings,
    usage: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Read the command line and do the work; what the user can mend ends as one line and status 1.

    Args:
        work: Gets the paths and the settings.
        settings: The defaults.
        usage: How to call the command; printed for ``--help``, with a line for each setting.
        arguments: Of the command line; None: those that Python was started with.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if any(argument in _HELP for argument in given):
        print(help_text(usage, settings))
        return
    try:
        work(*parse(given, settings))
    except DrgradeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse(arguments: Sequence[str], settings: Settings) -> tuple[list[Path], Settings]:
    """Tell paths from settings, and read the settings' values.

    Args:
        arguments: Of the command line. ``name=value`` is a setting; a path that looks like one is written
            ``./name=value``.
        settings: The defaults.

    Returns:
        The paths in their order, and the settings with what was given; the last one wins.

    Raises:
        ConfigError: If there is no such setting or option, or a value cannot be read.
    """
    paths: list[Path] = []
    given: dict[str, Any] = {}
    kinds = get_type_hints(type(settings))
    known = [field.name for field in fields(settings)]
    for argument in arguments:
        setting = _SETTING.fullmatch(argument)
        if argument.startswith("-"):
            raise ConfigError(
                f"there is no option {argument}; settings are written name=value (--help lists them)"
            )
        if setting is None:
            paths.append(Path(argument))
            continue
        name, text = setting.groups()
        if name not in known:
            raise ConfigError(
                f"there is no setting {name!r} here; {nearest(name, known)} (a path is written ./{argument})"
            )
        given[name] = _read(name, text, kinds[name])
    return paths, replace(settings, **given)


def help_text(usage: str, settings: Settings) -> str:
    """What ``--help`` prints.

    Args:
        usage: How to call the command.
        settings: The defaults.

    Returns:
        The usage, and a line for each setting with its default and, if its field has one, its explanation.
    """
    lines = []
    for field in fields(settings):
        written = f"{field.name}={_written(getattr(settings, field.name))}"
        lines.append(f"  {written:24} {field.metadata.get('help', '')}".rstrip())
    return "\n".join([usage.rstrip(), "", "settings, with their defaults:", *lines])


def _read(name: str, text: str, kind: Any) -> Any:
    """A value of a type as it was written."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in parts and text in ("null", "None"):
            return None
        (kind,) = (part for part in parts if part is not type(None))
        return _read(name, text, kind)
    if origin is tuple:
        return tuple(
            _read(name, part.strip(), parts[0]) for part in text.strip("[]").split(",") if part.strip()
        )
    if origin is Literal:
        if text not in parts:
            raise ConfigError(f"{name}={text}: {nearest(text, list(parts))}")
        return text
    if kind is Path and not text:
        raise ConfigError(f"{name}= names no file or folder; the one you are in is written {name}=.")
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ConfigError(f"{name}={text} is neither true nor false")
        return _TRUTH[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"{name}={text} is not {wanted}") from error


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
