"""What every source gives: a manifest of photographs, and the list of what is wrong with it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

MANIFEST_COLUMNS = ("image_id", "path", "grade", "patient_id", "eye", "dataset", "split")
"""Columns of a manifest, in order. ``grade`` is a nullable integer (``Int64``); ``path`` is relative to the
source's root, with forward slashes; ``split`` is ``train``/``val``/``test`` as published; unknown is missing (``pd.NA``)."""

GRADES = (0, 1, 2, 3, 4)
"""International clinical DR severity scale: none, mild, moderate, severe non-proliferative; proliferative."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one photograph or one row of a label file.

    Attributes:
        image_id: The photograph's id as far as it is known, else "".
        path: The file (or ``labels.csv:17`` for a row) it was found in, relative to the root where possible.
        reason: What is wrong, in words.
        action: ``left out`` (the photograph is not in the store) or ``converted`` (it is, after a conversion).
    """

    image_id: str
    path: str
    reason: str
    action: Literal["left out", "converted"]


@dataclass(frozen=True)
class SourceTable:
    """What a source found: a manifest with :data:`MANIFEST_COLUMNS`, sorted by image_id, and its problems."""

    manifest: pd.DataFrame
    problems: tuple[Problem, ...] = ()


class Source(ABC):
    """A data set on disk. Subclasses read one layout; they never decode a photograph.

    Attributes:
        name: The data set's name, as in ``data=NAME``.
        root: Folder that the manifest's paths are relative to.
    """

    name: str
    root: Path

    @abstractmethod
    def read(self) -> SourceTable:
        """Read labels and list photographs.

        Raises:
            DataError: If the data set as a whole cannot be used (no such folder, no label file, a column is missing).
        """
