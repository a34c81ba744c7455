"""Where a sweep lies: the same command finds the same folder."""

import hashlib
import re
from collections.abc import Sequence

AXES = ("init", "label_fraction", "fold", "seed")
"""More values of these extend a sweep: they are not part of its name."""

ROW_AXES = ("protocol",)
"""The same of a sweep with rows, in addition: its report sets protocols side by side."""

_NAMED = ("experiment", "data", "scale")
"""Part of the readable name already."""

_FREE = re.compile(
    r"(resume|download|sweep|method|name)$"
    r"|(trainer|logger|callbacks)$|logger\.|callbacks\.|paths\."
    r"|trainer\.(accelerator|devices|num_nodes|strategy)"
    r"|data\.root$|data\.(workers|num_workers|download)$"
)
"""Settings that do not make it another sweep: where, on what, and how it is watched."""


def sweep_name(name: str, data: str, fixed: Sequence[tuple[str, str]], axes: Sequence[str] = AXES) -> str:
    """Name a sweep by its experiment, its data and, if there are any, its other settings.

    Args:
        name: ``name`` of the config.
        data: Name of the data set.
        fixed: (setting, value) of the command line that all cells share.
        axes: Settings whose further values extend the sweep.

    Returns:
        ``rotation_table-demo``, with another scale ``rotation_table-idrid-small``, with further settings
        ``rotation_table-demo-3fa2b1``. Values of the axes,
        and settings that change no result, do not count.
    """
    counted = sorted(
        f"{key}={value}"
        for key, value in ((key.lstrip("+"), value) for key, value in fixed)
        if key not in axes and key not in _NAMED and not _FREE.match(key)
    )
    scale = [f"-{value}" for key, value in fixed if key == "scale"]
    suffix = f"-{hashlib.sha256(chr(10).join(counted).encode()).hexdigest()[:6]}" if counted else ""
    return f"{name}-{data}{''.join(scale)}{suffix}"
