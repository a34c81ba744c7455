"""Writing and running of ONNX files."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from drgrade.errors import ConfigError
from drgrade.exporting.graph import INPUT, OUTPUTS, FileRunner, Pixels, first_line

OPSET = 18
"""Opset that torch >= 2.5 writes without conversion; onnxruntime reads it since 1.14."""

METADATA_KEY = "drgrade"
"""Metadata key of the JSON description."""

_MAX_BYTES = 2_000_000_000  # limit of a protocol buffer


def require_packages() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        ConfigError: Naming the missing packages.
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format=onnx needs {', '.join(missing)}: pip install 'drgrade[export]' (format=torch does not)"
        )


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Serialise a traced grader as ONNX.

    Args:
        program: From :func:`drgrade.exporting.graph.trace`.

    Raises:
        ConfigError: If the model cannot be expressed in ONNX, or is too large for one file.
    """
    size = sum(each.nbytes for each in program.state_dict.values())
    if size > _MAX_BYTES:
        raise ConfigError(
            f"the model has {size / 1e9:.1f} GB of weights, but an ONNX file is limited to 2 GB: use "
            "format=torch"
        )
    try:
        exported = torch.onnx.export(
            program.run_decompositions(_UNROLLED),
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    except RuntimeError as error:
        reason = first_line(error.__cause__ or error)
        raise ConfigError(f"the model cannot be expressed in ONNX ({reason}): use format=torch") from error
    assert exported is not None
    model = exported.model_proto
    _name_batch_dimension(model)
    found: bytes = model.SerializeToString()
    return found


def with_metadata(data: bytes, entries: Mapping[str, str]) -> bytes:
    """Replace the metadata of an ONNX file.

    Args:
        data: Content of the file.
        entries: New metadata.

    Returns:
        New content of the file.
    """
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, dict(entries))
    model.producer_name = "drgrade"
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found


def onnx_runner(data: bytes, threads: int | None = None) -> FileRunner:
    """Load an ONNX file on the CPU.

    Args:
        data: Content of the file.
        threads: Threads of onnxruntime; None for as many as torch has.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(photographs: Pixels) -> dict[str, Any]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: photographs}), strict=True))

    return run


def _name_batch_dimension(model: Any) -> None:
    """Rename the free dimension, which torch numbers, to ``batch``."""
    free = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == free:
                dimension.dim_param = "batch"


def _accumulate(step: Callable[[Tensor, Tensor], Tensor], values: Tensor, dim: int) -> Tensor:
    """Apply an operation cumulatively along a short dimension."""
    columns = list(values.unbind(dim))
    for k in range(1, len(columns)):
        columns[k] = step(columns[k - 1], columns[k])
    return torch.stack(columns, dim)


def _cummin(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    lowest = _accumulate(torch.minimum, values, dim)
    return lowest, torch.zeros_like(lowest, dtype=torch.int64)  # the indices are not used


def _cumprod(values: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return _accumulate(torch.mul, values if dtype is None else values.to(dtype), dim)


_UNROLLED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.cummin.default: _cummin,
    torch.ops.aten.cumprod.default: _cumprod,
}
"""Operators of the cumulative and the CORN head that ONNX lacks, unrolled over the four thresholds."""
