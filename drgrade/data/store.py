"""The prepared store: every photograph of a source as a square crop of one size, in one memory-mapped array.

A store is a folder with

- ``images.npy``: uint8 (N, S, S, 3), RGB; the disc of the fundus touches the four sides, black outside the
  photograph;
- ``manifest.csv``: row i describes image i: the source's columns, then those of
  :data:`~drgrade.data.building.GEOMETRY_COLUMNS`;
- ``problems.csv``: image_id, path, reason, action: what was left out, and what had to be converted;
- ``store.json``: how it was made, and a hash of its content.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock, Timeout

from drgrade.data.building import FORMAT, IMAGES, INFO, MANIFEST, PROBLEMS, Plan, fill, say
from drgrade.data.problems import examples, read_problems, summary
from drgrade.data.reading import MAX_PIXELS
from drgrade.data.sources.base import MANIFEST_COLUMNS, Source
from drgrade.errors import DataError

_UNFINISHED = ".unfinished"
_TYPES = dict.fromkeys(MANIFEST_COLUMNS, "string") | dict.fromkeys(("grade", "width", "height"), "Int64")


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store, read-only.

    Attributes:
        folder: Where it is.
        images: RGB, uint8 of shape (N, S, S, 3), memory-mapped. The centre of image i is the centre of its
            disc, half the side is the disc's radius; ``manifest.clear[i] * S / 2`` is the radius without
            padding.
        manifest: Row i describes image i.
        problems: Columns image_id, path, reason, action.
        info: How it was made (``store.json``).
    """

    folder: Path
    images: npt.NDArray[np.uint8]
    manifest: pd.DataFrame
    problems: pd.DataFrame
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of pixels and labels; the same wherever and whenever the store was made."""
        return str(self.info["sha256"])

    @property
    def name(self) -> str:
        """Name of the source."""
        return str(self.info["source"])

    @property
    def left_out(self) -> pd.DataFrame:
        """The problems that cost a row."""
        return self.problems[self.problems["action"] == "left out"]

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open a store.

        Raises:
            DataError: If the folder is no store, is damaged, or is of a later format.
        """
        folder = Path(folder)
        info = _read_info(folder)
        try:
            images = np.load(folder / IMAGES, mmap_mode="r")
            manifest = read_manifest(folder / MANIFEST)
            problems = read_problems(folder / PROBLEMS)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is a damaged store ({error}): delete it and prepare it again"
            ) from error
        expected = (info["photographs"], info["image_size"], info["image_size"], 3)
        if images.shape != expected or images.dtype != np.uint8 or len(manifest) != len(images):
            raise DataError(
                f"{folder} is a damaged store (images {images.shape}, {len(manifest)} rows, expected "
                f"{expected}): delete it and prepare it again"
            )
        return cls(folder, images, manifest, problems, info)


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a store's manifest with the types of a source's; ids such as ``NA`` and ``001`` stay."""
    return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])


def _read_info(folder: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a prepared store (it has no {INFO}): make one with drgrade prepare"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / INFO} cannot be read: {error}") from error
    if info.get("format") != FORMAT:
        raise DataError(
            f"{folder} has store format {info.get('format')}, this version of drgrade reads {FORMAT}"
        )
    return info


def prepare(
    source: Source,
    folder: Path,
    *,
    image_size: int,
    strict: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Store:
    """Prepare a source, or open the store that was prepared from the same files before.

    Several processes may ask for one store at the same time: one prepares it, the others wait. It is built
    beside its place and renamed when complete.

    Args:
        source: The photographs and their labels.
        folder: Folder of all stores; this one becomes ``<source>-<size>px-<key>`` in it.
        image_size: Side of the images in pixels.
        strict: Whether one photograph or row that cannot be used is an error. Otherwise it is left out and
            reported.
        workers: Number of processes; None for one per CPU.
        max_pixels: Refuse larger photographs.

    Raises:
        DataError: If the source cannot be used as a whole, nothing in it can be used, or with ``strict``
            something cannot.
    """
    if image_size < 8:
        raise DataError(f"data.image_size={image_size} is too small: 8 pixels at least")
    plan = Plan(source, source.read(), Path(folder), image_size, max_pixels)
    if not plan.target.is_dir():
        _make_folder(plan.folder)
        with _locked(plan):
            if not plan.target.is_dir():
                _build(plan, strict, workers)
                return Store.open(plan.target)
    store = Store.open(plan.target)
    if strict and len(store.left_out):
        raise _strict_error(store.left_out, store.folder / PROBLEMS)
    say(f"using the prepared store {store.folder} ({len(store)} photographs)")
    return store


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder of stores {folder}: {error.strerror}") from error


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """Hold the lock on one store; whoever has to wait is told for what."""
    lock = FileLock(plan.folder / f".{plan.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that prepares {plan.target}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(plan: Plan, strict: bool, workers: int | None) -> None:
    """Make the store in a folder beside its place, then rename it; the caller holds the lock."""
    _remove_unfinished(plan)
    unfinished = plan.folder / f".{plan.name}{_UNFINISHED}"
    unfinished.mkdir()
    try:
        problems = fill(plan, unfinished, workers)
        left_out = problems[problems["action"] == "left out"]
        photographs = json.loads((unfinished / INFO).read_text(encoding="utf-8"))["photographs"]
        if photographs == 0 or (strict and len(left_out)):
            report = plan.folder / f"{plan.name}.{PROBLEMS}"
            (unfinished / PROBLEMS).replace(report)
            if strict and photographs:
                raise _strict_error(left_out, report)
            raise DataError(
                f"no photograph of {plan.source.root} can be used: {examples(left_out)}. "
                f"All problems: {report}"
            )
        unfinished.rename(plan.target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(f"prepared {photographs} photographs: {plan.target}")
    if len(problems):
        say(summary(problems, plan.target / PROBLEMS))


def _strict_error(left_out: pd.DataFrame, report: Path) -> DataError:
    return DataError(
        f"{len(left_out)} rows cannot be used and data.strict=true: {examples(left_out)}. "
        f"All problems: {report}"
    )


def _remove_unfinished(plan: Plan) -> None:
    """Remove what killed runs left behind: their folders are not locked."""
    for leftover in plan.folder.glob(f".*{_UNFINISHED}"):
        name = leftover.name.removesuffix(_UNFINISHED)
        lock = FileLock(plan.folder / f"{name}.lock")
        if name == f".{plan.name}":
            shutil.rmtree(leftover)
            continue
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue
