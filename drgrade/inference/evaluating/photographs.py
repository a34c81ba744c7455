"""The photographs that are tested on."""

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from drgrade.data.photographs import Photographs
from drgrade.data.splits import SplitSpec, groups_of
from drgrade.errors import DataError
from drgrade.inference.evaluating.asked import check_preparation, is_external
from drgrade.inference.preparation import Preparation
from drgrade.inference.trained import Trained, preparation_of
from drgrade.training.setup import make, make_photographs


def photographs_of(cfg: DictConfig, first: Trained) -> Photographs:
    """Describe the photographs of an evaluation, prepared as in training.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).
        first: The first run; the others are of photographs that were prepared alike.

    Returns:
        Those that are tested on are ``test`` in their split, all others ``excluded``.

    Raises:
        DrgradeError: If there is nothing to test on, or the run's own photographs have changed.
    """
    preparation = preparation_of(first.config)
    given = {name: getattr(preparation, name) for name in ("image_size", "illumination", "max_pixels")}
    check_preparation(cfg, given)
    if not is_external(cfg):
        own = own_photographs(cfg, first.config, first.record, first.folder)
        others = own.split["subset"] != "test"
        return own.assigned(own.split.assign(subset=own.split["subset"].mask(others, "excluded")))
    return _external(cfg, preparation, Path(cfg.paths.stores or first.config.photographs.folder))


def own_photographs(cfg: DictConfig, run: DictConfig, record: object, folder: Path) -> Photographs:
    """The photographs of a run, in its split.

    Args:
        cfg: The composed config of the evaluation.
        run: Config of the run.
        record: Its ``metrics.json``.
        folder: Its folder, for the error.

    Returns:
        With the hashes of data and split that the run had.

    Raises:
        DataError: If they are not there, or not those of the run any more.
    """
    assert isinstance(record, dict)
    run = run.copy()
    if cfg.paths.stores is not None:
        run.photographs.folder = cfg.paths.stores
    run.photographs.download = bool(cfg.download or run.photographs.download)
    photographs = make_photographs(run)
    for name, found in (("data_hash", photographs.sha256), ("split_hash", photographs.split_hash)):
        if found != record[name]:
            raise DataError(
                f"{name} is {found[:12]}, the run had {record[name][:12]}: not the photographs that "
                f"{folder} was split on"
            )
    return photographs


def _external(cfg: DictConfig, preparation: Preparation, stores: Path) -> Photographs:
    """All graded photographs of a data set, or of the part that was published under a name."""
    photographs = Photographs(
        make(cfg.data.source),
        SplitSpec(),
        stores,
        preparation.image_size,
        illumination=preparation.illumination,
        max_pixels=preparation.max_pixels,
        find_duplicates=cfg.data.duplicates,
        strict=cfg.data.strict,
        workers=cfg.data.workers,
        download=cfg.data.download,
    )
    manifest = photographs.manifest
    graded = manifest["grade"].notna()
    if not graded.any():
        raise DataError(
            f"data={cfg.data.name}: none of its {len(manifest)} photographs has a grade to be compared with; "
            f"drgrade predict checkpoint=RUN input={cfg.data.root} grades them"
        )
    asked = graded if cfg.part == "all" else graded & (manifest["split"] == cfg.part).fillna(False)
    if not asked.any():
        known = sorted(manifest["split"][graded].dropna().unique())
        listed = (
            f"what there is: part={', part='.join(known)}"
            if known
            else "it was published as a whole: part=all"
        )
        raise DataError(f"part={cfg.part}: {cfg.data.name} has no graded photographs of that part; {listed}")
    table = pd.DataFrame(
        {
            "image_id": manifest["image_id"].astype(str),
            "group": groups_of(manifest),
            "grade": manifest["grade"].astype("Int64"),
            "subset": pd.Series("excluded", index=manifest.index).mask(asked.astype(bool), "test"),
        }
    )
    return photographs.assigned(table)
