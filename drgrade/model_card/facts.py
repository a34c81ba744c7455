"""Facts for the model card of a finished run: the content of its files, and limits that follow from it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import yaml
from omegaconf import OmegaConf

from drgrade.artefacts import is_number, shortened, strip_private
from drgrade.config import CONF, choices
from drgrade.data.sources.base import About, source_class
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.metrics.functional import grading_metrics
from drgrade.models.calibration import Calibration, selective_uncertainty
from drgrade.models.encoder import CARD
from drgrade.runs.reader import Run, RunLocation, initial_encoder_dir, read_run
from drgrade.runs.run_dir import (
    CALIBRATION,
    CONFIG,
    PREDICTIONS,
    PROVENANCE,
    SEEN,
    SPLIT,
    read_finished,
    read_fitted,
    read_json,
    read_provenance,
    read_split,
)
from drgrade.runs.settings import SSL, describe_weights_files, first_weights
from drgrade.stats import formatting
from drgrade.stats.bootstrap import interval_if_spread, resample_metrics
from drgrade.stats.estimates import Estimate
from drgrade.stats.selective import measure_selective, read_limits, resample_selective

UNNAMED = "unnamed"
"""Replaces a name that may be private."""

_DEMO = "demo"
"""Data set of drawings, by which earlier published models are recognised."""


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
        folder: Folder of the run.
        config: Composed and resolved config; strings that may be paths or addresses are None.
        record: ``metrics.json``.
        provenance: ``provenance.json``; empty if missing.
        split: Columns image_id, group, grade and subset of ``split.csv``; None if missing.
        tested: The run with its checked predictions on the test photographs; None without them.
        calibration: ``calibration.json``.
        encoder: ``encoder.json`` of the pre-trained encoder; empty if there is none.
        first_weights: See :func:`~drgrade.runs.settings.first_weights`.
        weights_files: Descriptions of the files that the encoder, or its pre-training, started from.
        encoder_provenance: ``provenance.json`` of the pre-trained encoder; empty if there is none.
        data: Data sets; the first is the one trained on.
        missing: Names of missing files.
    """

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    provenance: Mapping[str, Any]
    split: pd.DataFrame | None
    tested: Run | None
    calibration: Calibration
    encoder: Mapping[str, Any]
    first_weights: str
    weights_files: Sequence[str]
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
    def pretext(self) -> str:
        """Name of the pretext of the pre-trained encoder; empty if there is none or it is unknown."""
        own = self.encoder.get("pretext")
        name = own.get("name") if isinstance(own, Mapping) else None
        return str(name or (self.config["pretext"]["name"] if self.first_weights == SSL else ""))

    @property
    def is_drawn(self) -> bool:
        """True if the run was trained on drawn photographs."""
        return bool(drawings(self.config, self.record))

    def estimates(self, resamples: int, seed: int = 0) -> dict[str, Estimate]:
        """Compute 95 % intervals of metrics on the test photographs by a bootstrap of groups.

        The interval shows how much a metric may change with other test photographs, not with another
        training.

        Returns:
            Estimates by the names in ``metrics.json``; empty without predictions. The interval is NaN if no
            resample defines the metric, or if all give the same value.
        """
        run = self.tested
        if run is None:
            return {}
        fold, limits = run.test_fold(), read_limits(run.record)
        uncertainty = selective_uncertainty(torch.from_numpy(run.probabilities), self.calibration)
        samples = {
            **resample_selective(fold, uncertainty, run.predicted, limits, resamples, seed),
            **resample_metrics(fold, run.predicted, run.probabilities, resamples, seed),
        }
        # Computed again, because runs of earlier versions have not recorded them.
        measured = measure_selective(uncertainty, run.predicted, run.grades, run.record)
        values = {**self.test_metrics, **measured}
        return {
            name: Estimate(float(values.get(name, np.nan)), interval_if_spread(of_name))
            for name, of_name in samples.items()
        }

    @cached_property
    def test_metrics(self) -> Mapping[str, float]:
        """Metrics on the test photographs by name: those recorded, else those of ``predictions.csv``.

        The calibration error is that of the predictions: earlier versions recorded a biased one.
        """
        recorded = {
            name.removeprefix("test/"): float(value)
            for name, value in self.record.items()
            if name.startswith("test/") and name != "test/ece" and is_number(value)
        }
        run = self.tested
        if run is None:
            return recorded
        arrays = map(torch.from_numpy, (run.probabilities, run.predicted, run.grades))
        return {**grading_metrics(*arrays), **recorded}


@contextmanager
def naming_config(folder: Path) -> Iterator[None]:
    """Raise DataError for a setting of a run's config that is missing or has another type."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG} is not the config of a run ({error!r}); run it again") from error


def read_run_files(folder: Path, record: Mapping[str, Any] | None = None) -> RunFiles:
    """Read the files of a finished grading run, without its photographs and checkpoints.

    Args:
        folder: The run's folder.
        record: Content of ``metrics.json``, if it is not written yet.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        DataError: If a file is damaged, or files contradict each other.
    """
    with naming_config(folder):
        return _read_run_files(folder, record)


def _read_run_files(folder: Path, record: Mapping[str, Any] | None) -> RunFiles:
    cfg, record = read_finished(folder, record)
    full = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    config = cast(dict[str, Any], strip_private(full))
    expected = [SPLIT, PROVENANCE, CALIBRATION, SEEN, *([PREDICTIONS] if "test/qwk" in record else [])]
    missing = [name for name in expected if not (folder / name).is_file()]
    provenance = read_provenance(folder)
    initial = initial_encoder_dir(folder, provenance)
    encoder = strip_private(read_json(initial / CARD, "remove it to go without")) if initial else {}
    if config.get("init") not in ("random", "imagenet") and not encoder:
        missing.append(f"{CARD} of the pre-trained encoder")
    run = None if {SPLIT, PREDICTIONS} & {*missing} else read_run(RunLocation(folder), record)
    tested = run if isinstance(run, Run) else None
    # Read once: a calibration of earlier versions is fitted again each time.
    calibration, record = (tested.calibration, tested.record) if tested else read_fitted(folder, record)
    return RunFiles(
        folder,
        config,
        record,
        provenance,
        None if SPLIT in missing else read_split(folder),
        tested,
        calibration,
        encoder,
        first_weights(full, record),
        describe_weights_files(full, record),
        read_provenance(initial) if initial else {},
        used_data_sets(config),
        missing,
    )


def used_data_sets(config: Mapping[str, Any]) -> list[UsedDataSet]:
    """Return the data sets of a run, the first one first.

    Args:
        config: Resolved config of a run; of a published model the published part, which names no source.
    """
    data = config["data"]
    used = [UsedDataSet(str(data["name"] or UNNAMED), "labelled", _about(data.get("source")))]
    for role in ("labelled", "unlabelled", "external"):
        items = data.get(role)
        for item in items if isinstance(items, list) else []:
            settings = item if isinstance(item, Mapping) else {"data": item}
            kind = str(settings.get("data", ""))
            # Only names of drgrade: the config may come from anybody and must not name a file.
            path = CONF / "data" / f"{kind}.yaml" if kind in choices("data") else None
            node = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
            name = str(settings.get("name", kind) or UNNAMED)
            used.append(UsedDataSet(name, role, _about(node.get("source"))))
    return used


def drawings(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Return the names of the data sets of drawings that a run was trained on.

    Args:
        config: As for :func:`used_data_sets`; a published model may have no data.
        record: ``metrics.json``, in which earlier versions did not record them.
    """
    if record.get("drawings"):
        return [shortened(name) for name in str(record["drawings"]).split(",")]
    data = config.get("data")
    if not isinstance(data, Mapping) or "name" not in data:
        return []
    used = [each for each in used_data_sets(config) if each.role == "labelled"]
    known = [shortened(each.name) for each in used if each.about is not None and each.about.drawn]
    return known or ([_DEMO] if data["name"] == _DEMO else [])


def _about(source: object) -> About | None:
    """Return the description of a source; None if its class is unknown or has no description."""
    kind = source_class(source.get("_target_") if isinstance(source, Mapping) else None)
    return None if kind is None else kind.about


def hardware(cost: Mapping[str, Any]) -> str:
    """Return the device of a training from its ``provenance.json``."""
    machine, devices = cost.get("machine"), cost.get("devices", 1)
    if not isinstance(machine, Mapping):
        return "not recorded"
    device = machine.get("gpu") or f"{machine.get('processor')} with {machine.get('cores')} cores"
    return f"{device}, {devices} devices" if devices != 1 else str(device)


RARE = 10
"""With fewer test photographs of a grade, one photograph changes recall by more than 10 points."""

PUBLISHED_SIZE = 224
"""Image size in pixels of the published protocols."""

_AT_THE_BOUND = 0.99
"""Share of the logarithm of the highest temperature above which the fit has not converged."""

_MOST_WEIGHT = 0.8
"""Weight of the grade frequencies above which the card calls the probabilities uninformative."""


def calibration_changes(run: RunFiles, calibrated: Mapping[str, float]) -> str:
    """Describe NLL, Brier score and calibration error before and after calibration.

    Args:
        run: Files of the run.
        calibrated: Return value of :func:`drgrade.models.calibration.calibrated_metrics`, or empty.

    Returns:
        A phrase; empty without a test or a calibration.
    """
    if "nll_calibrated" not in calibrated:
        return ""
    titles = {"nll": "negative log-likelihood", "brier": "Brier score", "ece": "calibration error"}
    changes = [
        f"{title} from {formatting.decimal(run.test_metrics[name])} to "
        f"{formatting.decimal(calibrated[f'{name}_calibrated'])}"
        for name, title in titles.items()
    ]
    return formatting.listed(changes)


def find_limits(run: RunFiles, figures: Mapping[str, Estimate]) -> list[str]:
    """List limits of data, test, training and calibration that the metrics of a run do not show.

    Args:
        run: Files of the run.
        figures: Return value of :meth:`RunFiles.estimates`.

    Returns:
        Sentences in plain text.
    """
    return [
        *_data_limits(run),
        *_test_limits(run, figures),
        *_training_limits(run),
        *_calibration_limits(run),
    ]


def _data_limits(run: RunFiles) -> Iterator[str]:
    labelled = [each for each in run.data if each.role == "labelled"]
    for each in labelled:
        if each.about is None:
            yield f"{each.name}: clinics, cameras and patients are not known to drgrade."
            continue
        if each.about.cameras:
            yield f"{each.name}: {each.about.cameras}"
        yield from each.about.limits
    external = [each.name for each in run.data if each.role == "external"]
    if external:
        yield f"Tested also on {formatting.listed(external)}; not on any other clinic, camera or population."
    else:
        yield (
            "Not tested on photographs of another data set: performance in other clinics, with other cameras "
            "and in other populations is not known."
        )
    described = any(each.about and each.about.limits for each in labelled)
    if run.split is not None and not described and not run.split["group"].str.startswith("patient:").any():
        yield "Patients are not known: both eyes of a patient may be in different subsets."


def _test_limits(run: RunFiles, figures: Mapping[str, Estimate]) -> Iterator[str]:
    if not run.is_tested:
        yield "Not tested (test=false): the checkpoint was chosen on the validation photographs."
        return
    saw = run.record.get("pretraining_saw_test")
    if saw:
        yield "Pre-training saw the test photographs, without their grades: the metrics may be too good."
    elif saw is None:
        yield "It is not known whether the encoder's first weights were trained on the test photographs."
    copies = run.record.get("split/copies_of_test")
    if copies:
        yield (
            "1 copy of a test photograph was found on the training side and removed."
            if copies == 1
            else f"{copies} copies of test photographs were found on the training side and removed."
        )
    if run.tested is not None:
        yield from _prediction_limits(run.tested, figures)


def _prediction_limits(run: Run, figures: Mapping[str, Estimate]) -> Iterator[str]:
    counts = np.bincount(run.grades, minlength=NUM_GRADES)
    rare = [f"{count} of grade {grade}" for grade, count in enumerate(counts) if count < RARE]
    if rare:
        yield f"Few test photographs: {formatting.listed(rare)}; metrics of these grades are uncertain."
    if figures["qwk"].interval.low <= 0:
        yield "The interval of QWK contains 0: the test does not show that the model is better than chance."
    commonest, share = int(counts.argmax()), float(counts.max() / counts.sum())
    if figures["accuracy"].value <= share:
        yield (
            f"Accuracy is not higher than that of always predicting grade {commonest} "
            f"({formatting.percent(share, 1)} of the test photographs)."
        )
    recalled = [((run.predicted == grade) & (run.grades == grade)).any() for grade in range(NUM_GRADES)]
    never = [str(grade) for grade in range(NUM_GRADES) if counts[grade] and not recalled[grade]]
    if never:
        yield f"Recall of grade {formatting.listed(never)} is 0."


def _training_limits(run: RunFiles) -> Iterator[str]:
    config = run.config
    share, size = float(config["label_fraction"]), int(config["photographs"]["image_size"])
    shots = config["protocol"].get("shots")
    if shots is not None:
        yield f"Few labels: {shots} photographs of each grade were used."
    elif share < 1:
        yield f"Few labels: {formatting.fraction(share)} of the training labels were used."
    if run.split is not None:
        counts = run.split[run.split["subset"] == "train"]["grade"].value_counts()
        by_grade = {grade: int(counts.get(grade, 0)) for grade in range(NUM_GRADES)}
        few = [f"{count} of grade {grade}" for grade, count in by_grade.items() if count < 2 * RARE]
        if few:
            yield f"Few training photographs: {formatting.listed(few)}."
    if size < PUBLISHED_SIZE:
        yield (
            f"Photographs are resized to {size} px (published protocols: {PUBLISHED_SIZE}); lesions of a few "
            "pixels, such as microaneurysms, are hardly visible."
        )


def _calibration_limits(run: RunFiles) -> Iterator[str]:
    calibration = run.calibration
    if not calibration.photographs:
        yield f"Not calibrated ({calibration.note}): probabilities are those of the model."
        return
    yield (
        f"Calibration: {calibration.worth()}. Sensitivity and specificity of operating points will differ on "
        "other photographs."
    )
    if calibration.weight > _MOST_WEIGHT or np.log(calibration.temperature) > _AT_THE_BOUND * np.log(20):
        yield (
            f"Temperature {calibration.temperature:.1f} and weight {calibration.weight:.2f} of the grade "
            "frequencies: the probabilities were almost uninformative on the validation photographs."
        )


@cache
def papers() -> Mapping[str, Mapping[str, Any]]:
    """Read ``papers.yaml``: ``of`` (class, or prefix of a timm name: keys) and ``papers`` (key: paper)."""
    text = files("drgrade.model_card").joinpath("papers.yaml").read_text(encoding="utf-8")
    content: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)
    return content


def papers_of(*configs: Mapping[str, Any] | None) -> list[str]:
    """List the papers of encoder, pretext, head or probe without repetition; those of classes first."""
    known = papers()
    names = [name for config in configs for name in _names(config)]
    classes = [name.rsplit(".", 1)[-1] for name in names if name.startswith("drgrade.")]
    backbones = [
        kind
        for name in names
        for kind in known["of"]
        if kind.islower() and re.match(rf"(test_)?{kind}(?![a-z])", name)
    ]
    keys = [key for name in [*classes, *backbones] for key in known["of"].get(name, [])]
    return [str(known["papers"][key]) for key in dict.fromkeys(keys)]


def _names(node: object) -> Iterator[str]:
    """Yield the names of classes and timm models in a config."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in ("_target_", "cnn", "vit", "name") and isinstance(value, str):
                yield value
            else:
                yield from _names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _names(item)
