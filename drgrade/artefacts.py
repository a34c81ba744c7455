"""Read JSON and YAML of artefacts (runs, encoders, published models, stores, jobs); strip what is private.

An artefact may come from anybody, so it is data: size and nesting are bounded, YAML has no tags and aliases,
and nothing in it is resolved.
"""

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from tokenize import TokenError
from typing import Any, NoReturn

import yaml

from drgrade.errors import DataError
from drgrade.files import require_regular

MAX_BYTES = 64_000_000
"""Largest text file that is parsed, in bytes; a list of 100,000 photographs is far smaller."""

MAX_CONFIG_BYTES = 1_000_000
"""Largest YAML file, in bytes."""

MAX_DEPTH = 32
"""Largest nesting of mappings and lists."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML has it
_EVENTS: Any = getattr(yaml, "CLoader", yaml.Loader)  # only its events are read


def read_bytes(path: Path, repair: str, limit: int = MAX_BYTES) -> bytes:
    """Read a file, without waiting for a pipe or a device.

    Args:
        path: The file.
        repair: What to do about a damaged file, for the message.
        limit: Largest size in bytes.

    Raises:
        DataError: If it is no regular file, too large or not readable.
    """
    try:
        if not require_regular(path).is_file():
            raise DataError(f"{path} is missing or is not a file; {repair}")
        with path.open("rb") as file:
            content = file.read(limit + 1)  # it may grow while it is read
            size = max(len(content), path.stat().st_size)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); {repair}") from error
    if size > limit:
        raise DataError(f"{path} is too large ({size:,} bytes, at most {limit:,} are read); {repair}")
    return content


def read_text(path: Path, repair: str, limit: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8; see :func:`read_bytes` for the arguments.

    Raises:
        DataError: As :func:`read_bytes`, or if it is not UTF-8.
    """
    try:
        return io.TextIOWrapper(io.BytesIO(read_bytes(path, repair, limit)), encoding="utf-8").read()
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); {repair}") from error


def read_json(path: Path, repair: str) -> Any:
    """Read a JSON file; see :func:`read_text` for the arguments.

    Raises:
        DataError: If it cannot be read, is no JSON, is nested too deeply, or has a number that is not finite.
    """
    return parse_json(read_text(path, repair), path, repair)


def read_object(path: Path, repair: str) -> dict[str, Any]:
    """Read a JSON file that holds an object; see :func:`read_json`.

    Raises:
        DataError: As :func:`read_json`, or if it is not an object.
    """
    content = read_json(path, repair)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object; {repair}")
    return content


def parse_json(text: str | bytes, origin: object, repair: str) -> Any:
    """Parse JSON; ``origin`` is named in messages. See :func:`read_json`."""
    content = _parsed(lambda: json.loads(text, parse_constant=_refuse_constant), origin, repair)
    check_plain(content, origin, repair)
    return content


def read_yaml(path: Path, repair: str, interpolations: bool = False) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        repair: What to do about a damaged file, for the message.
        interpolations: Accept OmegaConf's ``${...}``, as text. Otherwise they are errors: drgrade writes the
            config of a run with all of them resolved, and to resolve others could read the environment.

    Raises:
        DataError: If it cannot be read, is no such file, or has tags, aliases or interpolations.
    """
    text = read_text(path, repair, MAX_CONFIG_BYTES)
    content = _parsed(lambda: _parse_yaml(text), path, repair)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a mapping of settings; {repair}")
    check_plain(content, path, repair)
    if not interpolations:
        try:
            refuse_interpolations(content)
        except DataError as error:
            raise DataError(f"{path} is refused: {error}; {repair}") from error
    return content


def refuse_interpolations(settings: Any) -> None:
    """Raise DataError if a setting has an interpolation of OmegaConf, or is missing; the setting is named."""
    for name, value in leaves(settings):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise DataError(f"{name}={shortened(value)} is an interpolation, and none are resolved here")


def map_array(path: Path, repair: str) -> Any:
    """Memory-map a ``.npy`` file of numbers, read-only.

    Raises:
        DataError: If it is missing, no regular file, damaged or incomplete.
    """
    import numpy as np

    require_regular(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    # The header is parsed as Python text, which has errors of its own.
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); {repair}") from error
    return array


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings and lists, with their names as ``a.b.0``.

    Example:
        >>> list(leaves({"a": {"b": 1}, "c": [2]}))
        [('a.b', 1), ('c.0', 2)]
    """
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def select(settings: Any, name: str) -> Any:
    """Return a setting ``a.b.c`` of nested mappings; None if it, or a mapping around it, is missing.

    Example:
        >>> select({"a": {"b": 1}}, "a.b"), select({"a": [1]}, "a.b")
        (1, None)
    """
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def check_plain(content: Any, origin: object, repair: str) -> None:
    """Check that content has mappings with text as keys, lists, text and numbers only.

    Raises:
        DataError: If it has something else, or is nested deeper than :data:`MAX_DEPTH`.
    """
    level, depth = [content], 0
    while level:
        if depth > MAX_DEPTH:
            raise DataError(f"{origin} is nested too deeply; {repair}")
        for node in level:
            if not isinstance(node, dict | list | str | int | float | None):
                raise DataError(f"{origin} has a {type(node).__name__}: {shortened(node)}; {repair}")
            if isinstance(node, dict) and not all(isinstance(key, str) for key in node):
                raise DataError(f"{origin} has a name that is not text; {repair}")
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        depth += 1


def shortened(value: object, length: int = 60) -> str:
    """Return a value on one line, at most ``length`` characters, for a message."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[!-~]+", value)
    text = value if isinstance(value, str) and is_plain else ascii(value)
    return text if len(text) <= length else f"{text[:length]}..."


def installed_class(group: str, target: object) -> object:
    """Load the entry point of a group that an artefact names as ``package.module.Class``, or return None.

    Nothing else is imported: an artefact may only name what an installed package offers.
    """
    offered = (entry for entry in entry_points(group=group) if entry.value.replace(":", ".") == target)
    return next((entry.load() for entry in offered), None)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return True for a finite number in [low, high]; truth values do not count as numbers."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and low <= value <= high
        and abs(value) != math.inf
    )


def _parsed(parse: Callable[[], Any], origin: object, repair: str) -> Any:
    try:
        return parse()
    except RecursionError:
        raise DataError(f"{origin} is nested too deeply; {repair}") from None
    # PyYAML's constructors raise AttributeError, KeyError and TypeError for values that a tag does not fit.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{origin} cannot be read ({_reason(error)}); {repair}") from error


def _parse_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_EVENTS):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias (*name)")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ValueError(f"it has a tag: {tag}")
    return yaml.load(text, Loader=_LOADER)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has the number {name}")


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "strerror", None) or error).split()
    return " ".join(lines)[:300] or type(error).__name__


PUBLIC_TEXT = re.compile(r"[\w .,+=()-]*")
"""Strings that may be published: no paths, no addresses, no interpolations."""

_TOKEN = re.compile(
    r"\b(hf_|sk-|pk_|rk_|gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|AKIA|ASIA|AIza|eyJ|wandb_v)[\w-]{12}"
    r"|\b[0-9a-fA-F]{32,}\b"
    r"|\b[A-Za-z0-9]{24,}\b"
)
"""Known forms of access tokens, hexadecimal keys, and long words that may be random."""

_HASH = re.compile(r"[0-9a-f]{64}")
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_ALTERNATIONS = 5  # between letters and digits in a random word; names have fewer


def looks_secret(text: str) -> bool:
    """Return True if a text contains what looks like a key, a token or a password.

    That is a known form of a token, a random word, or the value of an environment variable that is named like
    a secret.

    Example:
        >>> looks_secret("hf_AbCdEfGhIjKlMnOpQrSt"), looks_secret("MsSSL, 10 % of the labels, DenseNet121")
        (True, False)
    """
    for found in _TOKEN.finditer(text):
        word = found[0]
        if found[1] or re.fullmatch(r"[0-9a-fA-F]+", word):
            return True
        if len(re.findall(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", word)) >= _ALTERNATIONS:
            return True
    secrets = (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name))
    return any(len(value) >= 8 and value in text for value in secrets)


def strip_private(value: Any, name: str = "") -> Any:
    """Return a copy in which strings that may be a path, an address, code or a secret are None.

    ``weights`` are None, too, and entries whose name looks like a secret are left out. Hashes stay.

    Args:
        value: Mappings, lists, text and numbers.
        name: Name of the value in the mapping around it.
    """
    if isinstance(value, Mapping):
        named = {str(key): item for key, item in value.items() if not looks_secret(str(key))}
        return {key: None if key == "weights" else strip_private(item, key) for key, item in named.items()}
    if isinstance(value, list | tuple):
        return [strip_private(item, name) for item in value]
    if not isinstance(value, str) or (name.endswith(("hash", "sha256", "key")) and _HASH.fullmatch(value)):
        return value
    return value if PUBLIC_TEXT.fullmatch(value) and not looks_secret(value) else None
