"""Read finished runs from their folders and check that their files agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.artefacts import is_number, read_yaml
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.models.calibration import Calibration
from drgrade.renames import current
from drgrade.runs.run_dir import (
    CONFIG,
    FINISHED,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    SPLIT,
    TRIAL,
    read_fitted,
    read_metrics,
    read_provenance,
    read_table,
)
from drgrade.runs.settings import first_weights, label_seed, method_key, partial_settings
from drgrade.stats.bootstrap import TestFold, confusions, kappas
from drgrade.stats.estimates import Counts, Floats

PROBABILITIES = [f"p{grade}" for grade in range(NUM_GRADES)]

HYDRA_CONFIG = Path(".hydra") / "config.yaml"
"""Written by Hydra when a run starts; drgrade writes its own config after the photographs are split."""

_AXES = ("label_fraction", "fold", "seed")
_SETTINGS = (
    *_AXES,
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
_SUM_TOLERANCE = 1e-3
"""Largest deviation from 1 of the sum of rounded probabilities."""

_REPAIR = "run it again, or leave it out"


@dataclass(frozen=True)
class RunLocation:
    """Location of a run, which may not exist yet.

    Attributes:
        folder: The run's folder.
        sweep: Absolute folder of its sweep; None for a single run.
        overrides: Overrides that the sweep sets for it, if they are known.
    """

    folder: Path
    sweep: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[Path, tuple[str, ...]] | None:
        """Sweep and overrides without fold and seeds: equal for all runs of a row; None for a single run."""
        if self.sweep is None:
            return None
        axes = ("fold=", "seed=", "split.label_seed=")
        return self.sweep, tuple(sorted(each for each in self.overrides if not each.startswith(axes)))


@dataclass(frozen=True, eq=False)
class Run:
    """A finished and tested grading run with N test photographs.

    Attributes:
        location: Its location.
        config: Its composed and resolved config.
        record: ``metrics.json``.
        provenance: ``provenance.json``.
        split: ``split.csv``: columns image_id, group and subset as text, grade (NaN if missing).
        image_ids: (N,) test photographs, sorted, as in the other arrays.
        groups: (N,).
        grades: (N,) true grades.
        predicted: (N,) predicted grades.
        probabilities: (N, 5).
        calibration: Fitted on its validation photographs; the identity if there were none.
    """

    location: RunLocation
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
        """The run's folder."""
        return self.location.folder

    @cached_property
    def method(self) -> str:
        """Key of its method."""
        return method_key(self.config)

    @property
    def label_fraction(self) -> float:
        """Label fraction in (0, 1]."""
        return float(self.config["label_fraction"])

    @property
    def fold(self) -> str:
        """Name of the test fold: a number, or ``published``."""
        return str(self.config["fold"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.config["seed"])

    @property
    def label_seed(self) -> int:
        """Seed of the drawn labels; 0 if all labels are used."""
        return label_seed(self.config)

    @property
    def replicate(self) -> tuple[int, int]:
        """Training seed and label seed, which distinguish the runs of a fold of a row."""
        return self.seed, self.label_seed

    def test_fold(self) -> TestFold:
        """Return the test photographs as a fold to resample."""
        return TestFold.with_groups(self.fold, self.image_ids, self.groups, self.grades)


@dataclass(frozen=True)
class Unfinished:
    """A grading run without a result.

    Attributes:
        location: Its location.
        status: ``not begun``, ``unfinished``, or the status in ``metrics.json``.
        reason: Explanation; may be empty.
        config: Its composed config if that names a cell of the table, else None.
    """

    location: RunLocation
    status: str
    reason: str
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not part of a table of runs; ``why`` is its kind, as ``pre-training runs``."""

    folder: Path
    why: str


def read_run(location: RunLocation, record: Mapping[str, Any] | None = None) -> Run | Unfinished | LeftOut:
    """Read the run in a folder, or return the reason why there is none.

    Args:
        location: Location of the run.
        record: Content of ``metrics.json``, if it is not written yet.

    Raises:
        DataError: If files of a finished run are damaged or contradict each other.
    """
    folder = location.folder
    if not folder.is_dir():
        return Unfinished(location, "not begun", "", None)
    config = _read_yaml(folder / CONFIG)
    record = read_metrics(folder) if record is None else record
    composed = config or _read_yaml(folder / HYDRA_CONFIG) or {}
    why = _reason_to_leave_out(composed, record, is_cell=location.sweep is not None)
    if why is not None:
        return LeftOut(folder, why)
    if record.get("status") != FINISHED:
        status, reason = "unfinished", "it is running, or was killed"
        if record:
            status, reason = str(record.get("status")), str(record.get("error", ""))
        return Unfinished(location, status, reason, config if config and _names_cell(config) else None)
    if config is None:
        raise DataError(f"{folder}: the run is finished but has no {CONFIG}; {_REPAIR}")
    _check_record(folder, config, record)
    return _read_finished(location, config, record)


def _reason_to_leave_out(config: Mapping[str, Any], record: Mapping[str, Any], is_cell: bool) -> str | None:
    if "evaluated" in record:
        return "evaluations of other runs (drgrade evaluate)"
    if (config and "task" not in config) or not (config or record or is_cell):
        return "folders of other commands"
    if config.get("task") == "pretext":
        return "pre-training runs"
    if config.get("test", True) is False:
        return "runs that were not to be tested (test=false)"
    if config.get("trial") or record.get("status") == TRIAL:
        return "trial runs (debug=default)"
    if partial_settings(config):
        return "trial runs on a part of their photographs"
    return None


def _check_record(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise DataError if config or metrics lack what a report needs, or contradict each other."""
    missing = [name for name in _FACTS if record.get(name) is None]
    if missing:
        raise DataError(f"{folder / METRICS}: the run is finished but has no {', '.join(missing)}; {_REPAIR}")
    if not is_number(record["test/qwk"]):
        raise DataError(f"{folder / METRICS}: test/qwk is not a number; {_REPAIR}")
    if not _names_cell(config):
        missing = [name for name in _SETTINGS if not _has(config, name)]
        what = f"has no {', '.join(missing)}" if missing else f"has no usable {', '.join(_AXES)}"
        raise DataError(f"{folder / CONFIG} {what}; {_REPAIR}")
    if str(record.get("init")) == first_weights(config):
        record = {**record, "init": config["init"]}  # named after a weights file
    for name in (*_AXES, "init"):
        if name in record and record[name] != config[name] and str(record[name]) != str(config[name]):
            raise DataError(
                f"{folder}: {name} is {config[name]} in {CONFIG} and {record[name]} in {METRICS}; {_REPAIR}"
            )


def _names_cell(config: Mapping[str, Any]) -> bool:
    """Return True if the config has usable values for every setting that a report needs."""
    return (
        all(_has(config, name) for name in _SETTINGS)
        and is_number(config["label_fraction"], 0, 1)
        and is_number(config["seed"])
        and isinstance(config["seed"], int)
        and isinstance(config["fold"], int | str)
    )


def _has(config: Mapping[str, Any], name: str) -> bool:
    """Return True if a setting is present; its value may be null."""
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _read_finished(location: RunLocation, config: Mapping[str, Any], record: Mapping[str, Any]) -> Run:
    folder = location.folder
    split = read_table(folder / SPLIT, ["image_id", "group", "grade", "subset"], _REPAIR)
    predictions = read_table(
        folder / PREDICTIONS, ["image_id", "grade", "predicted", *PROBABILITIES], _REPAIR
    )
    tested = split[split["subset"] == "test"].sort_values("image_id")
    predictions = predictions.sort_values("image_id")
    _check_predictions(folder, tested, predictions)
    calibration, record = read_fitted(folder, record)
    run = Run(
        location,
        config,
        record,
        read_provenance(folder),
        split,
        predictions["image_id"].to_numpy(dtype=str, copy=True),
        tested["group"].to_numpy(dtype=str, copy=True),
        predictions["grade"].to_numpy(dtype=np.int64, copy=True),
        predictions["predicted"].to_numpy(dtype=np.int64, copy=True),
        predictions[PROBABILITIES].to_numpy(dtype=np.float64, copy=True),
        calibration,
    )
    qwk = float(kappas(confusions(run.predicted, run.grades)))
    if abs(qwk - float(record["test/qwk"])) > 1e-6:
        raise DataError(
            f"{folder}: test/qwk is {record['test/qwk']:.6f} in {METRICS}, but {PREDICTIONS} gives "
            f"{qwk:.6f}; one of them was changed: {_REPAIR}"
        )
    return run


def _check_predictions(folder: Path, tested: pd.DataFrame, predictions: pd.DataFrame) -> None:
    """Check that every test photograph is there once, with the grade of the split and valid values."""
    path = folder / PREDICTIONS
    repair = f"test the run again (drgrade evaluate checkpoint={folder}), or leave it out"
    ids, expected = predictions["image_id"].tolist(), tested["image_id"].tolist()
    if ids != expected:
        missing, extra = sorted({*expected} - {*ids}), sorted({*ids} - {*expected})
        what = "some are repeated"
        if missing or extra:
            example = (missing or extra)[0]
            what = f"{len(missing)} missing, {len(extra)} not test photographs, for example {example}"
        raise DataError(f"{path} does not hold the test photographs of {SPLIT} ({what}): {repair}")
    if not np.array_equal(predictions["grade"].to_numpy(float), tested["grade"].to_numpy(float)):
        raise DataError(f"{path} has other grades than {SPLIT}: {repair}")
    if not bool(predictions[["grade", "predicted"]].isin(range(NUM_GRADES)).all(axis=None)):
        raise DataError(f"{path} has a grade outside 0 to {NUM_GRADES - 1}: {repair}")
    probabilities = predictions[PROBABILITIES].to_numpy(float)
    if not bool(np.isfinite(probabilities).all()):
        raise DataError(f"{path} has probabilities that are not numbers: {repair}")
    sums = probabilities.sum(axis=1)
    if bool((probabilities < 0).any()) or not np.allclose(sums, 1, rtol=0, atol=_SUM_TOLERANCE):
        raise DataError(f"{path} has negative probabilities, or probabilities whose sum is not 1: {repair}")


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content: dict[str, Any] = current(
        read_yaml(path, _REPAIR, interpolations=path.parts[-2:] == HYDRA_CONFIG.parts)
    )
    return content


def initial_encoder_dir(run: Path, provenance: Mapping[str, Any]) -> Path | None:
    """Return the folder of the pre-trained encoder that a run started from; it may be gone.

    A relative path is looked up from the folder in which the run was started. That is usually a parent of the
    run's folder, and may not be the present working directory.

    Args:
        run: The run's folder.
        provenance: Its ``provenance.json``.
    """
    if not provenance.get("encoder"):
        return None
    named = Path(str(provenance["encoder"]))
    try:
        path = next((place / named for place in run.resolve().parents if (place / named).exists()), named)
        return (path.parent if path.is_file() else path).resolve()
    except (OSError, ValueError) as error:
        raise DataError(f"{run / PROVENANCE}: encoder is not a path ({error}); {_REPAIR}") from error
