"""Quantisation of an ONNX file to 8 bits with onnxruntime, and its cost on the run's test photographs.

Static quantisation: weights and activations of convolutions and matrix products become 8-bit integers, with
one scale per output channel of the weights. The ranges of the activations are measured on photographs. One
bit of the weights is unused (``reduce_range``): on processors without VNNI, sums of products of 8-bit numbers
saturate, and the file would give other results there. Computation after the logits stays in float32.
"""

import contextlib
import importlib
import io
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drgrade.artefacts import select
from drgrade.data.fundus_check import Preparation
from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.photographs import Photographs
from drgrade.errors import ConfigError, DataError
from drgrade.exporting.graph import INPUT, FileRunner, Pixels
from drgrade.prediction.checkpoint import TrainedModel
from drgrade.prediction.own_photographs import OWN_RUN, run_photographs
from drgrade.prediction.published_folder import is_published
from drgrade.progress import track
from drgrade.stats.bootstrap import TestFold, confusions, interval, kappas, resample
from drgrade.stats.estimates import Estimate

MIN_PHOTOGRAPHS = 8
"""Smallest number of photographs that ranges are measured on."""

_BATCH = 16
_STRIDE = 8  # photographs whose activations are in memory at a time


@dataclass(frozen=True)
class Int8Cost:
    """Comparison of a file in 8 bits with the file in 32 bits on graded test photographs.

    The 95 % intervals are from the bootstrap of groups, with the same resamples for all three.

    Attributes:
        photographs: Number of photographs.
        same_grade: Share of them with the same grade.
        expected_grade: Mean absolute difference of the expected grade.
        qwk_float32: QWK of the file in 32 bits.
        qwk_int8: QWK of the file in 8 bits.
        qwk_change: Difference of the two, int8 minus float32.
    """

    photographs: int
    same_grade: float
    expected_grade: float
    qwk_float32: Estimate
    qwk_int8: Estimate
    qwk_change: Estimate


def quantise(data: bytes, photographs: Pixels) -> bytes:
    """Quantise the content of an ONNX file; ranges are measured on prepared photographs (N, S, S, 3)."""
    tools: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory(prefix="drgrade-") as scratch:
        given, simple, small = (str(Path(scratch) / f"{name}.onnx") for name in ("given", "simple", "small"))
        Path(given).write_bytes(data)
        # Symbolic shape inference would need sympy; all shapes are known except the batch size.
        shapes.quant_pre_process(given, simple, skip_symbolic_shape=True)
        with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints its progress
            tools.quantize_static(
                simple,
                small,
                _calibration_reader(photographs),
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                op_types_to_quantize=["Conv", "ConvTranspose", "MatMul", "Gemm"],
                nodes_to_quantize=_nodes_of_logits(simple),
                extra_options={"CalibStridedMinMax": _STRIDE},
            )
        return Path(small).read_bytes()


def _calibration_reader(photographs: Pixels) -> Any:
    """Return the data reader of onnxruntime, which asks for ``_STRIDE`` photographs at a time."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            self._waiting = iter(photographs[:0])

        def __len__(self) -> int:
            return -(-len(photographs) // _STRIDE) * _STRIDE  # must be a multiple

        def set_range(self, start_index: int, end_index: int) -> None:
            self._waiting = iter(photographs[start_index:end_index])

        def get_next(self) -> dict[str, Pixels] | None:
            photograph = next(self._waiting, None)
            return None if photograph is None else {INPUT: photograph[None]}

    return Reader()


def _nodes_of_logits(path: str) -> list[str]:
    """Return the names of the nodes that the logits depend on."""
    onnx: Any = importlib.import_module("onnx")
    producers = {output: node for node in onnx.load(path).graph.node for output in node.output}
    names: set[str] = set()
    values = ["logits"]
    while values:
        node = producers.get(values.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            values += node.input
    return sorted(names)


def calibration_photographs(
    model: TrainedModel, folder: Path | None, count: int, seed: int, own_run: bool
) -> Pixels:
    """Load photographs for the ranges of the activations; never test photographs of the run.

    Args:
        model: The trained model.
        folder: Folder of photographs; None for the training photographs of the run.
        count: Maximal number N of photographs, drawn at random.
        seed: Seed of the draw.
        own_run: The run is the user's own, so its photographs may be read.

    Returns:
        (N, S, S, 3) uint8.

    Raises:
        ConfigError: If there are fewer than :data:`MIN_PHOTOGRAPHS`.
    """
    rng = np.random.default_rng(seed)
    if folder is not None:
        return _prepare_folder(folder, model.preparation, count, rng)
    try:
        photographs = load_run_photographs(model, own_run)
    except DataError as error:
        raise ConfigError(
            f"int8=true needs photographs, and those of the run are not available ({error}): name a folder "
            "of similar ones with photographs=DIR"
        ) from error
    rows = rows_of(photographs, "train")
    _check_count(len(rows), "training photographs of the run")
    return read_pixels(photographs, rng.permutation(rows)[:count])


def _prepare_folder(folder: Path, preparation: Preparation, count: int, rng: np.random.Generator) -> Pixels:
    if not folder.is_dir():
        raise ConfigError(f"photographs={folder} is not a folder")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()
    )
    prepared = preparation.prepare_all([files[number] for number in rng.permutation(len(files))])
    usable = (
        each.crop.pixels for each in prepared if not each.verdict.abstains and each.crop.pixels is not None
    )
    chosen = list(
        track(islice(usable, count), min(count, len(files)), "preparing", f"photographs of {folder}")
    )
    _check_count(len(chosen), f"usable photographs in {folder}")
    return np.stack(chosen)


def _check_count(count: int, what: str) -> None:
    if count < MIN_PHOTOGRAPHS:
        raise ConfigError(
            f"int8=true needs at least {MIN_PHOTOGRAPHS} photographs, and there are {count} {what}: name a "
            "folder with more, photographs=DIR"
        )


def load_run_photographs(model: TrainedModel, own_run: bool) -> Photographs:
    """Return the photographs of a run, without creating missing ones.

    Raises:
        DataError: If they are not available, have changed, or the run is not the user's own.
    """
    if not is_published(model.folder):
        if not own_run:
            raise DataError(OWN_RUN)
        for setting in ("photographs.source.root", "photographs.folder"):
            place = select(model.config, setting)
            if not isinstance(place, str) or not Path(place).is_dir():
                raise DataError(f"{place} does not exist")
    return run_photographs(model.config, model.record, model.folder)


def rows_of(photographs: Photographs, subset: str) -> npt.NDArray[np.int64]:
    """Return the rows of the graded photographs of a subset, ``train`` or ``test``."""
    split = photographs.split
    return np.flatnonzero((split["subset"] == subset) & split["grade"].notna())


def read_pixels(photographs: Photographs, rows: npt.NDArray[np.int64]) -> Pixels:
    """Read prepared photographs, (B, S, S, 3), by their rows (B,), which count through all stores."""
    stores = photographs.stores
    ends = np.cumsum([len(store) for store in stores])
    numbers = np.searchsorted(ends, rows, side="right")
    return np.stack(
        [stores[k].images[row - ends[k] + len(stores[k])] for k, row in zip(numbers, rows, strict=True)]
    )


def measure_cost(
    float32: FileRunner, int8: FileRunner, photographs: Photographs, resamples: int, seed: int
) -> Int8Cost:
    """Compare two files on the test photographs of a run.

    Args:
        float32: The file in 32 bits.
        int8: The file in 8 bits.
        photographs: Photographs of the run.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    rows = rows_of(photographs, "test")
    rows = rows[np.argsort(photographs.split["image_id"].to_numpy(dtype=str)[rows])]
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    outputs: list[list[dict[str, npt.NDArray[Any]]]] = [[], []]
    for batch in track(batches, len(batches), "grading", "batches of test photographs twice"):
        pixels = read_pixels(photographs, batch)
        for run, parts in zip((float32, int8), outputs, strict=True):
            parts.append(run(pixels))
    predicted, probabilities, expected = (
        np.stack([np.concatenate([part[name] for part in parts]) for parts in outputs])
        for name in ("grade", "probabilities", "expected_grade")
    )
    table = photographs.split.iloc[rows]
    ids, groups = (table[name].to_numpy(dtype=str) for name in ("image_id", "group"))
    fold = TestFold.with_groups("test", ids, groups, table["grade"].to_numpy(dtype=np.int64))
    samples = resample(fold, predicted, probabilities.astype(np.float64), resamples, seed).qwk
    qwk = kappas(confusions(predicted, fold.grades))
    return Int8Cost(
        len(rows),
        float(np.mean(predicted[0] == predicted[1])),
        float(np.abs(expected[0] - expected[1]).mean()),
        Estimate(float(qwk[0]), interval(samples[0])),
        Estimate(float(qwk[1]), interval(samples[1])),
        Estimate(float(qwk[1] - qwk[0]), interval(samples[1] - samples[0])),
    )
