"""Prepared photographs for int8: of the run, if they are still there, or of a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.data.photographs import Photographs
from drgrade.data.reading import IMAGE_EXTENSIONS
from drgrade.errors import ConfigError, DataError
from drgrade.inference.exporting.graph import Pixels
from drgrade.inference.preparation import Preparation
from drgrade.inference.trained import Trained
from drgrade.progress import track
from drgrade.training.folder import SPLIT
from drgrade.training.setup import make_photographs

FEWEST = 8
"""Of fewer photographs no ranges are measured."""


@dataclass(frozen=True, eq=False)
class Images:
    """Some of a run's prepared photographs.

    Attributes:
        table: Columns image_id, group, grade; row i is image i.
        arrays: (N_k, S, S, 3) uint8 each, of all stores.
        rows: Counted through all stores.
    """

    table: pd.DataFrame
    arrays: Sequence[Pixels]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: npt.NDArray[np.int64]) -> Pixels:
        """Read some.

        Args:
            places: Among these photographs.

        Returns:
            (B, S, S, 3).
        """
        ends = np.cumsum([len(array) for array in self.arrays])
        found = []
        for row in self.rows[places]:
            number = int(np.searchsorted(ends, row, side="right"))
            found.append(self.arrays[number][row - ends[number] + len(self.arrays[number])])
        return np.stack(found)

    def batches(self, size: int) -> Iterator[Pixels]:
        """Read all, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


def own_images(trained: Trained, subset: str) -> Images:
    """Photographs of a run, as it has seen them.

    Args:
        trained: The run.
        subset: ``train`` or ``test``.

    Returns:
        The graded ones of the subset.

    Raises:
        DataError: If they are not there any more, or are others.
    """
    photographs = _photographs(trained)
    split = pd.read_csv(trained.folder / SPLIT, dtype={"image_id": str, "group": str})
    chosen = split[(split["subset"] == subset) & split["grade"].notna()]
    place = {image_id: row for row, image_id in enumerate(photographs.photographs["image_id"])}
    rows = np.array([place[image_id] for image_id in chosen["image_id"]], dtype=np.int64)
    arrays = [store.images for store in photographs.stores]
    return Images(chosen.reset_index(drop=True), arrays, rows)


def _photographs(trained: Trained) -> Photographs:
    cfg = trained.config
    if not (trained.folder / SPLIT).is_file() or "photographs" not in cfg or "source" not in cfg.photographs:
        raise DataError("it is a published grader, which has no photographs")
    for place in (cfg.photographs.source.root, cfg.photographs.folder):
        if not Path(place).is_dir():
            raise DataError(f"{place} is not there")
    photographs = make_photographs(cfg)
    if photographs.sha256 != trained.record["data_hash"]:
        raise DataError(f"{cfg.photographs.source.root} does not hold the photographs of the run any more")
    return photographs


def calibration_images(trained: Trained, folder: Path | None, count: int, seed: int) -> Pixels:
    """Photographs to measure the ranges of activations on; no test photographs of the run.

    Args:
        trained: The run.
        folder: With photographs; None for the training photographs of the run.
        count: At most so many, drawn.
        seed: Of the drawing.

    Returns:
        (N, S, S, 3) uint8, in the order drawn.

    Raises:
        ConfigError: If there are too few.
    """
    rng = np.random.default_rng(seed)
    if folder is not None:
        return _prepared(folder, trained.preparation, count, rng)
    try:
        images = own_images(trained, "train")
    except DataError as error:
        raise ConfigError(
            f"int8=true needs photographs to measure ranges on, and the run's cannot be had ({error}): name "
            "a folder with some like them, photographs=DIR"
        ) from error
    _check_enough(len(images), "training photographs of the run")
    return images.take(rng.permutation(len(images))[:count])


def _prepared(folder: Path, preparation: Preparation, count: int, rng: np.random.Generator) -> Pixels:
    if not folder.is_dir():
        raise ConfigError(f"photographs={folder} is no folder")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()
    )
    made = preparation.prepare_all([files[number] for number in rng.permutation(len(files))])
    usable = (each.crop.pixels for each in made if not each.verdict.abstains and each.crop.pixels is not None)
    wanted = track(islice(usable, count), min(count, len(files)), "preparing", f"photographs of {folder}")
    found = list(wanted)
    _check_enough(len(found), f"usable photographs in {folder}")
    return np.stack(found)


def _check_enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise ConfigError(
            f"{count} {what} are too few to measure ranges on for int8=true, {FEWEST} are the fewest: name a "
            "folder with more, photographs=DIR"
        )
