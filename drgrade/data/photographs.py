"""The photographs of a run: a source, prepared into a store, and split."""

from functools import cached_property
from pathlib import Path

import pandas as pd

from drgrade.data.sources.base import Source
from drgrade.data.splits import SplitSpec, make_split, split_hash
from drgrade.data.store import Store, prepare


class Photographs:
    """Ties a source to its store and its split; both are made on first use.

    Attributes:
        source: Where the photographs come from.
        spec: How they are split.
    """

    def __init__(
        self,
        source: Source,
        split: SplitSpec,
        folder: str | Path,
        image_size: int,
        strict: bool = False,
        workers: int | None = None,
        max_pixels: int = 100_000_000,
    ) -> None:
        """Describe what to prepare; nothing is read yet.

        Args:
            source: Where the photographs come from.
            split: How to split them.
            folder: Folder of all stores.
            image_size: Side of the prepared photographs in pixels.
            strict: Stop if any photograph has to be left out.
            workers: Processes that prepare; None for one per core.
            max_pixels: Photographs with more pixels are left out, undecoded.
        """
        self.source, self.spec = source, split
        self._folder, self._image_size = Path(folder), image_size
        self._strict, self._workers, self._max_pixels = strict, workers, max_pixels

    @cached_property
    def store(self) -> Store:
        """The prepared store.

        Raises:
            DataError: If the source cannot be used.
        """
        return prepare(
            self.source,
            self._folder,
            image_size=self._image_size,
            strict=self._strict,
            workers=self._workers,
            max_pixels=self._max_pixels,
        )

    @cached_property
    def split(self) -> pd.DataFrame:
        """Columns image_id, group, grade, subset; row i is image i of the store.

        Raises:
            DataError: If the split asked for is impossible with these photographs.
        """
        return make_split(self.store.manifest, self.spec)

    @cached_property
    def split_hash(self) -> str:
        """SHA-256 of the split."""
        return split_hash(self.split)
