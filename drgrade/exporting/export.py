"""The whole of ``drgrade export``: load, write, check, measure, keep."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from drgrade.errors import ConfigError, DataError
from drgrade.exporting.graph import ExportedGrader, Pixels, torch_bytes, torch_runner, traced
from drgrade.exporting.int8 import (
    FEWEST,
    Agreement,
    Kappas,
    calibration_images,
    compare,
    compare_graded,
    milliseconds,
    own_images,
)
from drgrade.exporting.metadata import describe, flat
from drgrade.exporting.onnx_file import KEY, OPSET, onnx_bytes, onnx_runner, require_packages, with_metadata
from drgrade.exporting.parity import Parity, check_parity
from drgrade.files import write_bytes, write_text
from drgrade.prediction.checkpoint import Trained, load_trained
from drgrade.settings import ExportSettings

Format = Literal["onnx", "torch"]

ENDINGS: Mapping[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Int8:
    """How a file came to eight bits and what that costs.

    Attributes:
        recipe: Of :data:`drgrade.exporting.int8.RECIPES`.
        tried: Recipe: mean absolute difference of a logit.
        calibrated_on: Photographs that ranges were measured on.
        chosen_on: Photographs that the recipe was chosen by.
        agreement: With the file in 32 bits.
        of: What the agreement was measured on.
        kappas: On the test photographs; None if they cannot be had.
        note: Why not; empty otherwise.
        bytes_before: Size of the file in 32 bits.
        milliseconds: Per photograph on one thread: in 32 bits, in eight.
    """

    recipe: str
    tried: Mapping[str, float]
    calibrated_on: int
    chosen_on: int
    agreement: Agreement
    of: str
    kappas: Kappas | None
    note: str
    bytes_before: int
    milliseconds: tuple[float, float]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        description: The JSON beside it.
        size: Of the file in bytes.
        parity: With the model; of the file in 32 bits that an int8 file was made of.
        int8: None for 32 bits.
    """

    path: Path
    description: Path
    size: int
    parity: Parity
    int8: Int8 | None


def export(settings: ExportSettings) -> Exported:
    """Export a trained run.

    Args:
        settings: Of ``drgrade export``.

    Returns:
        What was written.

    Raises:
        ConfigError: If a setting makes no sense, a file is in the way, or something is not installed.
        ParityError: If the file does not say what the model says; nothing is kept.
        DrgradeError: If the run cannot be loaded.
    """
    _check(settings)
    (folder,) = settings.checkpoint
    path = (
        settings.out
        or folder / "export" / f"grader{'-int8' if settings.int8 else ''}{ENDINGS[settings.format]}"
    )
    beside = path.with_name(f"{path.name}.json")
    _check_free(path, beside, settings)
    trained = load_trained(folder)
    grader = ExportedGrader(trained).eval()
    size = trained.preparation.image_size
    # int8 needs photographs: whether there are any is known before minutes are spent.
    photographs = None
    if settings.int8:
        photographs = calibration_images(trained, settings.photographs, settings.count, settings.seed)
    program = traced(grader, size)
    description = describe(trained)
    int8 = None
    if settings.format == "torch":
        data = torch_bytes(program, _json(description))
        parity = check_parity(grader, torch_runner(data), size)
    else:
        description["opset"] = OPSET
        data = onnx_bytes(program)
        parity = check_parity(grader, onnx_runner(data), size)
        if photographs is not None:
            data, int8 = _to_int8(data, photographs, trained, settings)
        description |= _precision(int8)
        data = with_metadata(data, {KEY: _json(description), **flat(description)})
        if int8 is None:
            parity = check_parity(grader, onnx_runner(data), size)
    description["parity"] = asdict(parity)
    description["file"] = {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _keep(path, data, beside, _json(description, indent=2) + "\n")
    return Exported(path, beside, len(data), parity, int8)


def _check(settings: ExportSettings) -> None:
    if len(settings.checkpoint) > 1:
        raise ConfigError(
            f"checkpoint names {len(settings.checkpoint)} runs, but a file holds one model; ensembles are "
            "not exported: export each run and average the probabilities"
        )
    if settings.int8 and settings.format != "onnx":
        raise ConfigError("int8=true needs onnxruntime: use format=onnx")
    if settings.photographs is not None and not settings.int8:
        raise ConfigError(f"photographs={settings.photographs} has an effect with int8=true only")
    if settings.count < FEWEST:
        raise ConfigError(f"count={settings.count}: measuring ranges needs at least {FEWEST} photographs")
    if settings.format == "onnx":
        require_packages()


def _check_free(path: Path, beside: Path, settings: ExportSettings) -> None:
    if path.suffix != ENDINGS[settings.format]:
        raise ConfigError(f"out={path}: name a file that ends in {ENDINGS[settings.format]}")
    for each in (path, beside):
        if each.is_dir():
            raise ConfigError(f"{each} is a folder: name another file, out=FILE")
        if each.exists() and not settings.overwrite:
            raise ConfigError(f"{each} is there already: overwrite=true replaces it, out=FILE names another")


def _to_int8(
    data: bytes, photographs: Pixels, trained: Trained, settings: ExportSettings
) -> tuple[bytes, Int8]:
    """Quantise a file, and measure what that costs."""
    from drgrade.exporting.int8 import quantised

    made = quantised(data, photographs)
    before, after = onnx_runner(data), onnx_runner(made.data)
    kappas, note, of = None, "", "test photographs of the run"
    try:
        images = own_images(trained, "test")
        agreement, kappas = compare_graded(before, after, images, settings.resamples, settings.seed)
    except DataError as error:
        note, of = f"no QWK: the run's test photographs cannot be had ({error})", "photographs held out"
        agreement = compare(before, after, photographs[-made.chosen_on :])
    times = milliseconds(onnx_runner(data, threads=1), onnx_runner(made.data, threads=1), photographs)
    return made.data, Int8(
        made.recipe,
        made.tried,
        made.calibrated_on,
        made.chosen_on,
        agreement,
        of,
        kappas,
        note,
        len(data),
        times,
    )


def _precision(int8: Int8 | None) -> dict[str, Any]:
    return {"precision": "float32"} if int8 is None else {"precision": "int8", "int8": asdict(int8)}


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no number for what is undefined."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep(path: Path, data: bytes, beside: Path, description: str) -> None:
    """The description first: no file is ever without one."""
    try:
        write_text(beside, description)
        write_bytes(path, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
