"""The photographs of one data set or of several, prepared, numbered through, and searched for copies."""

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

from drgrade.data import store
from drgrade.data.duplicates.search import DUPLICATES_VERSION, clusters, find_duplicates
from drgrade.data.sources.base import Source
from drgrade.data.splits.spec import Remark, SplitSpec
from drgrade.data.splits.split import Split, has_grades, split_hash, split_or_sides, split_with_remarks
from drgrade.data.store import Store, prepare
from drgrade.data.store_builder import PREPARATION_VERSION
from drgrade.data.store_reuse import IMAGES
from drgrade.errors import ConfigError, DataError
from drgrade.files import write_text

Role = Literal["labelled", "unlabelled", "external"]
"""What a data set is for: grading (trained, validated and tested on), pre-training only, testing only."""

_TYPES = {"kind": "string", "mirrored": "bool"}


_NAME = re.compile(r"[\w-][\w.-]*")


def _read_pairs(path: Path) -> pd.DataFrame | None:
    """What was found before; None if that is not there, or damaged."""
    try:
        return pd.read_csv(path, dtype=_TYPES)
    except (FileNotFoundError, ValueError):  # a power cut may leave an empty file
        return None


_FURTHER: tuple[Role, ...] = ("labelled", "unlabelled", "external")


class Options(store.Options, total=False):
    """What a collection may be given beside its data set, and beside the options of ``prepare``.

    Attributes:
        labelled: Further data sets on the same terms.
        unlabelled: Data sets to pre-train on; their grades are not used.
        external: Data sets to test on, and for nothing else.
        find_duplicates: Search for copies of photographs, which then stay together in a split. The default.
    """

    labelled: Sequence[Source]
    unlabelled: Sequence[Source]
    external: Sequence[Source]
    find_duplicates: bool


class Collection:
    """One data set, and others beside it.

    Row i of :attr:`manifest` describes image i, counted through all stores. Ids of the further data sets are
    ``<data set>/<image_id>``, their patients ``<data set>/<patient_id>``; those of the first are as they are.

    Args:
        source: The data set.
        folder: Folder of all stores.
        image_size: Side of the prepared photographs in pixels.
        **options: See :class:`Options`.

    Raises:
        ConfigError: If two data sets have one name, or a name cannot be part of a file's.
    """

    def __init__(
        self,
        source: Source,
        folder: str | Path,
        image_size: int,
        **options: Unpack[Options],
    ) -> None:
        self.source = source
        self.roles: list[tuple[Source, Role]] = [(source, "labelled")]
        for role in _FURTHER:
            self.roles += [(other, role) for other in options.pop(role, ())]
        names = [each.name for each, _ in self.roles]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"data.name={name!r} goes into names of files: use letters, digits, dots, _ and -"
                )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"the data set {', '.join(twice)} is given twice, among data={source.name} and "
                "data.labelled, data.unlabelled, data.external; another folder of the same kind "
                "needs another name: data.unlabelled=[{data: folder, name: more, root: DIR}]"
            )
        self.folder, self._image_size = Path(folder), image_size
        self._find_duplicates = options.pop("find_duplicates", True)
        self._options: store.Options = options

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """The prepared stores, in the order of the data sets.

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
        """The stores' arrays, (N_k, S, S, 3) uint8 each; row i of the manifest counts through them."""
        return [prepared.folder / IMAGES for prepared in self.stores]

    @cached_property
    def photographs(self) -> pd.DataFrame:
        """The stores' manifests one below the other, with a column ``role`` (see :data:`Role`)."""
        manifests = []
        for number, (prepared, (_, role)) in enumerate(zip(self.stores, self.roles, strict=True)):
            manifest = prepared.manifest.assign(role=role)
            if number:
                for column in ("image_id", "patient_id"):
                    manifest[column] = f"{prepared.name}/" + manifest[column]
            manifests.append(manifest)
        return pd.concat(manifests, ignore_index=True)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """:attr:`photographs` with a column ``duplicate``: name of the cluster of copies, missing without."""
        labels = clusters(self.duplicates, len(self.photographs))
        several = np.isin(labels, np.flatnonzero(np.bincount(labels, minlength=len(labels)) > 1))
        names = pd.Series("", index=self.photographs.index, dtype="string")
        # By the first id and not by row: the name must not depend on the order of rows.
        names[several] = self.photographs["image_id"].groupby(labels).transform("min")[several]
        return self.photographs.assign(duplicate=names.mask(~pd.Series(several), pd.NA))

    @cached_property
    def duplicates(self) -> pd.DataFrame:
        """Pairs of copies, as :func:`~drgrade.data.duplicates.search.find_duplicates` gives them.

        They are searched for once, and kept beside the stores.
        """
        if not self._find_duplicates:
            return find_duplicates(np.zeros((0, 1, 1), np.uint8), [], np.zeros(0))
        hashes = self.photographs["file_sha256"].tolist()
        key = hashlib.sha256(
            json.dumps([DUPLICATES_VERSION, PREPARATION_VERSION, hashes]).encode()
        ).hexdigest()
        path = self.folder / "duplicates" / f"{key[:32]}.csv"
        found = _read_pairs(path)
        if found is not None:
            return found
        try:
            path.parent.mkdir(exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                found = _read_pairs(path)
                return self._search(path, hashes) if found is None else found
        except OSError as error:
            raise DataError(
                f"the copies that were found cannot be kept in {path.parent}: {error.strerror or error}"
            ) from error

    def _search(self, path: Path, hashes: list[str]) -> pd.DataFrame:
        diameters = 2 * self.photographs["circle_r"].to_numpy(dtype=float)
        with self._thumbnails() as thumbnails:
            pairs = find_duplicates(thumbnails, hashes, diameters, progress=True)
        write_text(path, pairs.to_csv(index=False))
        return pd.read_csv(path, dtype=_TYPES)  # as it will be read the next time

    @contextmanager
    def _thumbnails(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All stores' thumbnails as one array on the disk: a hundred thousand of them take 1.6 GB."""
        parts = [prepared.thumbnails for prepared in self.stores]
        if len(parts) == 1:
            yield parts[0]
            return
        with TemporaryDirectory(dir=self.folder) as scratch:
            shape = (len(self), *parts[0].shape[1:])
            whole = np.lib.format.open_memmap(Path(scratch) / "thumbnails.npy", "w+", np.uint8, shape)
            start = 0
            for part in parts:
                whole[start : start + len(part)] = part
                start += len(part)
            yield whole

    @property
    def sha256(self) -> str:
        """Hash of pixels and labels; of a single data set the store's."""
        hashes = [prepared.sha256 for prepared in self.stores]
        if len(hashes) == 1:
            return hashes[0]
        roles = [[source.name, role] for source, role in self.roles]
        return hashlib.sha256(json.dumps([roles, hashes]).encode()).hexdigest()

    def store_numbers(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Numbers of the stores that rows of the manifest lie in, in order."""
        ends = np.cumsum([len(prepared) for prepared in self.stores])
        return sorted({int(number) for number in np.searchsorted(ends, rows, side="right")})


class Photographs(Collection):
    """A collection and how it is split; stores and split are made on first use.

    Args:
        source: Where the photographs come from.
        split: How to split them.
        folder: Folder of all stores.
        image_size: Side of the prepared photographs in pixels.
        **options: See :class:`~drgrade.data.photographs.Options`.
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
