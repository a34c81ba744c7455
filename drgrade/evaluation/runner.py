"""The two ways to test: a run exactly as in training, or any grader on any photographs."""

import time
from collections.abc import Mapping, Sequence
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
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation.overlap import exclude_overlap, pretraining_saw
from drgrade.files import file_sha256
from drgrade.metrics.distributed import EpochMean, GradingMetrics, Predictions
from drgrade.metrics.functional import grading_metrics
from drgrade.models.calibration import TARGET_SENSITIVITIES, Calibration, calibrated_metrics
from drgrade.prediction.checkpoint import TrainedModel, checkpoint_file, run_photographs
from drgrade.prediction.grader import GradedBatch, Grader
from drgrade.runs.run_dir import read_calibration, write_predictions
from drgrade.training.build import instantiate, make_task, make_trainer, without_weights
from drgrade.training.distributed import is_main_process
from drgrade.training.run import test, validate


@dataclass(frozen=True, eq=False)
class SetPredictions:
    """Predictions for one set of photographs.

    Attributes:
        predictions: Predictions with the probabilities as the heads output them.
        calibrated: (N, 5) float64 calibrated probabilities; None without a calibration.
        thresholds: Requested sensitivity to P(grade >= 2) from which a photograph is referable.
        members: Predictions of each member of an ensemble; empty for a single run.
    """

    predictions: Predictions
    calibrated: Tensor | None
    thresholds: Mapping[float, float]
    members: Sequence[Predictions] = ()


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """Outcome of a test.

    Attributes:
        metrics: Entries of ``metrics.json``.
        photographs: Photographs with the split that marks the tested ones.
        sets: Predictions by set: ``test``, and ``external/NAME`` for external data sets of the run.
        calibration: Calibration of the run or ensemble.
        seconds: Duration.
        devices: Number of processes.
        checkpoints: SHA-256 of the tested weights by file.
    """

    metrics: dict[str, Any]
    photographs: Photographs
    sets: dict[str, SetPredictions]
    calibration: Calibration
    seconds: float
    devices: int
    checkpoints: dict[str, str]


class EvaluationTask(pl.LightningModule):
    """Collects the predictions of a grader over a set.

    Attributes:
        grader: The tested grader; its models move to the device of the trainer.
    """

    def __init__(self, grader: Grader) -> None:
        """Create empty collectors.

        Args:
            grader: One run, or an ensemble.
        """
        super().__init__()
        self.grader = grader
        self._models = nn.ModuleList(member.model for member in grader.members)
        self._ensemble, self._calibrated = GradingMetrics(), GradingMetrics()
        self._members = nn.ModuleList(GradingMetrics() for _ in grader.members)
        self._loss = EpochMean()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Grade a batch and collect the predictions."""
        grades = batch["grade"]
        ensemble, members = self.grader.grade_normalised(batch["image"].to(self.dtype))
        self._collect(self._ensemble, batch, ensemble, ensemble.raw)
        self._collect(self._calibrated, batch, ensemble, ensemble.probabilities)
        for collector, graded in zip(self._members, members, strict=True):
            self._collect(collector, batch, graded, graded.raw)
        if ensemble.logits is not None:
            head = self.grader.members[0].model.head
            loss = head.loss(ensemble.logits.to(grades.device), grades)
            self._loss.update(loss, head.loss_terms(grades))
            self.log("test/loss", self._loss, on_step=False, on_epoch=True)

    def set_predictions(self, is_plain: bool) -> SetPredictions:
        """Gather the predictions from all processes; every process must call it.

        Args:
            is_plain: True for a single run without test-time augmentation.
        """
        ensemble, calibrated = self._ensemble.predictions(), self._calibrated.predictions()
        members = [each.predictions() for each in self._members if isinstance(each, GradingMetrics)]
        calibration = self.grader.calibration
        if is_plain:
            return calibrate_run(ensemble, calibration)  # in double precision, as in training
        single = members if len(members) > 1 else ()
        if not calibration.photographs:
            return SetPredictions(ensemble, None, {}, single)
        fitted = all(member.calibration.points for member in self.grader.members)
        thresholds = {target: self.grader.threshold(target) for target in TARGET_SENSITIVITIES if fitted}
        return SetPredictions(ensemble, calibrated.probabilities.double(), thresholds, single)

    def _collect(
        self, collector: Any, batch: dict[str, Any], graded: GradedBatch, probabilities: Tensor
    ) -> None:
        device = batch["index"].device
        collector.update(batch["index"], probabilities.to(device), graded.grades.to(device), batch["grade"])


def calibrate_run(found: Predictions, calibration: Calibration) -> SetPredictions:
    """Add calibrated probabilities to the predictions of a single run.

    Args:
        found: Predictions of the run.
        calibration: Calibration of the run.
    """
    if not calibration.photographs:
        return SetPredictions(found, None, {})
    calibrated = calibration.probabilities(found.probabilities.double())
    return SetPredictions(found, calibrated, calibration.target_thresholds())


def repeat_test(
    cfg: DictConfig, folder: Path, run: DictConfig, record: dict[str, Any], target: Path
) -> EvaluationRun:
    """Repeat validation and test of a run on its own photographs.

    Args:
        cfg: Composed config of the evaluation.
        folder: Run folder.
        run: Config of the run.
        record: Content of its ``metrics.json``.
        target: Output folder of the predictions.

    Returns:
        All entries of the run's ``metrics.json`` with the values computed now.

    Raises:
        DataError: If photographs or split have changed.
    """
    run = run.copy()
    run.init = "random"  # the checkpoint replaces all weights
    run.encoder = without_weights(run.encoder)
    if cfg.data.batch_size is not None:
        run.grading.datamodule.batch_size = cfg.data.batch_size
    run.grading.datamodule.num_workers = cfg.data.num_workers
    photographs = run_photographs(run, record, folder, cfg.paths.stores, cfg.download)
    task = make_task(run, instantiate(run.encoder))
    trainer, _ = make_trainer(cfg, target)
    data = instantiate(run.grading.datamodule, photographs=photographs)
    checkpoint, calibration = checkpoint_file(folder, record), read_calibration(folder)
    found: dict[str, Predictions] = {}
    start = time.monotonic()
    metrics = {**record, **validate(trainer, task, data, checkpoint)}
    metrics |= test(trainer, task, data, checkpoint, target, calibration, found)
    seconds = time.monotonic() - start
    sets = {name: calibrate_run(each, calibration) for name, each in found.items()}
    hashes = {str(checkpoint): file_sha256(checkpoint)}
    return EvaluationRun(metrics, photographs, sets, calibration, seconds, trainer.world_size, hashes)


def evaluate_grader(cfg: DictConfig, folders: Sequence[Path], target: Path) -> EvaluationRun:
    """Test a run or an ensemble on a data set, or on the test photographs of the first run.

    Args:
        cfg: Composed config of the evaluation.
        folders: Run folders.
        target: Output folder of the predictions.

    Raises:
        DrgradeError: If there is nothing to test on, or a run has been trained on the photographs.
    """
    grader = Grader.load(folders, "cpu", cfg.tta, cfg.reading)  # Lightning moves it to the device
    members, first = grader.members, grader.members[0]
    photographs, overlap = exclude_overlap(
        _tested_photographs(cfg, first),
        members,
        drop=cfg.overlap == "drop",
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
    start = time.monotonic()
    logged = trainer.test(task, datamodule=data, verbose=False)[0]
    seconds = time.monotonic() - start
    found = task.set_predictions(is_plain=cfg.tta == "none" and len(members) == 1)
    if is_main_process():
        write_predictions(target, found.predictions, photographs.split["image_id"])
    metrics = {
        **_facts(cfg, grader, photographs),
        **overlap,
        "pretraining_saw_test": pretraining_saw(photographs, members),
        **{name: float(value) for name, value in logged.items()},
        **_metrics(found, grader.calibration),
        "status": "finished",
    }
    hashes = {str(member.weights_file): file_sha256(member.weights_file) for member in members}
    return EvaluationRun(
        metrics, photographs, {"test": found}, grader.calibration, seconds, trainer.world_size, hashes
    )


def _tested_photographs(cfg: DictConfig, first: TrainedModel) -> Photographs:
    """Return the photographs to test on, in the subset ``test``; all others are ``excluded``."""
    preparation = first.preparation
    for name in ("image_size", "illumination", "max_pixels"):
        value = getattr(preparation, name)
        if cfg.data[name] not in (None, value):
            raise ConfigError(
                f"data.{name}={cfg.data[name]}, but the run was trained with {value}: photographs are "
                "prepared as in training; remove the setting"
            )
    if "source" in cfg.data:
        stores = Path(cfg.paths.stores or first.config.photographs.folder)
        return _external_photographs(cfg, preparation, stores)
    own = run_photographs(first.config, first.record, first.folder, cfg.paths.stores, cfg.download)
    subset = own.split["subset"]
    return own.assigned(own.split.assign(subset=subset.mask(subset != "test", "excluded")))


def _external_photographs(cfg: DictConfig, preparation: Preparation, stores: Path) -> Photographs:
    """Return the graded photographs of a data set, or of one of its published parts."""
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
            f"data={cfg.data.name}: none of its {len(manifest)} photographs has a grade to compare with; "
            f"drgrade predict checkpoint=RUN input={cfg.data.root} grades them"
        )
    requested = graded if cfg.part == "all" else graded & (manifest["split"] == cfg.part).fillna(False)
    if not requested.any():
        known = sorted(manifest["split"][graded].dropna().unique())
        listed = (
            f"available: part={', part='.join(known)}" if known else "it was published as a whole: part=all"
        )
        raise DataError(f"part={cfg.part}: {cfg.data.name} has no graded photographs of that part; {listed}")
    table = pd.DataFrame(
        {
            "image_id": manifest["image_id"].astype(str),
            "group": groups_of(manifest),
            "grade": manifest["grade"].astype("Int64"),
            "subset": pd.Series("excluded", index=manifest.index).mask(requested.astype(bool), "test"),
        }
    )
    return photographs.assigned(table)


def _metrics(found: SetPredictions, calibration: Calibration) -> dict[str, float]:
    """Compute the metrics of a set, and the QWK of each member with its gain by the ensemble."""
    own = found.predictions
    test = grading_metrics(own.probabilities, own.predicted, own.grades)
    test |= calibrated_metrics(own.probabilities, own.grades, calibration, found.calibrated, found.thresholds)
    metrics = {f"test/{name}": value for name, value in test.items()}
    for number, member in enumerate(found.members, start=1):
        qwk = grading_metrics(member.probabilities, member.predicted, member.grades)["qwk"]
        metrics |= {f"member/{number}/qwk": qwk, f"member/{number}/qwk_gain": test["qwk"] - qwk}
    return metrics


def _facts(cfg: DictConfig, grader: Grader, photographs: Photographs) -> dict[str, Any]:
    """Describe models and photographs: entries of ``metrics.json``."""
    records = [member.record for member in grader.members]
    # Entries that all members share; metrics are not carried over.
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
        **({"part": cfg.part} if "source" in cfg.data else {}),
        "tta": cfg.tta,
        "reading": cfg.reading,
        "forced": bool(cfg.force),
        "members": len(records),
        "photographs": len(tested),
        "groups": int(tested["group"].nunique()),
    }
