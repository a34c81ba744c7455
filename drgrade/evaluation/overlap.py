"""Detection of test photographs that a run has been trained on, by content and not by name."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drgrade.artefacts import is_number, read_json, read_text
from drgrade.data.duplicates import DUPLICATES_VERSION, find_duplicates
from drgrade.data.photographs import Photographs
from drgrade.data.splits.remarks import examples
from drgrade.data.store import Store
from drgrade.data.store_builder import INFO
from drgrade.errors import ConfigError, DataError
from drgrade.files import write_text
from drgrade.models.encoder import WEIGHTS
from drgrade.prediction.checkpoint import TrainedModel
from drgrade.prediction.own_photographs import OWN_RUN, run_photographs, stores_of
from drgrade.prediction.published_folder import is_published
from drgrade.runs.run_dir import SEEN, read_provenance, read_split
from drgrade.training.distributed import is_main_process
from drgrade.training.pretraining import pretraining_saw_test

log = logging.getLogger(__name__)

BooleanRows = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TrainingOverlap:
    """Overlap of N photographs with the training and validation photographs of some runs; each array is (N,).

    Attributes:
        identical: True for a file that was used in training.
        near: True for another file that is a re-encoded copy of one.
        related: True for all photographs in a group with such files: of the same patient, or copies.
    """

    identical: BooleanRows
    near: BooleanRows
    related: BooleanRows


def exclude_overlap(
    photographs: Photographs,
    members: Sequence[TrainedModel],
    *,
    drop: bool,
    force: bool,
    search: bool,
    own_run: bool = False,
) -> tuple[Photographs, dict[str, int | None]]:
    """Refuse, drop or accept photographs that a run has been trained on.

    Args:
        photographs: Photographs with the requested ones in the subset ``test``.
        members: The trained models.
        drop: Drop the photographs and their groups instead of refusing them.
        force: Test on them nevertheless.
        search: Search the stores of the runs for re-encoded copies, too.
        own_run: The runs are the user's own, so folders that their configs name are read.

    Returns:
        Photographs to test on, and entries of ``metrics.json``: ``overlap`` (number of requested photographs
        that a run has been trained on, with others of their groups; None if unknown), ``overlap_identical``,
        ``overlap_near`` and ``overlap_dropped``.

    Raises:
        ConfigError: If there are some, and neither ``drop`` nor ``force`` is set.
        DataError: If the training photographs of a run are unknown, or nothing is left to test on.
    """
    try:
        seen = {member.folder: training_files(member, own_run) for member in members}
    except DataError as error:
        if not force:
            raise DataError(f"{error}; force=true tests nevertheless") from error
        log.warning("%s: tested nevertheless (force=true)", error)
        unknown = dict.fromkeys(("overlap", "overlap_identical", "overlap_near"))
        return photographs, {**unknown, "overlap_dropped": 0}
    overlap = _find_overlap(photographs, members, frozenset().union(*seen.values()), search, own_run)
    requested = (photographs.split["subset"] == "test").to_numpy()
    hit = requested & overlap.related
    counts: dict[str, int | None] = {
        "overlap": int(hit.sum()),
        "overlap_identical": int((requested & overlap.identical).sum()),
        "overlap_near": int((requested & overlap.near).sum()),
        "overlap_dropped": 0,
    }
    if not hit.any() or force:
        return photographs, counts
    if not drop:
        raise ConfigError(_refusal(photographs, overlap, hit, seen))
    if not (requested & ~hit).any():
        raise DataError(
            f"overlap=drop leaves nothing to test on: a run has been trained on all {hit.sum()} photographs, "
            "or on others of their groups"
        )
    split = photographs.split
    kept = photographs.assigned(split.assign(subset=split["subset"].mask(hit, "excluded")))
    return kept, {**counts, "overlap_dropped": int(hit.sum())}


def _refusal(
    photographs: Photographs, overlap: TrainingOverlap, hit: BooleanRows, seen: Mapping[Path, frozenset[str]]
) -> str:
    requested = photographs.split["subset"] == "test"
    files = set(photographs.manifest["file_sha256"][requested])
    kinds = {
        "the same file": int((hit & overlap.identical).sum()),
        "re-encoded copies": int((hit & overlap.near).sum()),
        "of the same patient or copies": int((hit & ~overlap.identical & ~overlap.near).sum()),
    }
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    runs = [str(folder) for folder, hashes in seen.items() if not hashes.isdisjoint(files)]
    return (
        f"{', '.join(runs or map(str, seen))} was trained or validated on {hit.sum()} of the "
        f"{requested.sum()} photographs of {photographs.source.name} "
        f"{examples(photographs.split['image_id'][hit])} ({listed}): overlap=drop drops them and their "
        "groups, force=true tests on them nevertheless"
    )


def training_files(member: TrainedModel, own_run: bool) -> frozenset[str]:
    """Return the SHA-256 of the training and validation files of a run.

    For runs of earlier versions, which have no ``seen.txt``, the files are looked up by the run's split if
    the run is the user's own.

    Raises:
        DataError: If they are unknown.
    """
    hashes = member.folder / SEEN
    if hashes.exists():
        return frozenset(read_text(hashes, "train again").split())
    if is_published(member.folder):
        raise DataError(
            f"{member.folder} was published without {SEEN}, so its training photographs are unknown"
        )
    try:
        if not own_run:
            raise DataError(OWN_RUN)
        photographs = run_photographs(member.config, member.record, member.folder)
        split = read_split(member.folder)
    except DataError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{member.folder} has no {SEEN} (earlier version), and its training photographs cannot be looked "
            f"up ({reason})"
        ) from error
    used = set(split["image_id"][split["subset"].isin(["train", "val"])])
    manifest = photographs.manifest
    return frozenset(manifest["file_sha256"][manifest["image_id"].isin(used)])


def _find_overlap(
    photographs: Photographs,
    members: Sequence[TrainedModel],
    seen: frozenset[str],
    search: bool,
    own_run: bool,
) -> TrainingOverlap:
    """Find photographs that runs have been trained on; ``seen`` are the hashes of their files."""
    identical = photographs.manifest["file_sha256"].isin(seen).to_numpy(dtype=bool)
    near = np.zeros_like(identical)
    if search and seen and not identical.all():
        others = seen - set(photographs.manifest["file_sha256"])  # copies among the photographs share a group
        folders = [
            stores_of(member.config) for member in members if own_run and not is_published(member.folder)
        ]
        near = _find_copies(photographs, [photographs.folder, *folders], others) & ~identical
    groups = photographs.split["group"]
    related = groups.isin(groups[identical | near]).to_numpy(dtype=bool)
    return TrainingOverlap(identical, near, related)


def _find_copies(photographs: Photographs, folders: Sequence[Path], seen: frozenset[str]) -> BooleanRows:
    """Mark copies of those files that are still in a store in one of the folders."""
    thumbnails, hashes, diameters = _read_thumbnails(folders, seen)
    if len(hashes) < len(seen):
        log.warning(
            "%d of %d training photographs are no longer in a store of the runs: identical files are found, "
            "re-encoded copies of them are not",
            len(seen) - len(hashes),
            len(seen),
        )
    copies = np.zeros(len(photographs), dtype=bool)
    if not hashes:
        return copies
    own = photographs.photographs
    hashes += own["file_sha256"].tolist()
    key = hashlib.sha256(json.dumps([DUPLICATES_VERSION, "overlap", hashes]).encode()).hexdigest()
    cache = photographs.folder / "duplicates" / f"{key[:32]}.json"
    rows = _read_cache(cache, len(photographs))
    if rows is None:
        stacked = np.concatenate(
            [thumbnails, *(np.asarray(store.thumbnails) for store in photographs.stores)]
        )
        widths = np.concatenate([diameters, 2 * own["circle_r"].to_numpy(dtype=float)])
        pairs = find_duplicates(stacked, hashes, widths, progress=is_main_process())
        first = len(thumbnails)
        across = (pairs["first"] < first) & (pairs["second"] >= first)
        rows = sorted(set((pairs["second"][across] - first).tolist()))
        if is_main_process():
            write_text(cache, json.dumps(rows) + "\n")
    copies[rows] = True
    return copies


def _read_cache(path: Path, count: int) -> list[int] | None:
    """Read cached rows; None if there are none, or the file is damaged."""
    try:
        rows = read_json(path, "")
    except DataError:
        return None
    known = isinstance(rows, list) and all(
        isinstance(row, int) and is_number(row, 0, count - 1) for row in rows
    )
    return rows if known else None


def _read_thumbnails(
    folders: Sequence[Path], seen: frozenset[str]
) -> tuple[npt.NDArray[np.uint8], list[str], npt.NDArray[np.float64]]:
    """Read thumbnails, hashes and diameters of files from the stores in some folders."""
    left, thumbnails, hashes, diameters = set(seen), [], [], []
    for store in _stores(folders):
        if not left:
            break
        files = store.manifest["file_sha256"]
        rows = np.flatnonzero(files.isin(left) & ~files.duplicated())
        if len(rows):
            thumbnails.append(np.asarray(store.thumbnails[rows]))
            hashes += files.iloc[rows].tolist()
            diameters.append(2 * store.manifest["circle_r"].iloc[rows].to_numpy(dtype=float))
            left -= set(hashes)
    if not hashes:
        return np.zeros((0, 1, 1), np.uint8), [], np.zeros(0)
    return np.concatenate(thumbnails), hashes, np.concatenate(diameters)


def _stores(folders: Sequence[Path]) -> Iterator[Store]:
    """Yield the readable stores in some folders."""
    for folder in {each.resolve(): each for each in folders}.values():
        for info in sorted(folder.glob(f"*/{INFO}")):
            if not info.parent.name.startswith("."):
                try:
                    yield Store.open(info.parent)
                except DataError as error:  # of another version, or damaged
                    log.debug("%s", error)


def pretraining_saw(photographs: Photographs, members: Sequence[TrainedModel]) -> bool | None:
    """Return True if the pre-training of a run used a photograph of the subset ``test``, without its grade.

    The result is None if it is unknown for one run, and False for the others.
    """
    answers = [_pretraining_saw(photographs, member) for member in members]
    if any(answers):
        return True
    return None if None in answers else False


def _pretraining_saw(photographs: Photographs, member: TrainedModel) -> bool | None:
    encoder = read_provenance(member.folder).get("encoder")
    if not isinstance(encoder, str):
        # Random weights have used no photograph; for published weights it is unknown.
        return False if member.record.get("pretraining_saw_test") is False else None
    path = Path(encoder)
    return pretraining_saw_test(path / WEIGHTS if path.is_dir() else path, photographs)
