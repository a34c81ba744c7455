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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drgrade.inference.exporting.graph import INPUT, Pixels
from drgrade.inference.exporting.onnx_file import onnx_runner
from drgrade.progress import say

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
