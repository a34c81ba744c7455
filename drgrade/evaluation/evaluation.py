"""Evaluation of trained runs: ``drgrade evaluate`` from its composed config to its artefacts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from drgrade.artefacts import select
from drgrade.data.datamodules import GradingDataModule
from drgrade.data.fundus_check import Preparation
from drgrade.data.photographs import Photographs
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.splits.split import groups_of
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation.html_report import collect_notes, write_page
from drgrade.evaluation.intervals import SetPredictions, estimate_set, write_intervals
from drgrade.evaluation.overlap import exclude_overlap, pretraining_saw
from drgrade.files import file_sha256
from drgrade.grades import REFERABLE
from drgrade.metrics.distributed import EpochMean, GradingMetrics, Predictions
from drgrade.metrics.functional import auroc, grading_metrics
from drgrade.models.calibration import Calibration, calibrated_metrics, referral_rule
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.prediction.grader import GradedBatch, Grader, drawings_warning
from drgrade.prediction.own_photographs import OWN_RUN, run_photographs, stores_of
from drgrade.prediction.published_folder import is_published
from drgrade.progress import say
from drgrade.runs.run_dir import (
    read_finished,
    write_config,
    write_metrics,
    write_predictions,
    write_provenance,
    write_split,
)
from drgrade.settings import EvaluateSettings
from drgrade.stats.estimates import Estimate
from drgrade.stats.selective import measure_selective, without_limits
from drgrade.tasks import GradingTask, constant
from drgrade.training.build import instantiate, make_trainer, silence_known_warnings
from drgrade.training.distributed import is_main_process, supervised
from drgrade.training.run import test, validate

_WITHOUT_EFFECT = {"labelled": [], "unlabelled": [], "external": [], "balanced": False}
"""Settings of a data set that have no effect in an evaluation, with their neutral values."""

_PAGE_FACTS = {
    "data": "data",
    "part": "part",
    "photographs": "photographs",
    "data_hash": "hash of the data",
    "split_hash": "hash of the split",
    "evaluated": "runs",
    "tta": "test-time augmentation",
    "reading": "rule that reads the grades",
    "overlap": "photographs that a run was trained on",
    "overlap_dropped": "of them dropped",
    "pretraining_saw_test": "pre-training used test photographs",
}
"""Entries of ``metrics.json`` that the page shows, with their titles."""


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: Content of ``metrics.json``.
        estimates: Metrics with intervals by name in ``metrics.json``; empty in all processes but the first.
        referral: The referral decision in one line.
    """

    metrics: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    referral: str


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """Outcome of a test.

    Attributes:
        metrics: Entries of ``metrics.json``.
        photographs: Photographs with the split that marks the tested ones.
        sets: Predictions by set: ``test``, and ``external/NAME`` for external data sets of the run.
        calibration: Calibration of the run or ensemble.
        seconds: Duration of validation and test.
        devices: Number of processes.
        checkpoints: SHA-256 of the tested weights by file.
        warning: Warning that applies to all results of the models on real photographs; empty for none.
    """

    metrics: dict[str, Any]
    photographs: Photographs
    sets: dict[str, SetPredictions]
    calibration: Calibration
    seconds: float
    devices: int
    checkpoints: dict[str, str]
    warning: str = ""


def evaluate(cfg: DictConfig) -> EvaluationResult:
    """Test a trained run, or an ensemble, on its own test photographs or on a data set.

    The artefacts are written to ``paths.run``.

    Args:
        cfg: Composed config (``conf/evaluate.yaml``).

    Raises:
        ConfigError: If a folder is not a finished grading run, settings contradict each other, or a run has
            been trained on photographs to test on.
        DataError: If there is nothing to test on, or the run's own photographs have changed.

    Example:
        >>> from drgrade.config import compose
        >>> cfg = compose("evaluate", "data=idrid", "paths.run=out", checkpoint="RUN")  # doctest: +SKIP
        >>> evaluate(cfg).metrics["test/qwk"]  # doctest: +SKIP
    """
    silence_known_warnings()
    check_settings(cfg)
    folders, target = run_folders(cfg.checkpoint), Path(cfg.paths.run)
    is_external = "source" in cfg.data
    for folder in folders:
        if not (is_external and is_published(folder)):
            read_run(folder)
    if not (is_external or cfg.own_run):
        raise ConfigError(f"checkpoint={folders[0]}: {OWN_RUN}, or name a data set with data=NAME")
    with supervised(lambda error: None):
        if not is_external and len(folders) == 1 and cfg.tta == "none" and cfg.reading == "head":
            done = repeat_test(cfg, folders[0], target)
        else:
            done = evaluate_grader(cfg, folders, target)
    metrics = {**done.metrics, "evaluated": ",".join(map(str, folders))}
    referral = next(iter(done.sets.values())).rule.describe()
    if not is_main_process():
        return EvaluationResult(metrics, {}, referral)
    return EvaluationResult(metrics, _write_artefacts(cfg, target, done, metrics), referral)


def check_settings(cfg: DictConfig) -> None:
    """Raise ConfigError for invalid and contradictory settings, before anything is loaded."""
    EvaluateSettings.read(cfg)
    if cfg.force and cfg.overlap == "drop":
        raise ConfigError("force=true tests on all photographs, overlap=drop drops some: choose one of them")
    if cfg.data.fold is not None:
        raise ConfigError(
            f"data.fold={cfg.data.fold} has no effect here: part=test is the published test set"
        )
    if "source" not in cfg.data:
        if cfg.part != "all":
            raise ConfigError(f"part={cfg.part} is a part of a data set: name it with data=NAME")
        return
    for name, neutral in _WITHOUT_EFFECT.items():
        if cfg.data[name] != neutral:
            raise ConfigError(
                f"data.{name}={cfg.data[name]} has no effect here: an evaluation uses one data set, "
                "data=NAME; evaluate on another one with a second command"
            )


def run_folders(checkpoint: str | ListConfig | Sequence[str]) -> list[Path]:
    """Return the folders of the evaluated runs; raise ConfigError if a folder is named twice."""
    listed = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    folders: dict[Path, Path] = {}
    for folder in map(Path, map(str, listed)):
        if folder.resolve() in folders:
            raise ConfigError(f"checkpoint: {folder} is named twice; a run counts once in an ensemble")
        folders[folder.resolve()] = folder
    return list(folders.values())


def read_run(folder: Path) -> tuple[DictConfig, Mapping[str, Any]]:
    """Read config and ``metrics.json`` of a run that may be tested again.

    Raises:
        ConfigError: If there is no finished grading run, or its test photographs must stay unused.
        DataError: If its ``metrics.json`` is damaged.
    """
    if is_published(folder):
        raise ConfigError(
            f"checkpoint={folder} is a published model, which does not include its photographs: name a data "
            "set with data=NAME"
        )
    cfg, record = read_finished(folder)
    if "test/qwk" not in record:
        raise ConfigError(
            f"checkpoint={folder} was run with test=false, like the trials of a search: its test photographs "
            "stay unused; run its settings with test=true"
        )
    return cfg, record


class EvaluationTask(pl.LightningModule):
    """Collects the predictions of a grader over a set; its models move to the device of the trainer."""

    def __init__(self, grader: Grader) -> None:
        """Create empty collectors for one run, or an ensemble."""
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

        ``is_plain`` is True for a single run without test-time augmentation.
        """
        ensemble, calibrated = self._ensemble.predictions(), self._calibrated.predictions()
        members = [each.predictions() for each in self._members if isinstance(each, GradingMetrics)]
        calibration = self.grader.calibration
        if is_plain:
            return calibrate_run(ensemble, calibration)  # in double precision, as in training
        single, rule = members if len(members) > 1 else (), self.grader.referral()
        if not calibration.photographs:
            return SetPredictions(ensemble, None, {}, rule, single)
        thresholds = self.grader.target_thresholds()
        return SetPredictions(ensemble, calibrated.probabilities.double(), thresholds, rule, single)

    def _collect(
        self, collector: Any, batch: dict[str, Any], graded: GradedBatch, probabilities: Tensor
    ) -> None:
        device = batch["index"].device
        collector.update(batch["index"], probabilities.to(device), graded.grades.to(device), batch["grade"])


def calibrate_run(predictions: Predictions, calibration: Calibration) -> SetPredictions:
    """Add calibrated probabilities to the predictions of a single run."""
    rule = referral_rule([calibration])
    if not calibration.photographs:
        return SetPredictions(predictions, None, {}, rule)
    calibrated = calibration.probabilities(predictions.probabilities.double())
    return SetPredictions(predictions, calibrated, calibration.target_thresholds(), rule)


def repeat_test(cfg: DictConfig, folder: Path, target: Path) -> EvaluationRun:
    """Repeat validation and test of a run on its own photographs, exactly as in training.

    All entries of its ``metrics.json`` are kept, with the values computed now.

    Raises:
        DataError: If photographs or split have changed.
    """
    trained = load_model(folder)
    record = trained.record
    photographs = run_photographs(trained.config, record, folder, cfg.paths.stores, cfg.download)
    channels_last = select(trained.config, "grading.task.channels_last") is True
    task = GradingTask(
        trained.model.encoder,
        lambda _: trained.model.head,
        optimizer=torch.optim.SGD,  # not used, like the schedule: nothing is trained
        schedule=constant,
        channels_last=channels_last,
    )
    trainer, _ = make_trainer(cfg, target)
    data = GradingDataModule(
        photographs, None, cfg.data.batch_size or trained.batch_size, 0, num_workers=cfg.data.num_workers
    )
    calibration = trained.calibration
    predictions: dict[str, Predictions] = {}
    start = time.monotonic()
    metrics = {**record, **validate(trainer, task, data, None)}
    metrics |= test(trainer, task, data, None, target, calibration, record, predictions)
    seconds = time.monotonic() - start
    sets = {name: calibrate_run(each, calibration) for name, each in predictions.items()}
    hashes = {str(trained.weights_file): file_sha256(trained.weights_file)}
    world, warning = trainer.world_size, drawings_warning([trained])
    return EvaluationRun(metrics, photographs, sets, calibration, seconds, world, hashes, warning)


def evaluate_grader(cfg: DictConfig, folders: Sequence[Path], target: Path) -> EvaluationRun:
    """Test a run or an ensemble on a data set, or on the test photographs of the first run.

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
        search=bool(cfg.data.get("duplicates", _finds_duplicates(first))),
        own_run=cfg.own_run,
    )
    task = EvaluationTask(grader)
    data = GradingDataModule(
        photographs,
        None,
        cfg.data.batch_size or first.batch_size,
        seed=0,
        num_workers=cfg.data.num_workers,
    )
    trainer, _ = make_trainer(cfg, target)
    start = time.monotonic()
    logged = trainer.test(task, datamodule=data, verbose=False)[0]
    seconds = time.monotonic() - start
    facts = _facts(cfg, grader, photographs)
    tested = task.set_predictions(is_plain=cfg.tta == "none" and len(members) == 1)
    if is_main_process():
        write_predictions(target, tested.predictions, photographs.split["image_id"])
    metrics = {
        **facts,
        **overlap,
        "pretraining_saw_test": pretraining_saw(photographs, members),
        **{name: float(value) for name, value in logged.items()},
        **_metrics(tested, grader.calibration, facts),
        "status": "finished",
    }
    hashes = {str(member.weights_file): file_sha256(member.weights_file) for member in members}
    sets, world = {"test": tested}, trainer.world_size
    return EvaluationRun(
        metrics, photographs, sets, grader.calibration, seconds, world, hashes, grader.warning
    )


def _finds_duplicates(trained: TrainedModel) -> bool:
    return select(trained.config, "photographs.find_duplicates") is not False


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
        return _external_photographs(cfg, preparation, _stores(cfg, first))
    own = run_photographs(first.config, first.record, first.folder, cfg.paths.stores, cfg.download)
    subset = own.split["subset"]
    return own.assigned(own.split.assign(subset=subset.mask(subset != "test", "excluded")))


def _stores(cfg: DictConfig, first: TrainedModel) -> Path:
    """Return the folder of the prepared photographs; that of the run only if it is the user's own."""
    if cfg.paths.stores:
        return Path(cfg.paths.stores)
    if cfg.own_run and not is_published(first.folder):
        return stores_of(first.config)
    return Path(cfg.paths.outputs) / "stores"


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


def _metrics(tested: SetPredictions, calibration: Calibration, record: Mapping[str, Any]) -> dict[str, float]:
    """Compute the metrics of a set, and the QWK of each member with its gain by the ensemble.

    ``record`` contains the uncertainty limits of a single run.
    """
    own = tested.predictions
    test = grading_metrics(own.probabilities, own.predicted, own.grades)
    # For an ensemble the mean of calibrated members orders the photographs differently than the mean.
    test["referable_auroc"] = auroc(tested.score, own.grades >= REFERABLE, name="referable_auroc")
    test |= calibrated_metrics(
        own.probabilities, own.grades, calibration, tested.calibrated, tested.thresholds, tested.rule
    )
    predicted, grades = own.predicted.numpy(), own.grades.numpy()
    test |= measure_selective(tested.uncertainty, predicted, grades, record)
    metrics = {f"test/{name}": value for name, value in test.items()}
    for number, member in enumerate(tested.members, start=1):
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
    if len(records) > 1:  # uncertainty limits were fitted to the probabilities of a single run
        common = without_limits(common)
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


def _write_artefacts(
    cfg: DictConfig, folder: Path, done: EvaluationRun, metrics: Mapping[str, Any]
) -> dict[str, Estimate]:
    """Compute intervals and write all files, ``metrics.json`` last."""
    resamples, seed = int(cfg.resamples), int(cfg.seed)
    sets = [
        estimate_set(name, tested, done.photographs, done.calibration, metrics, resamples, seed)
        for name, tested in done.sets.items()
    ]
    write_split(folder, done.photographs.split)
    write_config(folder, cfg)
    write_intervals(folder, sets, resamples, seed)
    facts = {title: _as_text(metrics[name]) for name, title in _PAGE_FACTS.items() if name in metrics}
    facts |= {"calibration": done.calibration.worth()}
    notes = collect_notes(done.photographs, done.sets, metrics, done.warning)
    for note in notes:
        say(f"note: {note}")
    write_page(folder, sets, facts, notes, resamples, seed)
    count = sum(len(each.predictions.grades) for each in done.sets.values())
    write_provenance(
        folder,
        seconds=done.seconds,
        images=count,
        images_per_second=count / done.seconds,
        devices=done.devices,
        checkpoints=done.checkpoints,
    )
    write_metrics(folder, metrics)
    return {name: estimate for each in sets for name, estimate in each.estimates.items()}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
