"""Prepared store: every photograph of a source as a square crop of one size, in one memory-mapped array.

A store is a folder with

- ``images.npy``: uint8 (N, S, S, 3), RGB. The disc of the fundus touches the four sides; padding is black.
- ``thumbnails.npy``: uint8 (N, T, T), grey, of one size for all stores, for the search for duplicates.
- ``manifest.csv``: row i describes image i: columns of the source, then those of
  :class:`~drgrade.data.crops.Facts`.
- ``problems.csv``: image_id, path, reason, action: photographs left out or converted.
- ``files.jsonl``: result for each file, so that the next store need not read it again.
- ``store.json``: settings, versions, and a hash of the content.
"""

import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.artefacts import map_array, read_object, read_text
from drgrade.data.crops import CropMaker, Facts, check_illumination
from drgrade.data.geometry import THUMBNAIL_SIZE
from drgrade.data.image_reader import MAX_PIXELS
from drgrade.data.sources.base import MANIFEST_COLUMNS, Source
from drgrade.data.sources.label_files import MORE_VALUES
from drgrade.data.store_builder import (
    FORMAT,
    IMAGES,
    INFO,
    MANIFEST,
    PROBLEMS,
    THUMBNAILS,
    BuiltStore,
    CropArchive,
    CropCache,
    StorePlan,
    build_store,
    can_resume,
)
from drgrade.errors import DataError
from drgrade.files import locked, read_csv, write_text
from drgrade.progress import say

_UNFINISHED = ".unfinished"
_ARCHIVES = 3  # finished stores, newest first, that provide crops; each takes memory
_INDEX = ".index"  # folder of small files that map the state of a source's files to the name of its store
_TYPES = dict.fromkeys(MANIFEST_COLUMNS, "string") | dict.fromkeys(
    ("grade", "width", "height", "file_size"), "Int64"
)


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store, read-only.

    Attributes:
        folder: Folder of the store.
        images: RGB, uint8 (N, S, S, 3), memory-mapped. The centre of image i is the centre of its disc, and
            S / 2 is the radius of the disc; ``manifest.clear[i] * S / 2`` is the radius without padding.
        thumbnails: Grey, uint8 (N, T, T), memory-mapped.
        manifest: Row i describes image i.
        problems: Columns image_id, path, reason, action.
        info: Content of ``store.json``.
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
    def images_file(self) -> Path:
        """File of :attr:`images`."""
        return self.folder / IMAGES

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of pixels and labels, independent of where and when the store was made."""
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
        """Problems that excluded a row."""
        return self.problems[self.problems["action"] == "left out"]

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open a store.

        Raises:
            DataError: If the folder is not a store, is damaged, or has another format.
        """
        folder = Path(folder)
        info = _read_info(folder)
        try:
            images, thumbnails = (map_array(folder / name, "") for name in (IMAGES, THUMBNAILS))
            manifest = read_manifest(folder / MANIFEST)
            problems = read_csv(folder / PROBLEMS, dtype="string", keep_default_na=False)
        except (DataError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(
                f"{folder} is a damaged store ({error}): delete it and prepare it again"
            ) from error
        count, side = info.get("photographs"), info.get("image_size")
        expected = (count, side, side, 3)
        intact = images.shape == expected and images.dtype == np.uint8
        intact &= thumbnails.shape == (count, THUMBNAIL_SIZE, THUMBNAIL_SIZE) and thumbnails.dtype == np.uint8
        intact &= all(isinstance(info.get(name), str) for name in ("sha256", "pixels_sha256", "source"))
        intact &= {"image_id", "path", "reason", "action"} <= set(problems.columns)
        intact &= set(MANIFEST_COLUMNS) | set(Facts._fields) <= set(manifest.columns)
        if not intact or len(manifest) != len(images):
            raise DataError(
                f"{folder} is a damaged store (images {images.shape}, {len(manifest)} rows, expected "
                f"{expected}): delete it and prepare it again"
            )
        return cls(folder, images, thumbnails, manifest, problems, info)


def read_manifest(path: Path) -> pd.DataFrame:
    """Read the manifest of a store with the column types of a source; ids such as NA and 001 are kept."""
    return read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])


def _read_info(folder: Path) -> dict[str, Any]:
    if not (folder / INFO).exists():
        raise DataError(f"{folder} is not a prepared store (it has no {INFO}): make one with drgrade prepare")
    info = read_object(folder / INFO, "delete the store and prepare it again")
    if info.get("format") != FORMAT:
        raise DataError(
            f"{folder} has store format {info.get('format')}; this version of drgrade reads format {FORMAT}"
        )
    return info


class PrepareOptions(TypedDict, total=False):
    """Options of :func:`prepare` that have a default."""

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

    If several processes request one store, one prepares it and the others wait. A store is built under a
    temporary name and renamed when complete; an interrupted build resumes. Crops of unchanged photographs are
    copied from earlier stores with the same settings.

    Args:
        source: Reader of the data set.
        folder: Folder of all stores. The store becomes ``<source>-<size>px-<key>`` in it.
        image_size: Side of the images in pixels, at least 8.
        illumination: Illumination normalisation, a name of :mod:`drgrade.data.crops`.
        strict: Raise an error if a photograph or row cannot be used, instead of leaving it out.
        workers: Number of processes; None for one per CPU.
        max_pixels: Photographs with more pixels are left out.
        download: Download the data set first if it is missing.

    Raises:
        ConfigError: If the illumination is unknown.
        DataError: If the source cannot be read, no photograph can be used, with ``strict`` one photograph
            cannot be used, or the store cannot be written.
    """
    if image_size < 8:
        raise DataError(f"data.image_size={image_size} is too small: use at least 8 pixels")
    check_illumination(illumination)
    _refuse_unguarded_script()
    if download:
        source.download()
    plan = StorePlan(source, source.read(), Path(folder), CropMaker(image_size, max_pixels, illumination))
    target = _find_prepared(plan)
    if target is None:
        with _locked(plan):
            target = _find_prepared(plan)
            if target is None:
                return Store.open(_build(plan, strict, workers))
    store = Store.open(target)
    if strict and len(store.left_out):
        raise _strict_error(store.left_out, store.folder / PROBLEMS)
    say(f"using the prepared store {store.folder} ({len(store)} photographs)")
    return store


def _refuse_unguarded_script() -> None:
    # A worker imports the script that started it. If that prepared again, it would wait for itself.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(
            'call this below if __name__ == "__main__": photographs are prepared in worker processes, which '
            "import the script"
        )


def _find_prepared(plan: StorePlan) -> Path | None:
    """Return the store made from exactly these files, if it exists."""
    for state in (plan.state, plan.earlier_state):
        try:
            name = read_text(plan.folder / _INDEX / state, "")
            problems = read_text(plan.folder / name / PROBLEMS, "")
        except DataError:
            continue
        misread = "16 bit to 8 bit" in problems or "all black" in problems
        if name and not (state == plan.earlier_state and misread):
            return plan.folder / name
    return None


@contextmanager
def _locked(plan: StorePlan) -> Iterator[None]:
    """Hold the lock of one source's preparation; print a line if another process holds it."""
    waiting = f"waiting for another process that prepares {plan.source.name}"
    with ExitStack() as held:
        try:
            (plan.folder / _INDEX).mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(plan.folder / f".{plan.work}.lock", say, waiting))
        except OSError as error:
            raise DataError(
                f"cannot write to the folder of stores {plan.folder}: {error.strerror}"
            ) from error
        yield


def _build(plan: StorePlan, strict: bool, workers: int | None) -> Path:
    """Build the store under a temporary name and rename it; the caller holds the lock."""
    leftovers = sorted(plan.folder.glob(f".{plan.work}{_UNFINISHED}-*"))
    begun = [archive for path in leftovers if (archive := CropArchive.open(path, finished=False))]
    resumed = next((archive for archive in begun if can_resume(plan, archive)), None)
    unfinished = resumed.folder if resumed else _new_unfinished(plan, leftovers)
    cache = CropCache([*_finished_archives(plan), *begun])
    try:
        built = build_store(plan, unfinished, workers, cache, resumed)
    except OSError as error:
        raise DataError(
            f"cannot write the store in {unfinished}: {error.strerror or error}. Prepared photographs are "
            "kept: free some space, or choose another folder with paths.stores=DIR, and run the command again"
        ) from error
    _check_usable(plan, built, unfinished, strict, leftovers)
    target = plan.folder / f"{plan.family}-{built.key[:12]}"
    _move(unfinished, target)
    if built.is_reproducible:
        write_text(plan.folder / _INDEX / plan.state, target.name)
    _remove([*leftovers, unfinished])
    say(f"prepared {built.photographs} photographs: {target}")
    if len(built.problems):
        say(problem_summary(built.problems, target / PROBLEMS))
    return target


def _check_usable(
    plan: StorePlan, built: BuiltStore, unfinished: Path, strict: bool, leftovers: list[Path]
) -> None:
    """Stop if no photograph can be used, or with ``strict`` if one cannot; keep the report on problems."""
    left_out = built.problems[built.problems["action"] == "left out"]
    if built.photographs and not (strict and len(left_out)):
        return
    report = plan.folder / f"{plan.work}.{PROBLEMS}"
    (unfinished / PROBLEMS).replace(report)
    (unfinished / INFO).unlink()  # not a finished store, but the next attempt can resume from it
    if built.photographs:
        raise _strict_error(left_out, report)
    _remove([*leftovers, unfinished])
    raise DataError(
        f"no photograph of {plan.source.root} can be used: {_short_list(left_out)}. All problems: {report}"
    )


def _move(unfinished: Path, target: Path) -> None:
    """Rename a store, unless a store of the same content exists."""
    if target.is_dir():
        return
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # made just now by a process that prepares a copy of the data set
            raise


def _new_unfinished(plan: StorePlan, leftovers: list[Path]) -> Path:
    last = int(leftovers[-1].name.rpartition("-")[2]) if leftovers else 0
    unfinished = plan.folder / f".{plan.work}{_UNFINISHED}-{last + 1:04d}"
    unfinished.mkdir()
    return unfinished


def _finished_archives(plan: StorePlan) -> list[CropArchive]:
    """Open the newest finished stores of this source with these settings."""
    stores = [path for path in plan.folder.glob(f"{plan.family}-*") if _has_settings(path, plan)]
    newest = sorted(stores, key=lambda path: path.stat().st_mtime)[-_ARCHIVES:]
    return [archive for path in newest if (archive := CropArchive.open(path, finished=True))]


def _has_settings(folder: Path, plan: StorePlan) -> bool:
    try:
        info = read_object(folder / INFO, "")
    except DataError:
        return False  # not a store, or written by a version with other files
    keys = ["preparation_version", "format", *asdict(plan.maker)]
    return [info.get(key) for key in keys] == plan.versioned_settings


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _strict_error(left_out: pd.DataFrame, report: Path) -> DataError:
    return DataError(
        f"{len(left_out)} rows cannot be used and data.strict=true: {_short_list(left_out)}. "
        f"All problems: {report}"
    )


def problem_summary(problems: pd.DataFrame, report: Path) -> str:
    """Summarise a table of problems by reason, with counts and examples, in a few lines."""
    lines: list[str] = []
    for action in ("left out", "converted"):
        rows = problems[problems["action"] == action]
        if len(rows):
            lines.append(f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} {action}:")
            lines += _lines_by_reason(rows)
    return "\n".join([*lines, f"all problems: {report}"]) if lines else ""


def _short_list(problems: pd.DataFrame) -> str:
    first = problems.head(3)
    named = [f"{_name(row.image_id, row.path)}: {row.reason}" for row in first.itertuples()]
    more = len(problems) - len(named)
    remedies = "".join(dict.fromkeys(map(_remedy, first["reason"])))
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "") + remedies


def _remedy(reason: str) -> str:
    """Return what to do about a reason, where that is not obvious; reasons are part of the key of a store."""
    surplus = reason.endswith(MORE_VALUES)
    return " (put values that contain the separator in quotation marks)" if surplus else ""


def _lines_by_reason(problems: pd.DataFrame) -> list[str]:
    # A reason is common to photographs up to its colon or bracket.
    kinds = problems["reason"].str.split(":").str[0].str.split(" (", regex=False).str[0]
    counts = kinds.value_counts()
    lines = []
    for kind, count in counts.items():
        same = problems[kinds == kind]
        examples = same.head(max(2, 10 // len(counts)))
        names = ", ".join(_name(row.image_id, row.path) for row in examples.itertuples())
        reason = same["reason"].iloc[0] if count == 1 else kind
        more = ", ..." if int(count) > len(examples) else ""
        lines.append(f"  {count} x {reason}{_remedy(str(reason))}: {names}{more}")
    return lines


def _name(image_id: object, path: object) -> str:
    return f"{image_id} ({path})" if image_id and str(path) != str(image_id) else str(path)
