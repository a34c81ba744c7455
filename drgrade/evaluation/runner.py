"""The two ways of testing: a run again as it was tested when it was made, or anything that can grade."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import Tensor, nn

from drgrade.data.datamodules import GradingDataModule
from drgrade.data.photographs import Photographs
from drgrade.data.preparation import Preparation
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.splits.split import groups_of
from drgrade.errors import DataError
from drgrade.evaluation.overlap import pretraining_saw, without_overlap
from drgrade.evaluation.validation import check_preparation, is_external
from drgrade.files import file_sha256
from drgrade.metrics.distributed import EpochMean, GradingMetrics, Predictions
from drgrade.metrics.functional import grading_metrics
from drgrade.models.calibration import TARGET_SENSITIVITIES, Calibration, calibrated_metrics
from drgrade.prediction.checkpoint import Trained, preparation_of
from drgrade.prediction.grader import Graded, Grader
from drgrade.runs.run_dir import read_calibration, write_predictions
from drgrade.training.build import instantiate, make_photographs, make_task, make_trainer, without_weights
from drgrade.training.distributed import is_main_process
from drgrade.training.run import test, validate


class EvaluationTask(pl.LightningModule):
    """A grader that is tested.

    Attributes:
        grader: What grades; its models move to the device of the trainer.
    """

    def __init__(self, grader: Grader) -> None:
        """Make empty collectors.

        Args:
            grader: One run, or an ensemble.
        """
        super().__init__()
        self.grader = grader
        self._models = nn.ModuleList(member.model for member in grader.members)
        self._together, self._calibrated = GradingMetrics(), GradingMetrics()
        self._each = nn.ModuleList(GradingMetrics() for _ in grader.members)
        self._loss = EpochMean()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Grade a batch, and keep what is said."""
        grades = batch["grade"]
        together, each = self.grader.grade_normalised(batch["image"].to(self.dtype))
        self._collect(self._together, batch, together, together.raw)
        self._collect(self._calibrated, batch, together, together.probabilities)
        for collector, own in zip(self._each, each, strict=True):
            self._collect(collector, batch, own, own.raw)
        if together.logits is not None:
            head = self.grader.members[0].model.head
            self._loss.update(head.loss(together.logits.to(grades.device), grades), head.loss_terms(grades))
            self.log("test/loss", self._loss, on_step=False, on_epoch=True)

    def together(self) -> tuple[Predictions, Predictions]:
        """What all members say together, from all processes; all must call.

        Returns:
            With the probabilities as the heads give them, and with calibrated ones; the grades are the same.
        """
        return self._together.predictions(), self._calibrated.predictions()

    def members(self) -> list[Predictions]:
        """What each member says alone, from all processes; all must call."""
        return [collector.predictions() for collector in self._each if isinstance(collector, GradingMetrics)]

    def _collect(self, collector: Any, batch: dict[str, Any], said: Graded, probabilities: Tensor) -> None:
        device = batch["index"].device
        collector.update(batch["index"], probabilities.to(device), said.grades.to(device), batch["grade"])


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
        instantiate(cfg.data.source),
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
    task = make_task(run, instantiate(run.encoder))
    trainer, _ = make_trainer(cfg, target)
    data = instantiate(run.grading.datamodule, photographs=photographs)
    checkpoint, calibration = folder / "checkpoints" / str(record["checkpoint"]), read_calibration(folder)
    kept: dict[str, Predictions] = {}
    began = time.monotonic()
    metrics = {**record, **validate(trainer, task, data, checkpoint)}
    metrics |= test(trainer, task, data, checkpoint, target, calibration, kept)
    seconds = time.monotonic() - began
    sets = {name: _calibrated(found, calibration) for name, found in kept.items()}
    hashes = {str(checkpoint): file_sha256(checkpoint)}
    return Tested(metrics, photographs, sets, calibration, seconds, trainer.world_size, hashes)


def _calibrated(found: Predictions, calibration: Calibration) -> Set:
    """What one run says: it is calibrated as a whole."""
    if not calibration.photographs:
        return Set(found, None, {})
    calibrated = calibration.probabilities(found.probabilities.double())
    return Set(found, calibrated, calibration.target_thresholds())


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
        None,
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
    hashes = {str(member.weights_file): file_sha256(member.weights_file) for member in members}
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
    thresholds = {target: grader.threshold(target) for target in TARGET_SENSITIVITIES if fitted}
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
