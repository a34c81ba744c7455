"""An evaluation, from a composed config to its artefacts. The command line only wraps :func:`evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from drgrade.data.photographs import Photographs
from drgrade.evaluation.html_report import Shown, write_page
from drgrade.evaluation.intervals import Decisions, Floats, Sampling, estimates, sampling, write_intervals
from drgrade.evaluation.runner import Set, Tested, again, grade_photographs
from drgrade.evaluation.validation import check_runs, check_settings, folders_of, is_plain, read_run
from drgrade.grades import REFERABLE
from drgrade.metrics.distributed import Predictions
from drgrade.models.calibration import Calibration, expected_grade, referable_probability
from drgrade.runs.run_dir import write_config, write_metrics, write_provenance, write_split
from drgrade.stats.bootstrap import METRICS
from drgrade.stats.estimates import Estimate
from drgrade.training.distributed import is_main_process
from drgrade.training.warning_filters import silence_known_warnings


@dataclass(frozen=True)
class Outcome:
    """What an evaluation has found.

    Attributes:
        metrics: What ``metrics.json`` holds.
        estimates: Figures with intervals, by name in ``metrics.json``; empty in all processes but the first.
    """

    metrics: Mapping[str, Any]
    estimates: Mapping[str, Estimate]


def evaluate(cfg: DictConfig) -> Outcome:
    """Test a trained run, or an ensemble, on its own test photographs or on a data set.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).

    Returns:
        Figures; the folder ``paths.run`` has received the artefacts.

    Raises:
        ConfigError: If a folder holds no finished grading run, settings make no sense, or a run has learnt
            from photographs that it is to be tested on.
        DataError: If there is nothing to test on, or a run's own photographs have changed.
    """
    silence_known_warnings()
    check_settings(cfg)
    folders, target = folders_of(cfg.checkpoint), Path(cfg.paths.run)
    check_runs(cfg, folders)
    if is_plain(cfg, folders):
        tested = again(cfg, folders[0], *read_run(folders[0]), target)
    else:
        tested = grade_photographs(cfg, folders, target)
    metrics = {**tested.metrics, "evaluated": ",".join(map(str, folders))}
    if not is_main_process():
        return Outcome(metrics, {})
    return Outcome(metrics, _write(cfg, target, tested, metrics))


def _write(cfg: DictConfig, folder: Path, tested: Tested, metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """Compute intervals and write everything; ``metrics.json`` last."""
    shown = [
        _shown(name, found, tested, metrics, (int(cfg.resamples), int(cfg.seed)))
        for name, found in tested.sets.items()
    ]
    found = {name: estimate for each in shown for name, estimate in each.estimates.items()}
    write_split(folder, tested.photographs.split)
    write_config(folder, cfg)
    write_intervals(folder, found, {each.name: each.sampling for each in shown})
    write_page(folder, shown, _facts(metrics), _notes(tested.photographs, metrics))
    count = sum(len(each.predictions.grades) for each in tested.sets.values())
    write_provenance(
        folder,
        seconds=tested.seconds,
        images=count,
        images_per_second=count / tested.seconds,
        devices=tested.devices,
        checkpoints=tested.checkpoints,
    )
    write_metrics(folder, metrics)
    return found


def _shown(
    name: str, found: Set, tested: Tested, metrics: Mapping[str, Any], bootstrap: tuple[int, int]
) -> Shown:
    """Put together what there is to see of one set."""
    said = found.predictions
    made = sampling(tested.photographs, said, *bootstrap)
    raw = Decisions(*_arrays(said), {f"{name}/{metric}": metric for metric in METRICS})
    samples, calibrated = made.samples(raw), None
    if found.calibrated is not None:
        calibrated, further = _of_calibration(name, found, tested.calibration)
        for decisions in (calibrated, *further):
            samples |= made.samples(decisions)
    samples |= _of_members(name, found.members, made, samples)
    return Shown(metrics, estimates(metrics, samples), name, made, raw, calibrated)


def _of_calibration(name: str, found: Set, calibration: Calibration) -> tuple[Decisions, list[Decisions]]:
    """Calibrated probabilities, grades that fitted thresholds read from them, and who is referred."""
    assert found.calibrated is not None
    probabilities = found.calibrated.numpy()
    expected, scores = expected_grade(found.calibrated), referable_probability(found.calibrated)
    read = (expected[:, None] >= expected.new_tensor(calibration.thresholds)).sum(dim=1).numpy()
    calibrated = Decisions(
        found.predictions.predicted.numpy(),
        probabilities,
        {f"{name}/{metric}_calibrated": metric for metric in ("ece", "nll")},
    )
    further = [Decisions(read, probabilities, {f"{name}/qwk_thresholds": "qwk"})]
    for target, threshold in found.thresholds.items():
        referred = np.where(scores.numpy() >= threshold, REFERABLE, 0)
        rates = {
            f"{name}/{rate}_at_{target:g}": f"referable_{rate}" for rate in ("sensitivity", "specificity")
        }
        further.append(Decisions(referred, probabilities, rates))
    return calibrated, further


def _of_members(
    name: str, members: Sequence[Predictions], made: Sampling, together: Mapping[str, Floats]
) -> dict[str, Floats]:
    """QWK of each member, and what the ensemble gains on it, resample by resample."""
    found: dict[str, Floats] = {}
    for number, own in enumerate(members, start=1):
        qwk = f"member/{number}/qwk"
        found |= made.samples(Decisions(*_arrays(own), {qwk: "qwk"}))
        found[f"{qwk}_gain"] = together[f"{name}/qwk"] - found[qwk]
    return found


def _arrays(said: Predictions) -> tuple[Any, Any]:
    return said.predicted.numpy(), said.probabilities.double().numpy()


_SHOWN = {
    "data": "data",
    "part": "part",
    "photographs": "photographs",
    "data_hash": "hash of the data",
    "split_hash": "hash of the split",
    "evaluated": "runs",
    "tta": "test-time augmentation",
    "reading": "grades are read by",
    "overlap": "photographs that a run has learnt from",
    "overlap_dropped": "of them left out",
    "pretraining_saw_test": "pre-training saw test photographs",
}
"""Entries of ``metrics.json`` that the page shows, and what it calls them."""


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {title: _said(metrics[name]) for name, title in _SHOWN.items() if name in metrics}


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not known" if value is None else str(value)


def _notes(photographs: Photographs, metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures has to know."""
    notes = []
    if metrics.get("overlap", 0) and not metrics["overlap_dropped"]:
        notes.append(
            f"{metrics['overlap']} of {metrics['photographs']} photographs are what a run was trained or "
            "validated on: these figures say nothing about new photographs (force=true)."
        )
    if "overlap" in metrics and metrics["overlap"] is None:
        notes.append("It is not known whether a run was trained on these photographs (force=true).")
    if metrics.get("pretraining_saw_test"):
        notes.append("Pre-training has seen photographs that were tested on, without their grades.")
    about = photographs.source.about
    if about is not None and about.drawn:
        notes.append("These photographs are drawn: no result for patients.")
    return notes
