"""Values in the grammar of Hydra's overrides."""

from collections.abc import Mapping, Sequence


def as_override(value: object) -> str:
    """Write a value so that Hydra reads the same one.

    Args:
        value: Text, number, truth value, None, or a list or mapping of such; keys are plain words.

    Returns:
        The right side of ``setting=...``.

    Raises:
        TypeError: If it is of another kind.
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return "'" + _escaped(value) + "'"
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
    """Backslashes count only before a quote, and at the end, where a quote follows."""
    out, waiting = "", 0
    for sign in text:
        if sign == "\\":
            waiting += 1
            continue
        out += "\\" * (2 * waiting + 1 if sign == "'" else waiting) + sign
        waiting = 0
    return out + "\\" * (2 * waiting)
