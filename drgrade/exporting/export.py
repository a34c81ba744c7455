"""Export of a trained run: trace, write, compare with the model, optionally quantise, describe."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from drgrade.data.transforms import MEAN, STD
from drgrade.errors import ConfigError, DataError
from drgrade.exporting.graph import (
    INPUT,
    METADATA_KEY,
    OPSET,
    OUTPUTS,
    ExportedGrader,
    Parity,
    Pixels,
    check_parity,
    onnx_bytes,
    onnx_runner,
    require_packages,
    torch_bytes,
    torch_runner,
    trace,
    with_metadata,
)
from drgrade.exporting.int8 import (
    MIN_PHOTOGRAPHS,
    Int8Cost,
    calibration_photographs,
    load_run_photographs,
    measure_cost,
    quantise,
)
from drgrade.files import file_sha256, write_bytes, write_text
from drgrade.models.calibration import referral_rule
from drgrade.models.thresholds import describe_rule
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.prediction.grader import drawings_warning
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
    "encoder_file",
    "encoder_says",
    "weights_hash",
    "weights_file",
    "weights_says",
    "protocol",
    "seed",
    "label_seed",
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
        subject = "before int8, " if self.int8 else ""
        lines = [
            f"{self.path}  {self.size / 1e6:.1f} MB",
            str(self.description),
            f"{subject}logits differ from the model's by at most {self.parity.logits:.1e}, probabilities by "
            f"{self.parity.probabilities:.1e} ({self.parity.photographs} synthetic photographs)",
        ]
        return lines if self.int8 is None else [*lines, *_int8_summary(self.int8, self.size)]


def _int8_summary(int8: Int8Report, size: int) -> list[str]:
    sizes = (
        f"int8: {int8.bytes_float32 / 1e6:.1f} -> {size / 1e6:.1f} MB, ranges measured on "
        f"{int8.calibrated_on} photographs"
    )
    cost = int8.cost
    if cost is None:
        return [sizes, int8.note]
    figures = {"QWK": cost.qwk_float32, "in int8": cost.qwk_int8, "change": cost.qwk_change}
    written = [
        f"{name} {each.value:.3f} ({each.interval.low:.3f} to {each.interval.high:.3f})"
        for name, each in figures.items()
    ]
    return [
        sizes,
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
    description_path = path.with_name(f"{path.name}.json")
    _check_target(path, description_path, settings)
    trained = load_model(folder)
    description = describe(trained)
    data, parity, int8 = _file_content(trained, description, settings)
    description["parity"] = asdict(parity)
    description["file"] = {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        write_text(description_path, _to_json(description, indent=2) + "\n")  # before the file that needs it
        write_bytes(path, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    return ExportedFile(path, description_path, len(data), parity, int8)


def _file_content(
    trained: TrainedModel, description: dict[str, Any], settings: ExportSettings
) -> tuple[bytes, Parity, Int8Report | None]:
    """Return the content of a file that was compared with the model; completes the description."""
    grader = ExportedGrader(trained).eval()
    size, photographs = trained.preparation.image_size, None
    if settings.int8:  # load them first: tracing takes minutes
        photographs = calibration_photographs(
            trained, settings.photographs, settings.count, settings.seed, settings.own_run
        )
    program = trace(grader, size)
    if settings.format == "torch":
        data = torch_bytes(program, _to_json(description))
        return data, check_parity(grader, torch_runner(data), size), None
    data = onnx_bytes(program)
    description |= {"opset": OPSET, "precision": "float32"}
    if photographs is None:
        data = _with_description(data, description)
        return data, check_parity(grader, onnx_runner(data), size), None
    parity = check_parity(grader, onnx_runner(data), size)
    data, int8 = _quantise(data, photographs, trained, settings)
    description |= {"precision": "int8", "int8": asdict(int8)}
    return _with_description(data, description), parity, int8


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


def _check_target(path: Path, description_path: Path, settings: ExportSettings) -> None:
    if path.suffix != ENDINGS[settings.format]:
        raise ConfigError(f"out={path}: name a file that ends in {ENDINGS[settings.format]}")
    for each in (path, description_path):
        if each.is_dir():
            raise ConfigError(f"{each} is a folder: name another file with out=FILE")
        if each.exists() and not settings.overwrite:
            raise ConfigError(f"{each} exists already: overwrite=true replaces it, out=FILE names another")


def _quantise(
    data: bytes, photographs: Pixels, trained: TrainedModel, settings: ExportSettings
) -> tuple[bytes, Int8Report]:
    """Quantise a file and measure the cost on the run's test photographs."""
    small, cost, note = quantise(data, photographs), None, ""
    try:
        tested = load_run_photographs(trained, settings.own_run)
        cost = measure_cost(onnx_runner(data), onnx_runner(small), tested, settings.resamples, settings.seed)
    except DataError as error:
        note = f"the cost in QWK is unknown: the run's test photographs are not available ({error})"
    return small, Int8Report(len(photographs), len(data), cost, note)


def describe(trained: TrainedModel) -> dict[str, Any]:
    """Describe input, outputs, preparation, calibration and origin of an exported model, for all formats."""
    preparation, record = trained.preparation, trained.record
    size = preparation.image_size
    config_file = trained.folder / CONFIG  # does not exist in a published folder
    run = {name: record[name] for name in _ORIGINS if name in record}
    run |= {"folder": trained.folder.resolve().name, "weights_sha256": file_sha256(trained.weights_file)}
    run |= {"config_sha256": file_sha256(config_file)} if config_file.is_file() else {}
    return {
        "drgrade_export": DESCRIPTION_FORMAT,
        "notice": NOTICE,
        "warning": drawings_warning([trained]),
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
        "referral": {"where": "in the file", **describe_rule(referral_rule([trained.calibration]))},
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


def _with_description(data: bytes, description: Mapping[str, Any]) -> bytes:
    """Store the description in an ONNX file, and some entries again for readers that do not parse JSON."""
    run, preparation = description["run"], description["preparation"]
    entries = {
        METADATA_KEY: _to_json(description),
        "notice": NOTICE,
        "image_size": str(preparation["image_size"]),
        "illumination": str(preparation["illumination"]),
        "data": str(run.get("data", "")),
        "data_hash": str(run.get("data_hash", "")),
        "weights_sha256": str(run["weights_sha256"]),
        "referral": str(description["referral"]["rule"]),
        "drgrade_version": version("drgrade"),
    }
    return with_metadata(data, entries)


def _to_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Replace non-finite numbers, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
