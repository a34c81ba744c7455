"""The photographs of a run: a collection of data sets, and its split."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Unpack

import pandas as pd

from drgrade.data.collection import Collection, Options
from drgrade.data.sources.base import Source
from drgrade.data.splits import (
    Remark,
    Split,
    SplitSpec,
    has_grades,
    split_hash,
    split_or_sides,
    split_with_remarks,
)


class Photographs(Collection):
    """A collection and how it is split; stores and split are made on first use.

    Args:
        source: Where the photographs come from.
        split: How to split them.
        folder: Folder of all stores.
        image_size: Side of the prepared photographs in pixels.
        **options: See :class:`~drgrade.data.collection.Options`.
    """

    def __init__(
        self,
        source: Source,
        split: SplitSpec,
        folder: str | Path,
        image_size: int,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(source, folder, image_size, **options)
        self.spec = split

    def split_by(self, spec: SplitSpec) -> "Photographs":
        """The same photographs, split in another way; what was prepared and searched for is shared.

        Args:
            spec: How to split them.

        Returns:
            Others than these.
        """
        other = copy.copy(self)
        for made in ("_made", "sides", "split_hash"):
            other.__dict__.pop(made, None)
        other.spec = spec
        return other

    def assigned(self, table: pd.DataFrame) -> "Photographs":
        """The same photographs, with a split that was made elsewhere.

        Args:
            table: As :attr:`split`; nothing of it is for training.

        Returns:
            Others than these.
        """
        other = self.split_by(self.spec)
        nothing = pd.Series(False, index=table.index)
        other._made = Split(table, (), training_side=nothing, foreign=nothing)
        return other

    @cached_property
    def _made(self) -> Split:
        return split_with_remarks(self.manifest, self.spec)

    @cached_property
    def sides(self) -> Split:
        """The split, also of photographs of which none has a grade: they can be pre-trained on.

        Raises:
            DataError: If the split asked for is impossible with these photographs.
        """
        return self._made if has_grades(self.manifest) else split_or_sides(self.manifest, self.spec)

    @property
    def split(self) -> pd.DataFrame:
        """Columns image_id, group, grade, subset; row i is image i.

        Raises:
            DataError: If the split asked for is impossible with these photographs.
        """
        return self._made.table

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What a reader of the results should know about the split."""
        return self._made.remarks

    @cached_property
    def split_hash(self) -> str:
        """SHA-256 of the split."""
        return split_hash(self.split)
