"""Read the files of a finished run that its model card is filled from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from drgrade.config import CONF
from drgrade.data.sources.base import About, Source
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.models.calibration import Calibration
from drgrade.models.encoder import CARD
from drgrade.runs.reader import Run, RunLocation, initial_encoder_dir, read_run
from drgrade.runs.run_dir import (
    CALIBRATION,
    PREDICTIONS,
    PROVENANCE,
    SEEN,
    SPLIT,
    read_calibration,
    read_finished,
    read_provenance,
)
from drgrade.runs.settings import strip_private
from drgrade.stats.bootstrap import interval_if_spread, resample, resample_metrics
from drgrade.stats.estimates import Estimate

UNNAMED = "unnamed"
"""Replaces a name that may be private."""

WITH_INTERVAL = (
    "qwk",
    "accuracy",
    "mae",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    "ece",
)


@dataclass(frozen=True)
class UsedDataSet:
    """A data set that a run used.

    Attributes:
        name: As in ``data=NAME``.
        role: ``labelled`` (trained and tested on), ``unlabelled`` (pre-trained on) or ``external`` (tested
            on).
        about: Description in drgrade; None for an unknown data set.
    """

    name: str
    role: str
    about: About | None


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Content of the files of a finished grading run.

    Attributes:
        folder: The run's folder.
        config: Composed and resolved config; strings that may be paths or addresses are None.
        record: ``metrics.json``.
        provenance: ``provenance.json``; empty if missing.
        split: Columns image_id, group, grade and subset of ``split.csv``; None if missing.
        tested: The run with its checked predictions on the test photographs; None without them.
        calibration: ``calibration.json``.
        encoder: ``encoder.json`` of the pre-trained encoder; empty if there is none.
        encoder_provenance: ``provenance.json`` of the pre-trained encoder; empty if there is none.
        data: Data sets; the first is the one trained on.
        missing: Names of files that should be there and are not.
    """

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    provenance: Mapping[str, Any]
    split: pd.DataFrame | None
    tested: Run | None
    calibration: Calibration
    encoder: Mapping[str, Any]
    encoder_provenance: Mapping[str, Any]
    data: Sequence[UsedDataSet]
    missing: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.config.get("name") or UNNAMED)

    @property
    def head(self) -> Mapping[str, Any]:
        """Config of the head or probe."""
        head: Mapping[str, Any] = (
            self.config["protocol"].get("probe") or self.config["grading"]["task"]["head"]
        )
        return head

    @property
    def is_tested(self) -> bool:
        """True if the run was tested, even if its predictions are gone."""
        return "test/qwk" in self.record

    @property
    def is_pretrained(self) -> bool:
        """True if the encoder was pre-trained by drgrade or given."""
        return self.config.get("init") not in ("random", "imagenet")

    @property
    def is_drawn(self) -> bool:
        """True if the run was trained on drawn photographs."""
        return any(each.about is not None and each.about.drawn for each in self.data[:1])

    def estimates(self, resamples: int, seed: int = 0) -> dict[str, Estimate]:
        """Compute 95 % intervals of metrics on the test photographs by a bootstrap of groups.

        The interval shows how much a metric may change with other test photographs, not with another
        training.

        Args:
            resamples: Number of resamples.
            seed: Seed of the bootstrap.

        Returns:
            Estimates by the names in ``metrics.json``: :data:`WITH_INTERVAL` and ``recall_0`` to
            ``recall_4``; empty without predictions. The interval is NaN if no resample defines the metric, or
            if all give the same value.
        """
        if self.tested is None:
            return {}
        run, fold = self.tested, self.tested.test_fold()
        samples = dict(resample_metrics(fold, run.predicted, run.probabilities, resamples, seed))
        counts = resample(fold, run.predicted[None], run.probabilities[None], resamples, seed)
        recalls = np.where(counts.totals == 0, np.nan, counts.hits[0] / np.maximum(counts.totals, 1))
        samples |= {f"recall_{grade}": recalls[:, grade] for grade in range(NUM_GRADES)}
        return {
            name: Estimate(float(run.record[f"test/{name}"]), interval_if_spread(samples[name]))
            for name in (*WITH_INTERVAL, *(f"recall_{grade}" for grade in range(NUM_GRADES)))
        }


def read_run_files(folder: Path) -> RunFiles:
    """Read the files of a finished grading run, without its photographs and checkpoints.

    Args:
        folder: The run's folder.

    Returns:
        The content of the files.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        DataError: If a file is damaged, or files contradict each other.
    """
    cfg, record = read_finished(folder)
    config = cast(dict[str, Any], strip_private(OmegaConf.to_container(cfg, resolve=True)))
    expected = [SPLIT, PROVENANCE, CALIBRATION, SEEN, *([PREDICTIONS] if "test/qwk" in record else [])]
    missing = [name for name in expected if not (folder / name).is_file()]
    provenance = read_provenance(folder)
    initial = initial_encoder_dir(folder, provenance)
    encoder = strip_private(_read_json(initial / CARD)) if initial else {}
    if config.get("init") not in ("random", "imagenet") and not encoder:
        missing.append(f"{CARD} of the pre-trained encoder")
    tested = None if {SPLIT, PREDICTIONS} & {*missing} else read_run(RunLocation(folder))
    return RunFiles(
        folder,
        config,
        record,
        provenance,
        _read_split(folder / SPLIT),
        tested if isinstance(tested, Run) else None,
        read_calibration(folder),
        encoder,
        read_provenance(initial) if initial else {},
        _data_sets(config),
        missing,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to go without") from error


def _read_split(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    columns = ["image_id", "group", "grade", "subset"]
    try:
        table = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
        return table.assign(grade=pd.to_numeric(table["grade"]))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it to go without") from error


def _data_sets(config: Mapping[str, Any]) -> list[UsedDataSet]:
    data = config["data"]
    found = [UsedDataSet(str(data["name"] or UNNAMED), "labelled", describe_source(data.get("source")))]
    for role in ("labelled", "unlabelled", "external"):
        for item in data.get(role) or []:
            settings = item if isinstance(item, Mapping) else {"data": item}
            kind = str(settings.get("data", ""))
            path = CONF / "data" / f"{kind}.yaml"
            node = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
            name = str(settings.get("name", kind) or UNNAMED)
            found.append(UsedDataSet(name, role, describe_source(node.get("source"))))
    return found


def describe_source(source: object) -> About | None:
    """Return drgrade's description of a data set.

    Args:
        source: Config of its source, with ``_target_``.

    Returns:
        None if the class does not exist here, or has no description.
    """
    target = source.get("_target_") if isinstance(source, Mapping) else None
    if not target:
        return None
    try:
        kind = get_class(str(target))
    except (ImportError, ValueError):  # of a project that is not installed
        return None
    return kind.about if issubclass(kind, Source) else None
