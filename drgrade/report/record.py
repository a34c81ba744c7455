"""A report's contents as JSON, for programs."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drgrade.report.contents import Study


def render_json(study: Study, files: Sequence[str]) -> str:
    """Write everything that a report says.

    Args:
        study: What it says; NaN becomes null, and ``splits`` a list of objects.
        files: Names of the report's files, relative to its folder.
    """
    splits = [
        {"protocol": protocol, "label_fraction": share, "fold": fold, "split_hash": code}
        for (protocol, share, fold), code in study.splits.items()
    ]
    record = {
        field.name: _plain(getattr(study, field.name)) for field in fields(study) if field.name != "splits"
    }
    return json.dumps({**record, "splits": splits, "files": sorted(files)}, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """What JSON has words for.

    Raises:
        TypeError: If it has none.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set):
        return [_plain(item) for item in value]
    raise TypeError(f"a report cannot hold {value!r} of {type(value).__name__}")
