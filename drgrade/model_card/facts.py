"""What a finished run has left, as far as its model card speaks of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from drgrade.config import CONF
from drgrade.data.sources.base import About, Source
from drgrade.errors import DataError
from drgrade.models.calibration import Calibration
from drgrade.models.encoder_file import CARD
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

UNNAMED = "unnamed"
"""Stands for a name that cannot be handed on."""


@dataclass(frozen=True)
class DataSet:
    """A data set that a run used.

    Attributes:
        name: As in ``data=NAME``.
        role: ``labelled`` (trained and tested on), ``unlabelled`` (pre-training only) or ``external`` (tested
            on).
        about: What drgrade knows of it; None for nothing.
    """

    name: str
    role: str
    about: About | None


@dataclass(frozen=True, eq=False)
class Artefacts:
    """What a finished grading run has left.

    Attributes:
        folder: The run's.
        config: Its composed config, resolved; what may be a place or an address is None.
        record: ``metrics.json``.
        provenance: ``provenance.json``; empty if there is none.
        split: ``split.csv``: columns image_id, group, grade and subset; None if there is none.
        run: Its predictions on the test photographs, checked; None if it was not tested, or they are gone.
        calibration: ``calibration.json``.
        encoder: ``encoder.json`` of the encoder that it began with; empty if there was none, or it is gone.
        encoder_provenance: The same of its ``provenance.json``.
        data: The data sets, the one that it was trained on first.
        missing: Files that such a run leaves, and that are not there.
    """

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    provenance: Mapping[str, Any]
    split: pd.DataFrame | None
    run: Run | None
    calibration: Calibration
    encoder: Mapping[str, Any]
    encoder_provenance: Mapping[str, Any]
    data: Sequence[DataSet]
    missing: Sequence[str]

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.config.get("name") or UNNAMED)

    @property
    def is_tested(self) -> bool:
        """Whether it was tested, whether or not its predictions are still there."""
        return "test/qwk" in self.record

    @property
    def is_pretrained(self) -> bool:
        """Whether its encoder was pre-trained by drgrade."""
        return self.config.get("init") not in ("random", "imagenet")

    @property
    def is_drawn(self) -> bool:
        """Whether it was trained on drawn photographs."""
        return any(each.about is not None and each.about.drawn for each in self.data[:1])


def read_artefacts(folder: Path) -> Artefacts:
    """Read what a finished grading run has left. Its photographs and checkpoints are not looked at.

    Args:
        folder: The run's.

    Returns:
        What there is, and what is missing.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        DataError: If one of its files is damaged, or they contradict each other.
    """
    cfg, record = read_finished(folder)
    config = cast(dict[str, Any], strip_private(OmegaConf.to_container(cfg, resolve=True)))
    wanted = [SPLIT, PROVENANCE, CALIBRATION, SEEN, *([PREDICTIONS] if "test/qwk" in record else [])]
    missing = [name for name in wanted if not (folder / name).is_file()]
    provenance = read_provenance(folder)
    begun = initial_encoder_dir(folder, provenance)
    encoder = strip_private(_read_json(begun / CARD)) if begun else {}
    if config.get("init") not in ("random", "imagenet") and not encoder:
        missing.append(f"{CARD} of the pre-trained encoder")
    return Artefacts(
        folder,
        config,
        record,
        provenance,
        _read_split(folder / SPLIT),
        None if {SPLIT, PREDICTIONS} & {*missing} else _tested(folder),
        read_calibration(folder),
        encoder,
        read_provenance(begun) if begun else {},
        _data_sets(config),
        missing,
    )


def _tested(folder: Path) -> Run | None:
    found = read_run(RunLocation(folder))
    return found if isinstance(found, Run) else None


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
    try:
        table = pd.read_csv(
            path, usecols=["image_id", "group", "grade", "subset"], dtype=str, keep_default_na=False
        )
        return table.assign(grade=pd.to_numeric(table["grade"]))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it to go without") from error


def _data_sets(config: Mapping[str, Any]) -> list[DataSet]:
    data = config["data"]
    found = [DataSet(str(data["name"] or UNNAMED), "labelled", about(data.get("source")))]
    for role in ("labelled", "unlabelled", "external"):
        for item in data.get(role) or []:
            settings = item if isinstance(item, Mapping) else {"data": item}
            kind = str(settings.get("data", ""))
            path = CONF / "data" / f"{kind}.yaml"
            node = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
            found.append(DataSet(str(settings.get("name", kind) or UNNAMED), role, about(node.get("source"))))
    return found


def about(source: object) -> About | None:
    """What drgrade knows of a data set.

    Args:
        source: Config of its source, whose ``_target_`` names the class.

    Returns:
        None if there is no such class any more, or it says nothing.
    """
    target = source.get("_target_") if isinstance(source, Mapping) else None
    if not target:
        return None
    try:
        kind = get_class(str(target))
    except (ImportError, ValueError):  # of a project that is not installed here
        return None
    return kind.about if issubclass(kind, Source) else None
