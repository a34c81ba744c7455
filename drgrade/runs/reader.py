"""Reads the folder of a run, and believes nothing that can be checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from drgrade.errors import DataError
from drgrade.models.calibration import Calibration
from drgrade.runs.run_dir import (
    CONFIG,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    SPLIT,
    read_calibration,
    read_metrics,
)
from drgrade.runs.settings import method_key
from drgrade.stats.bootstrap import TestFold, confusions, kappas
from drgrade.stats.estimates import Counts, Floats

_CELL = ("label_fraction", "fold", "seed")
_SETTINGS = (
    *_CELL,
    "folds",
    "init",
    "protocol.name",
    "data.image_size",
    "data.illumination",
    "encoder._target_",
    "split.seed",
    "split.disagreeing",
    "split.file",
    "split.val_fraction",
    "split.val_within_fraction",
)
_FACTS = ("test/qwk", "data", "data_hash", "split_hash")
_BOTH = (*_CELL, "init")


def check_record(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse a finished run whose files lack what a report needs, or contradict each other.

    Args:
        folder: The run's.
        config: ``config.yaml``.
        record: ``metrics.json``.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    mend = "run it again, or leave it out"
    lacking = [name for name in _FACTS if record.get(name) is None]
    if lacking:
        raise DataError(f"{folder / METRICS}: the run is finished but has no {', '.join(lacking)}; {mend}")
    if not isinstance(record["test/qwk"], int | float):
        raise DataError(f"{folder / METRICS}: test/qwk is no number; {mend}")
    lacking = [name for name in _SETTINGS if not _has(config, name)]
    if lacking or known_cell(config) is None:
        what = f"has no {', '.join(lacking)}" if lacking else f"has no usable {', '.join(_CELL)}"
        raise DataError(f"{folder / CONFIG} {what}; {mend}")
    for name in _BOTH:
        if name in record and record[name] != config[name] and str(record[name]) != str(config[name]):
            raise DataError(
                f"{folder}: {name} is {config[name]} in {CONFIG} and {record[name]} in {METRICS}; {mend}"
            )


def known_cell(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A config, if it says which cell of the table its run is; a run that failed may not have come so far.

    Args:
        config: ``config.yaml``.
    """
    if config is None or not all(_has(config, name) for name in _SETTINGS):
        return None
    numbers = isinstance(config["label_fraction"], int | float) and isinstance(config["seed"], int)
    return config if numbers and config["fold"] is not None else None


def _has(config: Mapping[str, Any], name: str) -> bool:
    """Whether a setting is there; its value may be null."""
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


NUM_GRADES = 5
_SUM = 1e-3
"""How far the sum of rounded probabilities may be from 1."""

PROBABILITIES = [f"p{grade}" for grade in range(NUM_GRADES)]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with it


@dataclass(frozen=True)
class Cell:
    """Where a run is, or should be.

    Attributes:
        folder: Its folder.
        sweep: Folder of its sweep, absolute; None for a single run.
        overrides: What the sweep sets for it; empty where that is not known.
    """

    folder: Path
    sweep: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[Path, tuple[str, ...]] | None:
        """What it has in common with the other folds and seeds of its row; None for a single run."""
        if self.sweep is None:
            return None
        axes = ("fold=", "seed=")
        return self.sweep, tuple(sorted(each for each in self.overrides if not each.startswith(axes)))


@dataclass(frozen=True, eq=False)
class Run:
    """A finished and tested grading run.

    Attributes:
        cell: Where it is.
        config: Its composed config, resolved.
        record: ``metrics.json``.
        provenance: ``provenance.json``.
        split: ``split.csv``: columns image_id, group, subset as text, grade (NaN for none).
        image_ids: (N,) test photographs, sorted; all arrays are in this order.
        groups: (N,) group of each.
        grades: (N,) the truth.
        predicted: (N,).
        probabilities: (N, 5).
        calibration: Fitted on its validation photographs; that which changes nothing where none was.
    """

    cell: Cell
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    provenance: Mapping[str, Any]
    split: pd.DataFrame
    image_ids: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    grades: Counts
    predicted: Counts
    probabilities: Floats
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.cell.folder

    @cached_property
    def method(self) -> str:
        """Key of its method."""
        return method_key(self.config)

    @property
    def label_fraction(self) -> float:
        """In (0, 1]."""
        return float(self.config["label_fraction"])

    @property
    def fold(self) -> str:
        """Name of the test fold: a number, or ``published``."""
        return str(self.config["fold"])

    @property
    def seed(self) -> int:
        """Of training."""
        return int(self.config["seed"])


@dataclass(frozen=True)
class Unfinished:
    """A grading run that has no result yet.

    Attributes:
        cell: Where it is, or would be.
        status: See :class:`drgrade.reporting.schema.Missing`.
        reason: As there.
        config: Its composed config, if it came that far and says which cell it is.
    """

    cell: Cell
    status: str
    reason: str
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class LeftOut:
    """A folder that is no part of the table.

    Attributes:
        folder: Which.
        why: A phrase that fits many: ``pre-training runs``.
    """

    folder: Path
    why: str


PRETRAINING, UNTESTED, EVALUATION, OTHER = (
    "pre-training runs",
    "runs that were not to be tested (test=false)",
    "evaluations of other runs (drgrade evaluate)",
    "folders of other commands",
)


def read_cell(cell: Cell) -> Run | Unfinished | LeftOut:
    """Read what a folder holds.

    Args:
        cell: Where.

    Returns:
        The run, or why there is none.

    Raises:
        DataError: If the files of a finished run are damaged or contradict each other.
    """
    folder = cell.folder
    if not folder.is_dir():
        return Unfinished(cell, "not begun", "", None)
    config = _read_yaml(folder / CONFIG)
    known = config or _read_yaml(folder / HYDRA_CONFIG) or {}
    record = read_metrics(folder)
    why = _no_grading_run(known, record, is_cell=cell.sweep is not None)
    if why is not None:
        return LeftOut(folder, why)
    if not record:
        return Unfinished(cell, "unfinished", "it is running, or was killed", known_cell(config))
    if record.get("status") != "finished":
        status, why = str(record.get("status")), str(record.get("error", ""))
        return Unfinished(cell, status, why, known_cell(config))
    if config is None:
        raise DataError(f"{folder}: the run is finished but has no {CONFIG}; run it again, or leave it out")
    check_record(folder, config, record)
    return _read_finished(cell, config, record)


def _no_grading_run(config: Mapping[str, Any], record: Mapping[str, Any], is_cell: bool) -> str | None:
    """Why a folder is no part of a table, if so."""
    if "evaluated" in record:
        return EVALUATION
    if config and "task" not in config:
        return OTHER
    if config.get("task") == "pretext":
        return PRETRAINING
    if config.get("test", True) is False:
        return UNTESTED
    return None if config or record or is_cell else OTHER


def _read_finished(cell: Cell, config: Mapping[str, Any], record: Mapping[str, Any]) -> Run:
    folder = cell.folder
    split = _read_table(folder / SPLIT, ["image_id", "group", "grade", "subset"])
    predictions = _read_table(folder / PREDICTIONS, ["image_id", "grade", "predicted", *PROBABILITIES])
    tested = split[split["subset"] == "test"].sort_values("image_id")
    predictions = predictions.sort_values("image_id")
    _check_complete(folder, tested, predictions)
    run = Run(
        cell,
        config,
        record,
        read_provenance(folder),
        split,
        predictions["image_id"].to_numpy(dtype=str, copy=True),
        tested["group"].to_numpy(dtype=str, copy=True),
        predictions["grade"].to_numpy(dtype=np.int64, copy=True),
        predictions["predicted"].to_numpy(dtype=np.int64, copy=True),
        predictions[PROBABILITIES].to_numpy(dtype=np.float64, copy=True),
        read_calibration(folder),
    )
    _check_qwk(run)
    return run


def _check_complete(folder: Path, tested: pd.DataFrame, predictions: pd.DataFrame) -> None:
    """Every test photograph once, with the split's grade and usable figures."""
    mend = f"test the run again (drgrade evaluate checkpoint={folder}), or leave it out"
    ids, expected = predictions["image_id"].tolist(), tested["image_id"].tolist()
    if ids != expected:
        lacking, extra = sorted({*expected} - {*ids}), sorted({*ids} - {*expected})
        what = (
            f"{len(lacking)} lack, {len(extra)} are no test photographs"
            if lacking or extra
            else "some are twice"
        )
        example = f", for one {(lacking or extra)[0]}" if lacking or extra else ""
        raise DataError(
            f"{folder / PREDICTIONS} does not hold the test photographs of {SPLIT} ({what}{example}): {mend}"
        )
    if not np.array_equal(predictions["grade"].to_numpy(float), tested["grade"].to_numpy(float)):
        raise DataError(f"{folder / PREDICTIONS} has other grades than {SPLIT}: {mend}")
    grades = predictions[["grade", "predicted"]]
    if not bool(grades.isin(range(NUM_GRADES)).all(axis=None)):
        raise DataError(f"{folder / PREDICTIONS} has a grade that is none of 0 to {NUM_GRADES - 1}: {mend}")
    probabilities = predictions[PROBABILITIES].to_numpy(float)
    if not bool(np.isfinite(probabilities).all()):
        raise DataError(f"{folder / PREDICTIONS} has probabilities that are not numbers: {mend}")
    if bool((probabilities < 0).any()) or not np.allclose(probabilities.sum(axis=1), 1, rtol=0, atol=_SUM):
        raise DataError(f"{folder / PREDICTIONS} has probabilities below 0, or whose sum is not 1: {mend}")


def _check_qwk(run: Run) -> None:
    qwk = float(kappas(confusions(run.predicted, run.grades)))
    if abs(qwk - float(run.record["test/qwk"])) > 1e-6:
        raise DataError(
            f"{run.folder}: {METRICS} says test/qwk {run.record['test/qwk']:.6f}, {PREDICTIONS} gives "
            f"{qwk:.6f}; one of them was changed: run it again, or leave it out"
        )


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read ``provenance.json``.

    Args:
        folder: A run's folder.

    Returns:
        What it holds; empty if there is none.

    Raises:
        DataError: If it cannot be read.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return {}
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): run it again, or leave it out") from error
    for name in ("seconds", "images", "images_per_second", "peak_memory", "devices"):
        if not isinstance(found.get(name), int | float | None):
            raise DataError(f"{path} is damaged ({name} is no number): run it again, or leave it out")
    return found


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is damaged ({error}): run it again, or leave it out") from error
    return found if isinstance(found, dict) else None


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file; names stay text, whatever they look like."""
    if not path.is_file():
        raise DataError(f"{path} is missing though the run is finished: run it again, or leave it out")
    texts = [name for name in columns if name in ("image_id", "group", "subset")]
    try:
        # All as text first: a photograph may be called NA or 001.
        table = pd.read_csv(path, usecols=list(columns), dtype=str, keep_default_na=False)
        numbers = {name: pd.to_numeric(table[name]) for name in columns if name not in texts}
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): run it again, or leave it out") from error
    return table.assign(**numbers)


HYDRA_CONFIG = Path(".hydra") / "config.yaml"
"""What Hydra writes when a run begins; drgrade's own config is written once the photographs are split."""


def encoder_folder(run: Path, named: Path) -> Path:
    """Folder of an encoder that a run names.

    A path that is not absolute is seen from where the run was started. That is mostly a folder above the
    run's own, and need not be the one in which the report is made.

    Args:
        run: The run's folder.
        named: As its provenance says.
    """
    found = named
    for place in run.resolve().parents:
        if (place / named).exists():
            found = place / named
            break
    return (found.parent if found.is_file() else found).resolve()


def fold_of(run: Run) -> TestFold:
    """Return the test photographs of a run as a fold to resample.

    Args:
        run: A finished run.
    """
    _, groups = np.unique(run.groups, return_inverse=True)
    return TestFold(run.fold, run.image_ids, groups.astype(np.int64), run.grades)
