"""The prepared store: every photograph of a source as a square crop of one size, in one memory-mapped array.

A store is a folder with

- ``images.npy``: uint8 (N, S, S, 3), RGB; the disc of the fundus touches the four sides, black outside the
  photograph;
- ``thumbnails.npy``: uint8 (N, T, T), grey, of one size for all stores: what duplicates are searched with;
- ``manifest.csv``: row i describes image i: the source's columns, then those of
  :class:`~drgrade.data.crops.Facts`;
- ``problems.csv``: image_id, path, reason, action: what was left out, and what had to be converted;
- ``files.jsonl``: what each file gave, so that the next store need not read it again;
- ``store.json``: how it was made, and a hash of its content.
"""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock, Timeout

from drgrade.data.duplicates.thumbnail import THUMBNAIL_SIZE
from drgrade.data.illumination import check_illumination
from drgrade.data.image_reader import MAX_PIXELS
from drgrade.data.problems import examples, read_problems, summary
from drgrade.data.sources.base import MANIFEST_COLUMNS, Source
from drgrade.data.store_builder import (
    FORMAT,
    INFO,
    MANIFEST,
    PROBLEMS,
    Built,
    Plan,
    Settings,
    can_continue,
    fill,
)
from drgrade.data.store_reuse import IMAGES, THUMBNAILS, Earlier, Shelf
from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.progress import say

_UNFINISHED = ".unfinished"
_SHELVES = 3
"""So many of the newest stores are looked through for crops: each costs memory."""

_INDEX = ".index"
"""Folder of small files: the state of a source's files -> the name of the store that was made of them."""
_TYPES = dict.fromkeys(MANIFEST_COLUMNS, "string") | dict.fromkeys(
    ("grade", "width", "height", "file_size"), "Int64"
)


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store, read-only.

    Attributes:
        folder: Where it is.
        images: RGB, uint8 of shape (N, S, S, 3), memory-mapped. The centre of image i is the centre of its
            disc, half the side is the disc's radius; ``manifest.clear[i] * S / 2`` is the radius without
            padding.
        thumbnails: Grey, uint8 of shape (N, T, T), memory-mapped.
        manifest: Row i describes image i.
        problems: Columns image_id, path, reason, action.
        info: How it was made (``store.json``).
    """

    folder: Path
    images: npt.NDArray[np.uint8]
    thumbnails: npt.NDArray[np.uint8]
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
    def pixels_sha256(self) -> str:
        """Hash of the pixels alone."""
        return str(self.info["pixels_sha256"])

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
            images, thumbnails = (np.load(folder / name, mmap_mode="r") for name in (IMAGES, THUMBNAILS))
            manifest = read_manifest(folder / MANIFEST)
            problems = read_problems(folder / PROBLEMS)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder} is a damaged store ({error}): delete it and prepare it again"
            ) from error
        expected = (info["photographs"], info["image_size"], info["image_size"], 3)
        small = (info["photographs"], THUMBNAIL_SIZE, THUMBNAIL_SIZE)
        sound = images.shape == expected and images.dtype == np.uint8 and thumbnails.shape == small
        if not sound or len(manifest) != len(images):
            raise DataError(
                f"{folder} is a damaged store (images {images.shape}, {len(manifest)} rows, expected "
                f"{expected}): delete it and prepare it again"
            )
        return cls(folder, images, thumbnails, manifest, problems, info)


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


class Options(TypedDict, total=False):
    """The options of :func:`prepare` that have a default."""

    illumination: str
    strict: bool
    workers: int | None
    max_pixels: int
    download: bool


def prepare(
    source: Source,
    folder: Path,
    *,
    image_size: int,
    illumination: str = "none",
    strict: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    download: bool = False,
) -> Store:
    """Prepare a source, or open the store that was prepared from the same files before.

    Several processes may ask for one store at the same time: one prepares it, the others wait. It is built
    beside its place and renamed when complete; a build that was stopped, at any point, is gone on with. What
    has not changed since an earlier preparation with the same settings is taken from there.

    Args:
        source: The photographs and their labels.
        folder: Folder of all stores; this one becomes ``<source>-<size>px-<key>`` in it.
        image_size: Side of the images in pixels.
        illumination: Normalisation of the light, a name of :mod:`drgrade.data.illumination`.
        strict: Whether one photograph or row that cannot be used is an error. Otherwise it is left out and
            reported.
        workers: Number of processes; None for one per CPU.
        max_pixels: Refuse larger photographs.
        download: Fetch the data set first, if it is not there.

    Raises:
        ConfigError: If there is no such illumination.
        DataError: If the source cannot be used as a whole, nothing in it can be used, or with ``strict``
            something cannot; or if the store cannot be written.
    """
    if image_size < 8:
        raise DataError(f"data.image_size={image_size} is too small: 8 pixels at least")
    check_illumination(illumination)
    _refuse_unguarded_script()
    if download:
        source.download()
    settings = Settings(image_size, max_pixels, illumination)
    plan = Plan(source, source.read(), Path(folder), settings)
    target = _prepared(plan)
    if target is None:
        _make_folder(plan.folder / _INDEX)
        with _locked(plan):
            target = _prepared(plan)
            if target is None:
                return Store.open(_build(plan, strict, workers))
    store = Store.open(target)
    if strict and len(store.left_out):
        raise _strict_error(store.left_out, store.folder / PROBLEMS)
    say(f"using the prepared store {store.folder} ({len(store)} photographs)")
    return store


def _refuse_unguarded_script() -> None:
    """A worker imports the script that started it, which must not prepare again: it would wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(
            'a script that prepares photographs has to do it below: if __name__ == "__main__": '
            "(worker processes import the script)"
        )


def _prepared(plan: Plan) -> Path | None:
    """The store that was made of these very files, if there is one."""
    try:
        name = (plan.folder / _INDEX / plan.state).read_text(encoding="utf-8")
    except OSError:
        return None
    return plan.folder / name if name and (plan.folder / name).is_dir() else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder of stores {folder}: {error.strerror}") from error


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """Hold the lock on the preparation of one source; whoever has to wait is told for what."""
    lock = FileLock(plan.folder / f".{plan.work}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that prepares {plan.source.name}")
        lock.acquire()
    except OSError as error:
        raise DataError(f"cannot write to the folder of stores {plan.folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _build(plan: Plan, strict: bool, workers: int | None) -> Path:
    """Make the store in a folder beside its place, then rename it; the caller holds the lock."""
    leftovers = sorted(plan.folder.glob(f".{plan.work}{_UNFINISHED}-*"))
    shelves = [shelf for path in leftovers if (shelf := Shelf.open(path, finished=False))]
    begun = next((shelf for shelf in shelves if can_continue(plan, shelf)), None)
    unfinished = begun.folder if begun else _new_unfinished(plan, leftovers)
    built = _fill(plan, unfinished, workers, Earlier([*_finished(plan), *shelves]), begun)
    left_out = built.problems[built.problems["action"] == "left out"]
    if built.photographs == 0 or (strict and len(left_out)):
        report = plan.folder / f"{plan.work}.{PROBLEMS}"
        (unfinished / PROBLEMS).replace(report)
        (unfinished / INFO).unlink()  # no store, but the next attempt can go on with it
        if built.photographs:
            raise _strict_error(left_out, report)
        _remove({*leftovers, unfinished})
        raise DataError(
            f"no photograph of {plan.source.root} can be used: {examples(left_out)}. All problems: {report}"
        )
    target = plan.target(built.key)
    _move(unfinished, target)
    if built.is_lasting:
        _remember(plan, target)
    _remove({*leftovers, unfinished})
    say(f"prepared {built.photographs} photographs: {target}")
    if len(built.problems):
        say(summary(built.problems, target / PROBLEMS))
    return target


def _move(unfinished: Path, target: Path) -> None:
    """Put a store in its place, unless the same contents under other names or times are there already."""
    if target.is_dir():
        return
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # made at this moment by a process with another copy of the data set
            raise


def _new_unfinished(plan: Plan, leftovers: list[Path]) -> Path:
    numbers = [int(path.name.rpartition("-")[2]) for path in leftovers]
    unfinished = plan.folder / f".{plan.work}{_UNFINISHED}-{max(numbers, default=0) + 1:04d}"
    unfinished.mkdir()
    return unfinished


def _finished(plan: Plan) -> list[Shelf]:
    """Finished stores of this source's name with these settings."""
    alike = [path for path in plan.folder.glob(f"{plan.family}-*") if _made_alike(path / INFO, plan.settings)]
    newest = sorted(alike, key=lambda path: path.stat().st_mtime)[-_SHELVES:]
    return [shelf for path in newest if (shelf := Shelf.open(path, finished=True))]


def _made_alike(info: Path, settings: Settings) -> bool:
    try:
        made: dict[str, Any] = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # no store, or one of a version that wrote other files
    versions = [made.get(key) for key in ("preparation_version", "format")]
    return [*versions, *(made.get(key) for key in asdict(settings))] == settings.versioned


def _fill(plan: Plan, unfinished: Path, workers: int | None, earlier: Earlier, begun: Shelf | None) -> Built:
    try:
        return fill(plan, unfinished, workers, earlier, begun)
    except OSError as error:
        raise DataError(
            f"cannot write the store in {unfinished}: {error.strerror or error}. What was prepared is kept: "
            "make room, or choose another folder with paths.stores=DIR, and give the command again"
        ) from error


def _remember(plan: Plan, target: Path) -> None:
    write_text(plan.folder / _INDEX / plan.state, target.name)


def _remove(folders: set[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _strict_error(left_out: pd.DataFrame, report: Path) -> DataError:
    return DataError(
        f"{len(left_out)} rows cannot be used and data.strict=true: {examples(left_out)}. "
        f"All problems: {report}"
    )
