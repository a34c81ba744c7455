"""An ONNX file in eight bits, by onnxruntime's quantisation: four recipes, of which the nearest is kept.

Weights become 8-bit whole numbers, one scale for each channel. *static*: activations too, their ranges
measured on photographs beforehand. *mixed*: convolutions so, matrix products (the Transformer's and the
head's) with ranges that are measured anew in every call. Ranges are the extremes, or leave out the outermost
0.01 %. What is computed after the logits stays as it is.

One bit of the weights is left unused (``reduce_range``): on processors without VNNI, sums of products of
unsigned by signed 8-bit numbers saturate, and the file would grade otherwise there.
"""

import contextlib
import importlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.photographs import Photographs
from drgrade.data.preparation import Preparation
from drgrade.errors import ConfigError, DataError
from drgrade.exporting.graph import INPUT, Pixels, Runner
from drgrade.exporting.onnx_file import onnx_runner
from drgrade.metrics.functional import confusion_matrix, quadratic_weighted_kappa
from drgrade.prediction.checkpoint import Trained
from drgrade.progress import say, track
from drgrade.runs.run_dir import SPLIT
from drgrade.stats.bootstrap import TestFold, interval, resample
from drgrade.stats.estimates import Estimate
from drgrade.training.build import make_photographs

FEWEST = 8
"""Of fewer photographs no ranges are measured."""


@dataclass(frozen=True, eq=False)
class Images:
    """Some of a run's prepared photographs.

    Attributes:
        table: Columns image_id, group, grade; row i is image i.
        arrays: (N_k, S, S, 3) uint8 each, of all stores.
        rows: Counted through all stores.
    """

    table: pd.DataFrame
    arrays: Sequence[Pixels]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: npt.NDArray[np.int64]) -> Pixels:
        """Read some.

        Args:
            places: Among these photographs.

        Returns:
            (B, S, S, 3).
        """
        ends = np.cumsum([len(array) for array in self.arrays])
        found = []
        for row in self.rows[places]:
            number = int(np.searchsorted(ends, row, side="right"))
            found.append(self.arrays[number][row - ends[number] + len(self.arrays[number])])
        return np.stack(found)

    def batches(self, size: int) -> Iterator[Pixels]:
        """Read all, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


def own_images(trained: Trained, subset: str) -> Images:
    """Photographs of a run, as it has seen them.

    Args:
        trained: The run.
        subset: ``train`` or ``test``.

    Returns:
        The graded ones of the subset.

    Raises:
        DataError: If they are not there any more, or are others.
    """
    photographs = _photographs(trained)
    split = pd.read_csv(trained.folder / SPLIT, dtype={"image_id": str, "group": str})
    chosen = split[(split["subset"] == subset) & split["grade"].notna()]
    place = {image_id: row for row, image_id in enumerate(photographs.photographs["image_id"])}
    rows = np.array([place[image_id] for image_id in chosen["image_id"]], dtype=np.int64)
    arrays = [store.images for store in photographs.stores]
    return Images(chosen.reset_index(drop=True), arrays, rows)


def _photographs(trained: Trained) -> Photographs:
    cfg = trained.config
    if not (trained.folder / SPLIT).is_file() or "photographs" not in cfg or "source" not in cfg.photographs:
        raise DataError("it is a published grader, which has no photographs")
    for place in (cfg.photographs.source.root, cfg.photographs.folder):
        if not Path(place).is_dir():
            raise DataError(f"{place} is not there")
    photographs = make_photographs(cfg)
    if photographs.sha256 != trained.record["data_hash"]:
        raise DataError(f"{cfg.photographs.source.root} does not hold the photographs of the run any more")
    return photographs


def calibration_images(trained: Trained, folder: Path | None, count: int, seed: int) -> Pixels:
    """Photographs to measure the ranges of activations on; no test photographs of the run.

    Args:
        trained: The run.
        folder: With photographs; None for the training photographs of the run.
        count: At most so many, drawn.
        seed: Of the drawing.

    Returns:
        (N, S, S, 3) uint8, in the order drawn.

    Raises:
        ConfigError: If there are too few.
    """
    rng = np.random.default_rng(seed)
    if folder is not None:
        return _prepared(folder, trained.preparation, count, rng)
    try:
        images = own_images(trained, "train")
    except DataError as error:
        raise ConfigError(
            f"int8=true needs photographs to measure ranges on, and the run's cannot be had ({error}): name "
            "a folder with some like them, photographs=DIR"
        ) from error
    _check_enough(len(images), "training photographs of the run")
    return images.take(rng.permutation(len(images))[:count])


def _prepared(folder: Path, preparation: Preparation, count: int, rng: np.random.Generator) -> Pixels:
    if not folder.is_dir():
        raise ConfigError(f"photographs={folder} is no folder")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()
    )
    made = preparation.prepare_all([files[number] for number in rng.permutation(len(files))])
    usable = (each.crop.pixels for each in made if not each.verdict.abstains and each.crop.pixels is not None)
    wanted = track(islice(usable, count), min(count, len(files)), "preparing", f"photographs of {folder}")
    found = list(wanted)
    _check_enough(len(found), f"usable photographs in {folder}")
    return np.stack(found)


def _check_enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise ConfigError(
            f"{count} {what} are too few to measure ranges on for int8=true, {FEWEST} are the fewest: name a "
            "folder with more, photographs=DIR"
        )


_BATCH = 16
_TIMED, _ROUNDS = 20, 5


@dataclass(frozen=True)
class Agreement:
    """Two files on the same photographs.

    Attributes:
        photographs: How many.
        grades: Share that get the same grade of both.
        expected: Mean absolute difference of the expected grade.
    """

    photographs: int
    grades: float
    expected: float


@dataclass(frozen=True)
class Kappas:
    """QWK on graded test photographs; 95 % intervals by the bootstrap of groups, both on the same draws.

    Attributes:
        before: Of the file in 32 bits.
        after: In eight.
        change: After less before.
    """

    before: Estimate
    after: Estimate
    change: Estimate


def compare(before: Runner, after: Runner, photographs: Pixels) -> Agreement:
    """Ask two files the same.

    Args:
        before: In 32 bits.
        after: In eight.
        photographs: (N, S, S, 3), prepared.
    """
    said = [_ask(run, photographs) for run in (before, after)]
    return _agreement(*said)


def compare_graded(
    before: Runner, after: Runner, images: Images, resamples: int, seed: int
) -> tuple[Agreement, Kappas]:
    """Ask two files about graded photographs.

    Args:
        before: In 32 bits.
        after: In eight.
        images: Of the run's test side.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Agreement of the two, and QWK of both.
    """
    said: list[list[dict[str, Any]]] = [[], []]
    batches = -(-len(images) // _BATCH)
    for pixels in track(images.batches(_BATCH), batches, "grading", "batches of test photographs twice"):
        said[0].append(before(pixels))
        said[1].append(after(pixels))
    first, second = (_joined(parts) for parts in said)
    return _agreement(first, second), _kappas(first, second, images, resamples, seed)


def milliseconds(first: Runner, second: Runner, photographs: Pixels) -> tuple[float, float]:
    """Time per photograph, one at a time, of two files in turn.

    Args:
        first: A file.
        second: Another.
        photographs: (N, S, S, 3); the first of them are used.

    Returns:
        The median of each, in milliseconds.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for run, times in zip((first, second), taken, strict=True):
            for photograph in photographs[:_TIMED]:
                start = time.perf_counter()
                run(photograph[None])
                times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(taken[0])), float(np.median(taken[1]))


def _ask(run: Runner, photographs: Pixels) -> dict[str, Any]:
    starts = range(0, len(photographs), _BATCH)
    return _joined([run(photographs[start : start + _BATCH]) for start in starts])


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _agreement(first: dict[str, Any], second: dict[str, Any]) -> Agreement:
    same = float(np.mean(first["grade"] == second["grade"]))
    gap = float(np.abs(first["expected_grade"] - second["expected_grade"]).mean())
    return Agreement(len(first["grade"]), same, gap)


def _kappas(
    first: dict[str, Any], second: dict[str, Any], images: Images, resamples: int, seed: int
) -> Kappas:
    order = np.argsort(images.table["image_id"].to_numpy(dtype=str))
    table = images.table.iloc[order]
    _, groups = np.unique(table["group"].to_numpy(dtype=str), return_inverse=True)
    grades = table["grade"].to_numpy(dtype=np.int64)
    fold = TestFold("test", table["image_id"].to_numpy(dtype=str), groups.astype(np.int64), grades)
    predicted = np.stack([each["grade"][order] for each in (first, second)])
    probabilities = np.stack([each["probabilities"][order] for each in (first, second)]).astype(np.float64)
    samples = resample(fold, predicted, probabilities, resamples, seed).qwk  # (2, B)
    before, after = (_qwk(each, grades) for each in predicted)
    return Kappas(
        Estimate(before, interval(samples[0])),
        Estimate(after, interval(samples[1])),
        Estimate(after - before, interval(samples[1] - samples[0])),
    )


def _qwk(predicted: npt.NDArray[np.int64], grades: npt.NDArray[np.int64]) -> float:
    confusion = confusion_matrix(torch.tensor(predicted), torch.tensor(grades))
    return float(quadratic_weighted_kappa(confusion))


_CONVOLUTIONS, _PRODUCTS = ["Conv", "ConvTranspose"], ["MatMul", "Gemm"]

_STRIDE = 8
"""Photographs whose activations are in memory at a time."""

_PERCENTILE = 99.99

RECIPES = ("static, extremes", "static, 99.99 %", "mixed, extremes", "mixed, 99.99 %")


@dataclass(frozen=True, eq=False)
class Quantised:
    """A file in eight bits.

    Attributes:
        data: The file.
        recipe: Of :data:`RECIPES`.
        tried: Recipe: mean absolute difference of a logit from the file in 32 bits.
        calibrated_on: Photographs that ranges were measured on.
        chosen_on: Others, that the recipe was chosen by.
    """

    data: bytes
    recipe: str
    tried: Mapping[str, float]
    calibrated_on: int
    chosen_on: int


def quantised(data: bytes, photographs: Pixels) -> Quantised:
    """Quantise a file by the recipe whose logits stay nearest.

    Args:
        data: In 32 bits.
        photographs: (N, S, S, 3) uint8, prepared, N at least 2: on the first three quarters ranges are
            measured, by the rest the recipe is chosen.

    Returns:
        The file in eight bits.
    """
    held_out = max(1, len(photographs) // 4)
    measured, others = photographs[:-held_out], photographs[-held_out:]
    wanted = _logits(data, others)
    tried: dict[str, float] = {}
    best = b""
    with tempfile.TemporaryDirectory(prefix="drgrade-") as scratch:
        simple = _preprocessed(data, Path(scratch))
        for recipe in RECIPES:
            say(f"int8, {recipe}: measuring ranges on {len(measured)} photographs")
            made = _by_recipe(simple, recipe, measured, Path(scratch))
            tried[recipe] = float(np.abs(_logits(made, others) - wanted).mean())
            if tried[recipe] == min(tried.values()):
                best = made
    return Quantised(best, min(tried, key=lambda each: tried[each]), tried, len(measured), len(others))


def _logits(data: bytes, photographs: Pixels) -> npt.NDArray[np.float32]:
    run = onnx_runner(data)
    return np.concatenate(
        [run(photographs[start : start + _STRIDE])["logits"] for start in range(0, len(photographs), _STRIDE)]
    )


def _preprocessed(data: bytes, scratch: Path) -> Path:
    """Fuse and fold what can be, as onnxruntime asks before it quantises."""
    module: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    given, simple = scratch / "given.onnx", scratch / "simple.onnx"
    given.write_bytes(data)
    # The symbolic inference would need sympy; shapes are all known but for the batch.
    module.quant_pre_process(str(given), str(simple), skip_symbolic_shape=True)
    return simple


def _by_recipe(simple: Path, recipe: str, photographs: Pixels, scratch: Path) -> bytes:
    """Quantise by one recipe."""
    tools: Any = importlib.import_module("onnxruntime.quantization")
    mixed, extremes = recipe.startswith("mixed"), recipe.endswith("extremes")
    method = tools.CalibrationMethod.MinMax if extremes else tools.CalibrationMethod.Percentile
    path = scratch / "static.onnx"
    # It prints its progress, however quiet it is asked to be.
    with contextlib.redirect_stdout(io.StringIO()):
        tools.quantize_static(
            str(simple),
            str(path),
            _reader(photographs),
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=_CONVOLUTIONS if mixed else _CONVOLUTIONS + _PRODUCTS,
            nodes_to_quantize=_to_logits(simple),
            calibrate_method=method,
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": _STRIDE},
        )
    if not mixed:
        return path.read_bytes()
    whole = scratch / "mixed.onnx"
    with _quantised_twice_on_purpose():
        tools.quantize_dynamic(
            str(path),
            str(whole),
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            reduce_range=True,
            weight_type=tools.QuantType.QInt8,
            nodes_to_quantize=_to_logits(path),
        )
    return whole.read_bytes()


@contextlib.contextmanager
def _quantised_twice_on_purpose() -> Iterator[None]:
    """Leave out one message of onnxruntime: the products are quantised after the convolutions have been."""

    def other(record: logging.LogRecord) -> bool:
        return "check if the model is already quantized" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _reader(photographs: Pixels) -> Any:
    """Hands photographs to onnxruntime, ``_STRIDE`` at a time, one by one."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]  # known when it runs
        def __init__(self) -> None:
            self._waiting = iter(photographs[:0])

        def __len__(self) -> int:
            return -(-len(photographs) // _STRIDE) * _STRIDE  # it has to be a multiple

        def set_range(self, start_index: int, end_index: int) -> None:
            self._waiting = iter(photographs[start_index:end_index])

        def get_next(self) -> dict[str, Pixels] | None:
            photograph = next(self._waiting, None)
            return None if photograph is None else {INPUT: photograph[None]}

    return Reader()


def _to_logits(path: Path) -> list[str]:
    """Names of the nodes that the logits depend on."""
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load(str(path)).graph
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    waiting = ["logits"]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return sorted(found)
