"""The two ways of testing: a run again as it was tested when it was made, or anything that can grade."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from drgrade.data.modules import GradingDataModule, no_augmentation
from drgrade.data.photographs import Photographs
from drgrade.inference.evaluating.asked import is_external
from drgrade.inference.evaluating.overlap import pretraining_saw, without_overlap
from drgrade.inference.evaluating.photographs import own_photographs, photographs_of
from drgrade.inference.evaluating.task import EvaluationTask
from drgrade.inference.grader import Grader
from drgrade.metrics import Predictions, grading_metrics
from drgrade.models.artefact import file_hash
from drgrade.models.calibrated import TARGETS, calibrated_metrics, target_thresholds
from drgrade.models.calibration import Calibration
from drgrade.training.artefacts import write_predictions
from drgrade.training.calibrating import read_calibration
from drgrade.training.processes import is_main_process
from drgrade.training.run import test, validate
from drgrade.training.setup import grading_task, make, make_trainer, without_weights


@dataclass(frozen=True, eq=False)
class Set:
    """What is said of one set of photographs.

    Attributes:
        predictions: With the probabilities as the heads give them.
        calibrated: (N, 5) float64, calibrated probabilities; None where nothing was fitted.
        thresholds: P(grade >= 2) from which on a photograph is referred, by the sensitivity that was wanted.
        members: What each member of an ensemble says alone; empty for a single run.
    """

    predictions: Predictions
    calibrated: Tensor | None
    thresholds: dict[float, float]
    members: Sequence[Predictions] = ()


@dataclass(frozen=True, eq=False)
class Tested:
    """What a test has come to.

    Attributes:
        metrics: Entries of ``metrics.json``.
        photographs: With the split that says which were tested on.
        sets: By name: ``test``, and of a run's own external data sets ``external/NAME``.
        calibration: Of the run or the ensemble.
        seconds: That the test took.
        devices: Processes.
        checkpoints: SHA-256 of the weights that were tested, by their file.
    """

    metrics: dict[str, Any]
    photographs: Photographs
    sets: dict[str, Set]
    calibration: Calibration
    seconds: float
    devices: int
    checkpoints: dict[str, str]


def again(cfg: DictConfig, folder: Path, run: DictConfig, record: dict[str, Any], target: Path) -> Tested:
    """Test the checkpoint that a run has chosen as the run did, on its own photographs.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).
        folder: Of the run.
        run: Its config.
        record: Its ``metrics.json``.
        target: Receives the predictions.

    Returns:
        All that the run says of itself, with the figures that were found now.

    Raises:
        DataError: If the photographs, or their split, are not those of the run any more.
    """
    run = run.copy()
    run.init = "random"  # the checkpoint replaces every weight
    run.encoder = without_weights(run.encoder)
    if cfg.data.batch_size is not None:
        run.grading.datamodule.batch_size = cfg.data.batch_size
    run.grading.datamodule.num_workers = cfg.data.num_workers
    photographs = own_photographs(cfg, run, record, folder)
    task = grading_task(run, make(run.encoder))
    trainer, _ = make_trainer(cfg, target)
    data = make(run.grading.datamodule, photographs=photographs)
    checkpoint, calibration = folder / "checkpoints" / str(record["checkpoint"]), read_calibration(folder)
    kept: dict[str, Predictions] = {}
    began = time.monotonic()
    metrics = {**record, **validate(trainer, task, data, checkpoint)}
    metrics |= test(trainer, task, data, checkpoint, target, calibration, kept)
    seconds = time.monotonic() - began
    sets = {name: _calibrated(found, calibration) for name, found in kept.items()}
    hashes = {str(checkpoint): file_hash(checkpoint)}
    return Tested(metrics, photographs, sets, calibration, seconds, trainer.world_size, hashes)


def _calibrated(found: Predictions, calibration: Calibration) -> Set:
    """What one run says: it is calibrated as a whole."""
    if not calibration.photographs:
        return Set(found, None, {})
    calibrated = calibration.probabilities(found.probabilities.double())
    return Set(found, calibrated, target_thresholds(calibration))


def grade_photographs(cfg: DictConfig, folders: Sequence[Path], target: Path) -> Tested:
    """Test a run or an ensemble on a data set, or on the first run's own test photographs.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).
        folders: Of the runs.
        target: Receives the predictions.

    Returns:
        What ``metrics.json`` is to hold, but for ``evaluated``.

    Raises:
        DrgradeError: If there is nothing to test on, or the runs have learnt from it.
    """
    grader = Grader.load(folders, "cpu", cfg.tta, cfg.reading)  # Lightning brings it to the device
    members, first = grader.members, grader.members[0]
    photographs, overlap = without_overlap(
        photographs_of(cfg, first),
        members,
        overlap=cfg.overlap,
        force=cfg.force,
        search=bool(cfg.data.get("duplicates", first.config.photographs.find_duplicates)),
    )
    task = EvaluationTask(grader)
    data = GradingDataModule(
        photographs,
        no_augmentation,
        cfg.data.batch_size or first.config.grading.datamodule.batch_size,
        seed=0,
        num_workers=cfg.data.num_workers,
    )
    trainer, _ = make_trainer(cfg, target)
    began = time.monotonic()
    logged = trainer.test(task, datamodule=data, verbose=False)[0]
    seconds = time.monotonic() - began
    found = _said(task, grader, plain=cfg.tta == "none" and len(members) == 1)
    if is_main_process():
        write_predictions(target, found.predictions, photographs.split["image_id"])
    metrics = {
        **_facts(cfg, grader, photographs),
        **overlap,
        "pretraining_saw_test": pretraining_saw(photographs, members),
        **{name: float(value) for name, value in logged.items()},
        **_figures(found, grader.calibration),
        "status": "finished",
    }
    hashes = {str(member.weights_file): file_hash(member.weights_file) for member in members}
    return Tested(
        metrics, photographs, {"test": found}, grader.calibration, seconds, trainer.world_size, hashes
    )


def _said(task: EvaluationTask, grader: Grader, plain: bool) -> Set:
    """What was collected; every process has to ask."""
    together, calibrated = task.together()
    members = task.members()
    if plain:
        return _calibrated(together, grader.calibration)  # in double precision, as a run does
    alone = members if len(members) > 1 else ()
    if not grader.calibration.photographs:
        return Set(together, None, {}, alone)
    fitted = all(member.calibration.points for member in grader.members)
    thresholds = {target: grader.threshold(target) for target in TARGETS if fitted}
    return Set(together, calibrated.probabilities.double(), thresholds, alone)


def _figures(found: Set, calibration: Calibration) -> dict[str, float]:
    said = found.predictions
    test = grading_metrics(said.probabilities, said.predicted, said.grades)
    test |= calibrated_metrics(
        said.probabilities, said.grades, calibration, found.calibrated, found.thresholds
    )
    figures = {f"test/{name}": value for name, value in test.items()}
    for number, own in enumerate(found.members, start=1):
        alone = grading_metrics(own.probabilities, own.predicted, own.grades)["qwk"]
        figures |= {f"member/{number}/qwk": alone, f"member/{number}/qwk_gain": test["qwk"] - alone}
    return figures


def _facts(cfg: DictConfig, grader: Grader, photographs: Photographs) -> dict[str, Any]:
    """What was tested on what: entries of ``metrics.json``."""
    records = [member.record for member in grader.members]
    # What the members have in common of what describes a run; figures are not carried over.
    common = {
        name: value
        for name, value in records[0].items()
        if "/" not in name and all(name in each and each[name] == value for each in records)
    }
    tested = photographs.split[photographs.split["subset"] == "test"]
    return {
        **common,
        "data": str(photographs.source.name),
        "data_hash": photographs.sha256,
        "split_hash": photographs.split_hash,
        **({"part": cfg.part} if is_external(cfg) else {}),
        "tta": cfg.tta,
        "reading": cfg.reading,
        "forced": bool(cfg.force),
        "members": len(records),
        "photographs": len(tested),
        "groups": int(tested["group"].nunique()),
    }
