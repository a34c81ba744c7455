"""Export of a trained run: trace, write, compare with the model, optionally quantise, describe."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from drgrade.data.normalisation import MEAN, STD
from drgrade.errors import ConfigError, DataError
from drgrade.exporting.graph import (
    INPUT,
    OUTPUTS,
    ExportedGrader,
    Parity,
    Pixels,
    check_parity,
    torch_bytes,
    torch_runner,
    trace,
)
from drgrade.exporting.int8 import (
    MIN_PHOTOGRAPHS,
    Int8Cost,
    calibration_photographs,
    load_run_photographs,
    measure_cost,
    quantise,
)
from drgrade.exporting.onnx_file import (
    METADATA_KEY,
    OPSET,
    onnx_bytes,
    onnx_runner,
    require_packages,
    with_metadata,
)
from drgrade.files import file_sha256, write_bytes, write_text
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.prediction.results import NOTICE
from drgrade.runs.run_dir import CONFIG, versions
from drgrade.settings import ExportSettings

ENDINGS: Mapping[Literal["onnx", "torch"], str] = {"onnx": ".onnx", "torch": ".pt2"}

DESCRIPTION_FORMAT = 1
"""Version of the JSON description."""

_ORIGINS = (
    "data",
    "data_hash",
    "split_hash",
    "encoder_hash",
    "protocol",
    "seed",
    "fold",
    "folds",
    "init",
    "label_fraction",
    "pretraining_saw_test",
    "checkpoint",
)
"""Entries of the run's ``metrics.json`` in the description."""


@dataclass(frozen=True)
class Int8Report:
    """Quantisation of a file.

    Attributes:
        calibrated_on: Number of photographs that the ranges were measured on.
        bytes_float32: Size of the file in 32 bits.
        cost: Comparison on the run's test photographs; None if they are not available.
        note: Why there is no comparison; empty otherwise.
    """

    calibrated_on: int
    bytes_float32: int
    cost: Int8Cost | None
    note: str


@dataclass(frozen=True)
class ExportedFile:
    """A written file.

    Attributes:
        path: Path of the file.
        description: Path of the JSON description.
        size: Size of the file in bytes.
        parity: Difference from the model; for an int8 file, of the float32 file it was made from.
        int8: None for a file in 32 bits.
    """

    path: Path
    description: Path
    size: int
    parity: Parity
    int8: Int8Report | None

    def summary(self) -> list[str]:
        """Return the summary lines for the terminal."""
        which = "before int8, " if self.int8 else ""
        lines = [
            f"{self.path}  {self.size / 1e6:.1f} MB",
            str(self.description),
            f"{which}logits differ from the model's by at most {self.parity.logits:.1e}, probabilities by "
            f"{self.parity.probabilities:.1e} ({self.parity.photographs} synthetic photographs)",
        ]
        return lines if self.int8 is None else [*lines, *_int8_summary(self.int8, self.size)]


def _int8_summary(int8: Int8Report, size: int) -> list[str]:
    lines = [
        f"int8: {int8.bytes_float32 / 1e6:.1f} -> {size / 1e6:.1f} MB, ranges measured on "
        f"{int8.calibrated_on} photographs"
    ]
    if int8.cost is None:
        return [*lines, int8.note]
    cost = int8.cost
    figures = {"QWK": cost.qwk_float32, "in int8": cost.qwk_int8, "change": cost.qwk_change}
    written = [
        f"{name} {each.value:.3f} ({each.interval.low:.3f} to {each.interval.high:.3f})"
        for name, each in figures.items()
    ]
    return [
        *lines,
        f"same grade for {100 * cost.same_grade:.1f} % of {cost.photographs} test photographs, expected "
        f"grade differs by {cost.expected_grade:.3f} on average",
        f"{', '.join(written)}; 95 % intervals",
    ]


def export(settings: ExportSettings) -> ExportedFile:
    """Export a trained run as ONNX or as a .pt2 file of torch.

    Args:
        settings: Settings of ``drgrade export``.

    Raises:
        ConfigError: If settings contradict each other, a file exists already, or a package is missing.
        ParityError: If the outputs of the file differ from those of the model; nothing is written.
        DrgradeError: If the run cannot be loaded.
    """
    _check_settings(settings)
    (folder,) = settings.checkpoint
    name = f"grader{'-int8' if settings.int8 else ''}{ENDINGS[settings.format]}"
    path = settings.out or folder / "export" / name
    beside = path.with_name(f"{path.name}.json")
    _check_target(path, beside, settings)
    trained = load_model(folder)
    grader = ExportedGrader(trained).eval()
    photographs = None
    if settings.int8:  # load them first: tracing takes minutes
        photographs = calibration_photographs(trained, settings.photographs, settings.count, settings.seed)
    description = describe(trained)
    if settings.format == "torch":
        data, parity, int8 = _torch_file(grader, trained, description)
    else:
        data, parity, int8 = _onnx_file(grader, trained, description, photographs, settings)
    description["parity"] = asdict(parity)
    description["file"] = {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        write_text(beside, _to_json(description, indent=2) + "\n")  # first, so that no file lacks one
        write_bytes(path, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    return ExportedFile(path, beside, len(data), parity, int8)


def _check_settings(settings: ExportSettings) -> None:
    if len(settings.checkpoint) > 1:
        raise ConfigError(
            f"checkpoint names {len(settings.checkpoint)} runs, but a file holds one model; ensembles are "
            "not exported: export each run and average the probabilities"
        )
    if settings.int8 and settings.format != "onnx":
        raise ConfigError("int8=true needs onnxruntime: use format=onnx")
    if settings.photographs is not None and not settings.int8:
        raise ConfigError(f"photographs={settings.photographs} has an effect with int8=true only")
    if settings.count < MIN_PHOTOGRAPHS:
        raise ConfigError(f"count={settings.count}: int8=true needs at least {MIN_PHOTOGRAPHS} photographs")
    if settings.format == "onnx":
        require_packages()


def _check_target(path: Path, beside: Path, settings: ExportSettings) -> None:
    if path.suffix != ENDINGS[settings.format]:
        raise ConfigError(f"out={path}: name a file that ends in {ENDINGS[settings.format]}")
    for each in (path, beside):
        if each.is_dir():
            raise ConfigError(f"{each} is a folder: name another file with out=FILE")
        if each.exists() and not settings.overwrite:
            raise ConfigError(f"{each} exists already: overwrite=true replaces it, out=FILE names another")


def _torch_file(
    grader: ExportedGrader, trained: TrainedModel, description: Mapping[str, Any]
) -> tuple[bytes, Parity, None]:
    size = trained.preparation.image_size
    data = torch_bytes(trace(grader, size), _to_json(description))
    return data, check_parity(grader, torch_runner(data), size), None


def _onnx_file(
    grader: ExportedGrader,
    trained: TrainedModel,
    description: dict[str, Any],
    photographs: Pixels | None,
    settings: ExportSettings,
) -> tuple[bytes, Parity, Int8Report | None]:
    """Write an ONNX file and complete its description."""
    size = trained.preparation.image_size
    data = onnx_bytes(trace(grader, size))
    parity = check_parity(grader, onnx_runner(data), size)
    int8 = None
    description |= {"opset": OPSET, "precision": "float32"}
    if photographs is not None:
        data, int8 = _quantise(data, photographs, trained, settings)
        description |= {"precision": "int8", "int8": asdict(int8)}
    data = with_metadata(data, {METADATA_KEY: _to_json(description), **_flat_entries(description)})
    if int8 is None:
        parity = check_parity(grader, onnx_runner(data), size)
    return data, parity, int8


def _quantise(
    data: bytes, photographs: Pixels, trained: TrainedModel, settings: ExportSettings
) -> tuple[bytes, Int8Report]:
    """Quantise a file and measure the cost on the run's test photographs."""
    small, cost, note = quantise(data, photographs), None, ""
    try:
        own = load_run_photographs(trained)
        cost = measure_cost(onnx_runner(data), onnx_runner(small), own, settings.resamples, settings.seed)
    except DataError as error:
        note = f"the cost in QWK is unknown: the run's test photographs are not available ({error})"
    return small, Int8Report(len(photographs), len(data), cost, note)


def describe(trained: TrainedModel) -> dict[str, Any]:
    """Describe input, outputs, preparation, calibration and origin of an exported model.

    Args:
        trained: The trained model.

    Returns:
        JSON-serialisable description, common to all formats.
    """
    preparation, record = trained.preparation, trained.record
    size = preparation.image_size
    config_file = trained.folder / CONFIG  # does not exist in a published folder
    run = {name: record[name] for name in _ORIGINS if name in record}
    run |= {"folder": trained.folder.resolve().name, "weights_sha256": file_sha256(trained.weights_file)}
    run |= {"config_sha256": file_sha256(config_file)} if config_file.is_file() else {}
    return {
        "drgrade_export": DESCRIPTION_FORMAT,
        "notice": NOTICE,
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["batch", size, size, 3],
            "layout": "RGB, 0-255, channels last, upright, prepared as below; normalised in the file",
        },
        "outputs": dict(OUTPUTS),
        "preparation": {
            "image_size": size,
            "illumination": preparation.illumination,
            "max_pixels": preparation.max_pixels,
            "disc": "The disc of the fundus is found as a circle (drgrade.data.disc_detection.find_disc, "
            "docs/geometry.md). The square around it is cut out, black outside the photograph; a squashed "
            "disc is restored to a circle",
            "resized": "to image_size by area averaging; bilinear where the disc is smaller",
            "exactly": "drgrade prepare produces exactly these pixels",
        },
        "normalisation": {"where": "in the file", "scale": 255, "mean": list(MEAN), "std": list(STD)},
        "calibration": {"where": "in the file, except thresholds and points", **asdict(trained.calibration)},
        "model": {
            "encoder": str(trained.config.encoder.get("name") or type(trained.model.encoder).__name__),
            "head": type(trained.model.head).__name__,
            "parameters": sum(each.numel() for each in trained.model.parameters()),
        },
        "run": run,
        "metrics": {
            name: float(value)
            for name, value in record.items()
            if "/" in name and isinstance(value, int | float)
        },
        "made_with": versions(),
    }


def _flat_entries(description: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata entries for readers of ONNX files that do not parse JSON."""
    run, preparation = description["run"], description["preparation"]
    return {
        "notice": NOTICE,
        "image_size": str(preparation["image_size"]),
        "illumination": str(preparation["illumination"]),
        "data": str(run.get("data", "")),
        "data_hash": str(run.get("data_hash", "")),
        "weights_sha256": str(run["weights_sha256"]),
        "drgrade_version": version("drgrade"),
    }


def _to_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Replace non-finite numbers, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
