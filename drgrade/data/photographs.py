"""Collections of prepared data sets with common row numbers, duplicates and a split."""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock

from drgrade.data.duplicates import DUPLICATES_VERSION, clusters, find_duplicates
from drgrade.data.sources.base import Source
from drgrade.data.splits.remarks import Remark
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.splits.split import Split, has_grades, make_split, split_hash, split_sides
from drgrade.data.store import PrepareOptions, Store, prepare
from drgrade.data.store_builder import PREPARATION_VERSION
from drgrade.errors import ConfigError, DataError
from drgrade.files import allocate, require_regular, write_text

Role = Literal["labelled", "unlabelled", "external"]
"""Use of a data set: grading (training, validation and test), pre-training only, or test only."""

_NAME = re.compile(r"[\w-][\w.-]*")
_DUPLICATE_TYPES = {"kind": "string", "mirrored": "bool"}


class CollectionOptions(PrepareOptions, total=False):
    """Options of a collection, in addition to those of :func:`~drgrade.data.store.prepare`.

    Attributes:
        labelled: Further data sets, used like the first one.
        unlabelled: Data sets for pre-training; their grades are not used.
        external: Data sets for testing only.
        find_duplicates: Search for copies of photographs, which a split then keeps together. Default true.
    """

    labelled: Sequence[Source]
    unlabelled: Sequence[Source]
    external: Sequence[Source]
    find_duplicates: bool


class Collection:
    """One or several data sets, prepared on first use.

    Row i of :attr:`manifest` describes image i, counted through all stores. Ids and patients of further data
    sets get the prefix ``<data set>/``; those of the first data set are unchanged.

    Args:
        source: Reader of the first data set.
        folder: Folder of all stores.
        image_size: Side of the prepared photographs in pixels.
        **options: See :class:`CollectionOptions`.

    Raises:
        ConfigError: If two data sets have the same name, or a name cannot be part of a file name.
    """

    def __init__(
        self, source: Source, folder: str | Path, image_size: int, **options: Unpack[CollectionOptions]
    ) -> None:
        self.source = source
        self.roles: list[tuple[Source, Role]] = [(source, "labelled")]
        self.roles += [(other, "labelled") for other in options.pop("labelled", ())]
        self.roles += [(other, "unlabelled") for other in options.pop("unlabelled", ())]
        self.roles += [(other, "external") for other in options.pop("external", ())]
        _check_names([each.name for each, _ in self.roles])
        self.folder, self._image_size = Path(folder), image_size
        self._find_duplicates = options.pop("find_duplicates", True)
        self._options: PrepareOptions = options

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """Prepared stores in the order of the data sets.

        Raises:
            DataError: If a source cannot be used.
        """
        return tuple(
            prepare(source, self.folder, image_size=self._image_size, **self._options)
            for source, _ in self.roles
        )

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    @property
    def image_files(self) -> list[Path]:
        """Arrays of the stores, (N_k, S, S, 3) uint8 each; rows of the manifest count through them."""
        return [store.images_file for store in self.stores]

    @cached_property
    def photographs(self) -> pd.DataFrame:
        """Concatenated manifests of the stores with a column ``role`` (see :data:`Role`)."""
        manifests = []
        for number, (store, (_, role)) in enumerate(zip(self.stores, self.roles, strict=True)):
            manifest = store.manifest.assign(role=role)
            if number:
                for column in ("image_id", "patient_id"):
                    manifest[column] = f"{store.name}/" + manifest[column]
            manifests.append(manifest)
        return pd.concat(manifests, ignore_index=True)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """:attr:`photographs` with a column ``duplicate``: name of the cluster of copies, or missing."""
        labels = clusters(self.duplicates, len(self.photographs))
        several = np.isin(labels, np.flatnonzero(np.bincount(labels, minlength=len(labels)) > 1))
        names = pd.Series("", index=self.photographs.index, dtype="string")
        # Named after the first id, so that names do not depend on the order of rows.
        names[several] = self.photographs["image_id"].groupby(labels).transform("min")[several]
        return self.photographs.assign(duplicate=names.mask(~pd.Series(several), pd.NA))

    @cached_property
    def duplicates(self) -> pd.DataFrame:
        """Pairs of copies as returned by :func:`~drgrade.data.duplicates.find_duplicates`.

        The result is stored beside the stores.
        """
        if not self._find_duplicates:
            return find_duplicates(np.zeros((0, 1, 1), np.uint8), [], np.zeros(0))
        hashes = self.photographs["file_sha256"].tolist()
        values = json.dumps([DUPLICATES_VERSION, PREPARATION_VERSION, hashes])
        path = self.folder / "duplicates" / f"{hashlib.sha256(values.encode()).hexdigest()[:32]}.csv"
        pairs = _read_pairs(path)
        if pairs is not None:
            return pairs
        try:
            path.parent.mkdir(exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                pairs = _read_pairs(path)
                return self._search(path, hashes) if pairs is None else pairs
        except OSError as error:
            raise DataError(
                f"cannot write the list of duplicates to {path.parent}: {error.strerror or error}"
            ) from error

    def _search(self, path: Path, hashes: list[str]) -> pd.DataFrame:
        diameters = 2 * self.photographs["circle_r"].to_numpy(dtype=float)
        with self._thumbnails() as thumbnails:
            pairs = find_duplicates(thumbnails, hashes, diameters, progress=True)
        write_text(path, pairs.to_csv(index=False))
        return pd.read_csv(path, dtype=_DUPLICATE_TYPES)  # exactly as later calls read it

    @contextmanager
    def _thumbnails(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the thumbnails of all stores as one array, on disk because 100,000 of them take 1.6 GB."""
        parts = [store.thumbnails for store in self.stores]
        if len(parts) == 1:
            yield parts[0]
            return
        with TemporaryDirectory(dir=self.folder) as scratch:
            shape = (len(self), *parts[0].shape[1:])
            path = Path(scratch) / "thumbnails.npy"
            joined = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            allocate(path)
            np.concatenate(parts, out=joined)
            yield joined

    @property
    def sha256(self) -> str:
        """Hash of pixels, labels and roles; for a single data set the hash of its store."""
        hashes = [store.sha256 for store in self.stores]
        if len(hashes) == 1:
            return hashes[0]
        roles = [[source.name, role] for source, role in self.roles]
        return hashlib.sha256(json.dumps([roles, hashes]).encode()).hexdigest()

    def store_numbers(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Return the sorted numbers of the stores that contain rows of the manifest."""
        ends = np.cumsum([len(store) for store in self.stores])
        return sorted({int(number) for number in np.searchsorted(ends, rows, side="right")})


def _check_names(names: list[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"data.name={name!r} becomes part of file names: use only letters, digits, dots, _ and -"
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"the data set {', '.join(repeated)} occurs twice among data={names[0]} and data.labelled, "
            "data.unlabelled, data.external; another folder of the same kind needs another name: "
            "data.unlabelled=[{data: folder, name: more, root: DIR}]"
        )


def _read_pairs(path: Path) -> pd.DataFrame | None:
    """Read stored duplicates; return None if the file is missing or damaged (empty after a power cut)."""
    try:
        return pd.read_csv(require_regular(path), dtype=_DUPLICATE_TYPES)
    except (DataError, OSError, ValueError, TypeError, OverflowError):
        return None


class Photographs(Collection):
    """A collection and its split, both made on first use.

    Args:
        source: Reader of the first data set.
        split: Specification of the split.
        folder: See :class:`Collection`, also for the rest.
        image_size: Side of the prepared photographs in pixels.
        **options: See :class:`CollectionOptions`.
    """

    def __init__(
        self,
        source: Source,
        split: SplitSpec,
        folder: str | Path,
        image_size: int,
        **options: Unpack[CollectionOptions],
    ) -> None:
        super().__init__(source, folder, image_size, **options)
        self.spec = split

    def split_by(self, spec: SplitSpec) -> "Photographs":
        """Return the same photographs with another split; stores and duplicates are shared."""
        other = copy.copy(self)
        for name in ("_drawn", "sides", "split_hash"):
            other.__dict__.pop(name, None)
        other.spec = spec
        return other

    def assigned(self, table: pd.DataFrame) -> "Photographs":
        """Return the same photographs with a given :attr:`split`, of which nothing is used for training."""
        other = self.split_by(self.spec)
        none = pd.Series(False, index=table.index)
        other._drawn = Split(table, (), training_side=none, foreign=none)
        return other

    @cached_property
    def _drawn(self) -> Split:
        return make_split(self.manifest, self.spec)

    @cached_property
    def sides(self) -> Split:
        """The split; without any grades, only its sides, which suffice for pre-training.

        Raises:
            DataError: If the split is impossible with these photographs.
        """
        return self._drawn if has_grades(self.manifest) else split_sides(self.manifest, self.spec)

    @property
    def split(self) -> pd.DataFrame:
        """Columns image_id, group, grade, subset; row i describes image i.

        Raises:
            DataError: If the split is impossible with these photographs.
        """
        return self._drawn.table

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks on the split for readers of the results."""
        return self._drawn.remarks

    @cached_property
    def split_hash(self) -> str:
        """SHA-256 of the split."""
        return split_hash(self.split)
