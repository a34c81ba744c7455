"""Photographs that a run has learnt from and is now to be tested on: found by content, not by name."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.data.duplicates.search import DUPLICATES_VERSION, find_duplicates
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import examples
from drgrade.data.store import Store
from drgrade.data.store_builder import INFO
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation.validation import DROP
from drgrade.files import write_text
from drgrade.models.encoder_file import WEIGHTS
from drgrade.prediction.checkpoint import Trained
from drgrade.prediction.published import is_published
from drgrade.runs.run_dir import SEEN, SPLIT, read_provenance
from drgrade.training.build import make_photographs
from drgrade.training.distributed import is_main_process
from drgrade.training.init_weights import pretraining_saw_test

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Photographs that a run has learnt from, among N of a data set.

    Attributes:
        identical: (N,) the same file as one of its training or validation photographs.
        near: (N,) another file, but saved anew from such a photograph.
        related: (N,) in one group with one of those: of the same patient, or copies; they themselves too.
    """

    identical: Rows
    near: Rows
    related: Rows


def without_overlap(
    photographs: Photographs,
    members: Sequence[Trained],
    *,
    overlap: str,
    force: bool,
    search: bool,
) -> tuple[Photographs, dict[str, int | None]]:
    """Refuse photographs that a run has learnt from, leave them out, or let them pass.

    Args:
        photographs: Of which those in the subset ``test`` are asked for.
        members: The trained runs.
        overlap: ``refuse`` or ``drop``.
        force: Test on them all the same.
        search: Search for photographs that were saved anew, too; it looks at the stores of the runs.

    Returns:
        Photographs to test on; and entries of ``metrics.json``. ``overlap``: how many of those that were
        asked for a run has learnt from, they or others of their groups; None where that is not known.
        ``overlap_identical`` and ``overlap_near``: of them the same file, and saved anew.
        ``overlap_dropped``: how many were left out.

    Raises:
        ConfigError: If there are some, and neither ``drop`` nor ``force`` says what to do.
        DataError: If it is not known what a run has learnt from, or nothing is left to test on.
    """
    try:
        seen = {member.folder: seen_files(member) for member in members}
    except DataError as error:
        if not force:
            raise DataError(f"{error}; force=true tests all the same") from error
        log.warning("%s: tested all the same (force=true)", error)
        unknown = dict.fromkeys(("overlap", "overlap_identical", "overlap_near"))
        return photographs, {**unknown, "overlap_dropped": 0}
    found = find_overlap(photographs, members, frozenset().union(*seen.values()), search)
    tested = (photographs.split["subset"] == "test").to_numpy()
    hit = tested & found.related
    facts: dict[str, int | None] = {
        "overlap": int(hit.sum()),
        "overlap_identical": int((tested & found.identical).sum()),
        "overlap_near": int((tested & found.near).sum()),
        "overlap_dropped": 0,
    }
    if not hit.any() or force:
        return photographs, facts
    if overlap != DROP:
        raise ConfigError(_refusal(photographs, found, hit, members, seen))
    if not (tested & ~hit).any():
        raise DataError(
            f"overlap=drop leaves nothing to test on: all {hit.sum()} photographs, or others of their "
            "groups, are what a run has learnt from"
        )
    split = photographs.split
    return photographs.assigned(split.assign(subset=split["subset"].mask(hit, "excluded"))), {
        **facts,
        "overlap_dropped": int(hit.sum()),
    }


def _refusal(
    photographs: Photographs,
    found: Overlap,
    hit: Rows,
    members: Sequence[Trained],
    seen: dict[Path, frozenset[str]],
) -> str:
    tested = photographs.split["subset"] == "test"
    files = set(photographs.manifest["file_sha256"][tested])
    concerned = [str(member.folder) for member in members if not seen[member.folder].isdisjoint(files)]
    kinds = {
        "the same file": int((hit & found.identical).sum()),
        "saved anew": int((hit & found.near).sum()),
        "of the same patient or copies": int((hit & ~found.identical & ~found.near).sum()),
    }
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    whose = ", ".join(concerned) or ", ".join(str(member.folder) for member in members)
    return (
        f"{hit.sum()} of the {tested.sum()} photographs of {photographs.source.name} "
        f"{examples(photographs.split['image_id'][hit])} are what {whose} was trained or validated on "
        f"({listed}): overlap=drop leaves them and their groups out, force=true tests on them all the same"
    )


def seen_files(member: Trained) -> frozenset[str]:
    """SHA-256 of the files of the training and validation photographs of a run.

    Runs of earlier versions did not write them down: what their split names is looked up in their
    photographs.

    Args:
        member: The run.

    Returns:
        64 hexadecimal digits each.

    Raises:
        DataError: If it is not written down, and the photographs are not there any more.
    """
    written = member.folder / SEEN
    if written.is_file():
        return frozenset(written.read_text(encoding="utf-8").split())
    if is_published(member.folder):
        raise DataError(
            f"{member.folder} was published without {SEEN}, so that what it has learnt from is not known"
        )
    unknown = (
        f"{member.folder} has no {SEEN} (an earlier version), so that what it has learnt from is not known"
    )
    try:
        photographs = make_photographs(member.config)
        if photographs.sha256 != member.record.get("data_hash"):
            raise DataError("its photographs have changed")
        split = pd.read_csv(member.folder / SPLIT, dtype=str, keep_default_na=False)
    except (DataError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{unknown}, nor can it be looked up ({reason})") from error
    learnt = set(split["image_id"][split["subset"].isin(["train", "val"])])
    manifest = photographs.manifest
    return frozenset(manifest["file_sha256"][manifest["image_id"].isin(learnt)])


def find_overlap(
    photographs: Photographs, members: Sequence[Trained], seen: frozenset[str], search: bool
) -> Overlap:
    """Find what runs have learnt from among photographs.

    Args:
        photographs: N of them, with a split.
        members: The runs.
        seen: SHA-256 of the files that they have learnt from.
        search: Search for photographs that were saved anew.
    """
    identical = photographs.manifest["file_sha256"].isin(seen).to_numpy(dtype=bool)
    near = np.zeros_like(identical)
    # Where everything is the same file there is nothing left to look for.
    if search and seen and not identical.all():
        near = _saved_anew(photographs, members, seen - set(photographs.manifest["file_sha256"])) & ~identical
    groups = photographs.split["group"]
    related = groups.isin(groups[identical | near]).to_numpy(dtype=bool)
    return Overlap(identical, near, related)


def _saved_anew(photographs: Photographs, members: Sequence[Trained], seen: frozenset[str]) -> Rows:
    """(N,) whether a photograph is a copy of one of these files, as far as they are in a store still.

    Copies of files that are among the photographs themselves are in one group with them anyway.
    """
    thumbnails, hashes, diameters = _learnt(members, seen)
    if len(hashes) < len(seen):
        log.warning(
            "%d of %d photographs that were learnt from are in no store of the runs any more: only the same "
            "files are found of them, not those that were saved anew",
            len(seen) - len(hashes),
            len(seen),
        )
    found = np.zeros(len(photographs), dtype=bool)
    if not hashes:
        return found
    own = photographs.photographs
    hashes += own["file_sha256"].tolist()
    key = hashlib.sha256(json.dumps([DUPLICATES_VERSION, "overlap", hashes]).encode()).hexdigest()
    kept = photographs.folder / "duplicates" / f"{key[:32]}.json"
    rows = _kept(kept)
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
            write_text(kept, json.dumps(rows) + "\n")
    found[rows] = True
    return found


def _kept(path: Path) -> list[int] | None:
    """What was found before; None if that is not there, or damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return rows if isinstance(rows, list) else None


def _learnt(
    members: Sequence[Trained], seen: frozenset[str]
) -> tuple[npt.NDArray[np.uint8], list[str], npt.NDArray[np.float64]]:
    """Thumbnails, hashes and diameters of these files, from the stores that the runs had."""
    left, thumbnails, hashes, diameters = set(seen), [], [], []
    for store in _stores(members):
        if not left:
            break
        rows = np.flatnonzero(
            store.manifest["file_sha256"].isin(left) & ~store.manifest["file_sha256"].duplicated()
        )
        if len(rows):
            thumbnails.append(np.asarray(store.thumbnails[rows]))
            hashes += store.manifest["file_sha256"].iloc[rows].tolist()
            diameters.append(2 * store.manifest["circle_r"].iloc[rows].to_numpy(dtype=float))
            left -= set(hashes)
    if not hashes:
        return np.zeros((0, 1, 1), np.uint8), [], np.zeros(0)
    return np.concatenate(thumbnails), hashes, np.concatenate(diameters)


def _stores(members: Sequence[Trained]) -> Iterator[Store]:
    """Stores in the folders that the runs had theirs in."""
    for folder in dict.fromkeys(Path(member.config.photographs.folder) for member in members):
        for info in sorted(folder.glob(f"*/{INFO}")):
            if not info.parent.name.startswith("."):
                try:
                    yield Store.open(info.parent)
                except DataError as error:  # of another version, or damaged: not this command's business
                    log.debug("%s", error)


def pretraining_saw(photographs: Photographs, members: Sequence[Trained]) -> bool | None:
    """Whether the pre-training of a run has seen photographs that are tested on, without their grades.

    Args:
        photographs: Of which those in the subset ``test`` are tested on.
        members: The runs.

    Returns:
        None where nothing tells, and no run is known to have.
    """
    found = [_pretraining_saw(photographs, member) for member in members]
    if any(found):
        return True
    return None if None in found else False


def _pretraining_saw(photographs: Photographs, member: Trained) -> bool | None:
    encoder = read_provenance(member.folder).get("encoder")
    if not isinstance(encoder, str):
        # Random weights have seen nothing; of published ones nobody knows.
        return False if member.record.get("pretraining_saw_test") is False else None
    path = Path(encoder)
    return pretraining_saw_test(path / WEIGHTS if path.is_dir() else path, photographs)
