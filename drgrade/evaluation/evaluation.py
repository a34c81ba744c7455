"""An evaluation from its composed config to its artefacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError
from drgrade.evaluation.html_report import ReportedSet, write_page
from drgrade.evaluation.intervals import (
    GroupBootstrap,
    MetricSource,
    estimates,
    group_bootstrap,
    write_intervals,
)
from drgrade.evaluation.runner import EvaluationRun, SetPredictions, evaluate_grader, repeat_test
from drgrade.grades import REFERABLE
from drgrade.metrics.distributed import Predictions
from drgrade.models.calibration import Calibration, expected_grade, referable_probability
from drgrade.prediction.published_folder import is_published
from drgrade.runs.run_dir import read_finished, write_config, write_metrics, write_provenance, write_split
from drgrade.settings import EvaluateSettings
from drgrade.stats.bootstrap import METRICS
from drgrade.stats.estimates import Estimate, Floats
from drgrade.training.build import silence_known_warnings
from drgrade.training.distributed import is_main_process

_WITHOUT_EFFECT = {"labelled": [], "unlabelled": [], "external": [], "balanced": False}
"""Settings of a data set that have no effect in an evaluation, with their neutral values."""

_SHOWN = {
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
"""Entries of ``metrics.json`` on the page, with their titles."""


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: Content of ``metrics.json``.
        estimates: Metrics with intervals by name in ``metrics.json``; empty in all processes but the first.
    """

    metrics: Mapping[str, Any]
    estimates: Mapping[str, Estimate]


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
    runs = [read_run(folder) for folder in folders if not (is_external and is_published(folder))]
    if not is_external and len(folders) == 1 and cfg.tta == "none" and cfg.reading == "head":
        done = repeat_test(cfg, folders[0], *runs[0], target)
    else:
        done = evaluate_grader(cfg, folders, target)
    metrics = {**done.metrics, "evaluated": ",".join(map(str, folders))}
    if not is_main_process():
        return EvaluationResult(metrics, {})
    return EvaluationResult(metrics, _write_artefacts(cfg, target, done, metrics))


def check_settings(cfg: DictConfig) -> None:
    """Refuse invalid and contradictory settings before anything is loaded.

    Args:
        cfg: Composed config (``conf/evaluate.yaml``).

    Raises:
        ConfigError: Naming the setting.
    """
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
    """Return the folders of the evaluated runs.

    Args:
        checkpoint: A folder, or a list of folders.

    Raises:
        ConfigError: If a folder is named twice.
    """
    listed = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    folders = [Path(str(each)) for each in listed]
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ConfigError(
                f"checkpoint: {folders[number]} is named twice; a run counts once in an ensemble"
            )
    return folders


def read_run(folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Read config and metrics of a run that may be tested again.

    Args:
        folder: Run folder.

    Returns:
        The config, and the content of ``metrics.json``.

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


def _write_artefacts(
    cfg: DictConfig, folder: Path, done: EvaluationRun, metrics: Mapping[str, Any]
) -> dict[str, Estimate]:
    """Compute intervals and write all files, ``metrics.json`` last."""
    bootstrap = int(cfg.resamples), int(cfg.seed)
    reported = [_report_set(name, found, done, metrics, bootstrap) for name, found in done.sets.items()]
    found = {name: estimate for each in reported for name, estimate in each.estimates.items()}
    write_split(folder, done.photographs.split)
    write_config(folder, cfg)
    write_intervals(folder, found, {each.name: each.bootstrap for each in reported})
    facts = {title: _as_text(metrics[name]) for name, title in _SHOWN.items() if name in metrics}
    write_page(folder, reported, facts, _notes(done.photographs, metrics))
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
    return found


def _report_set(
    name: str,
    found: SetPredictions,
    done: EvaluationRun,
    metrics: Mapping[str, Any],
    bootstrap_settings: tuple[int, int],
) -> ReportedSet:
    """Compute the estimates of one set."""
    bootstrap = group_bootstrap(done.photographs, found.predictions, *bootstrap_settings)
    raw = _metric_source(found.predictions, {f"{name}/{metric}": metric for metric in METRICS})
    samples, calibrated = bootstrap.samples(raw), None
    if found.calibrated is not None:
        calibrated, further = _calibrated_sources(name, found, done.calibration)
        for source in (calibrated, *further):
            samples |= bootstrap.samples(source)
    samples |= _member_samples(found.members, bootstrap, samples[f"{name}/qwk"])
    return ReportedSet(metrics, estimates(metrics, samples), name, bootstrap, raw, calibrated)


def _calibrated_sources(
    name: str, found: SetPredictions, calibration: Calibration
) -> tuple[MetricSource, list[MetricSource]]:
    """Return calibrated probabilities, and the grades and referrals that are read from them."""
    assert found.calibrated is not None
    probabilities = found.calibrated.numpy()
    expected, scores = expected_grade(found.calibrated), referable_probability(found.calibrated)
    read = (expected[:, None] >= expected.new_tensor(calibration.thresholds)).sum(dim=1).numpy()
    calibrated = MetricSource(
        found.predictions.predicted.numpy(),
        probabilities,
        {f"{name}/{metric}_calibrated": metric for metric in ("ece", "nll")},
    )
    further = [MetricSource(read, probabilities, {f"{name}/qwk_thresholds": "qwk"})]
    for target, threshold in found.thresholds.items():
        referred = np.where(scores.numpy() >= threshold, REFERABLE, 0)
        rates = {
            f"{name}/{rate}_at_{target:g}": f"referable_{rate}" for rate in ("sensitivity", "specificity")
        }
        further.append(MetricSource(referred, probabilities, rates))
    return calibrated, further


def _member_samples(
    members: Sequence[Predictions], bootstrap: GroupBootstrap, ensemble: Floats
) -> dict[str, Floats]:
    """Resample the QWK of each member, and its difference from the ensemble's."""
    samples: dict[str, Floats] = {}
    for number, member in enumerate(members, start=1):
        qwk = f"member/{number}/qwk"
        samples |= bootstrap.samples(_metric_source(member, {qwk: "qwk"}))
        samples[f"{qwk}_gain"] = ensemble - samples[qwk]
    return samples


def _metric_source(found: Predictions, metrics: Mapping[str, str]) -> MetricSource:
    return MetricSource(found.predicted.numpy(), found.probabilities.double().numpy(), metrics)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)


def _notes(photographs: Photographs, metrics: Mapping[str, Any]) -> list[str]:
    """Return the caveats that the page shows."""
    notes = []
    if metrics.get("overlap", 0) and not metrics["overlap_dropped"]:
        notes.append(
            f"A run was trained or validated on {metrics['overlap']} of {metrics['photographs']} "
            "photographs: these metrics do not apply to new photographs (force=true)."
        )
    if "overlap" in metrics and metrics["overlap"] is None:
        notes.append("It is unknown if a run was trained on these photographs (force=true).")
    if metrics.get("pretraining_saw_test"):
        notes.append("Pre-training used tested photographs, without their grades.")
    about = photographs.source.about
    if about is not None and about.drawn:
        notes.append("These photographs are synthetic: the results do not apply to patients.")
    return notes
