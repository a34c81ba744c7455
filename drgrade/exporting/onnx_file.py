"""Files in ONNX, which onnxruntime and others run."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from drgrade.errors import ConfigError
from drgrade.exporting.graph import INPUT, OUTPUTS, Pixels, Runner, first_line

OPSET = 18
"""What torch's exporter writes without converting, from torch 2.5 on; onnxruntime reads it since 1.14."""

KEY = "drgrade"
"""Of the metadata: the description as JSON."""

_MOST_BYTES = 2_000_000_000
"""An ONNX file is one protocol buffer, which ends at 2 GiB."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Stop if what ONNX needs is not installed.

    Raises:
        ConfigError: Naming what is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format=onnx needs {', '.join(missing)}: pip install 'drgrade[export]' (format=torch does not)"
        )


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Write a traced grader as ONNX.

    Args:
        program: Of :func:`drgrade.exporting.graph.traced`.

    Returns:
        The file.

    Raises:
        ConfigError: If it has no form in ONNX, or is too large for one file.
    """
    size = sum(each.nbytes for each in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ConfigError(
            f"the model has {size / 1e9:.1f} GB of weights and an ONNX file ends at 2 GB: use format=torch"
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
        raise ConfigError(f"the model has no form in ONNX ({reason}): use format=torch") from error
    assert exported is not None
    model = exported.model_proto
    _name_batch(model)
    found: bytes = model.SerializeToString()
    return found


def with_metadata(data: bytes, entries: Mapping[str, str]) -> bytes:
    """Put metadata into an ONNX file.

    Args:
        data: The file.
        entries: Key: text; of the file's own nothing stays.

    Returns:
        The file with it.
    """
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, dict(entries))
    model.producer_name = "drgrade"
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found


def onnx_runner(data: bytes, threads: int | None = None) -> Runner:
    """Run an ONNX file on the CPU.

    Args:
        data: The file.
        threads: Of onnxruntime; None for as many as torch has.

    Returns:
        Photographs to outputs.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(photographs: Pixels) -> dict[str, Any]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: photographs}), strict=True))

    return run


def _name_batch(model: Any) -> None:
    """Call the free dimension ``batch``: torch calls it by a number of its own."""
    free = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == free:
                dimension.dim_param = "batch"


def _running(step: Callable[[Tensor, Tensor], Tensor], values: Tensor, dim: int) -> Tensor:
    """What has been met so far, entry by entry along a dimension of a handful."""
    columns = list(values.unbind(dim))
    for k in range(1, len(columns)):
        columns[k] = step(columns[k - 1], columns[k])
    return torch.stack(columns, dim)


def _cummin(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    lowest = _running(torch.minimum, values, dim)
    return lowest, torch.zeros_like(lowest, dtype=torch.int64)  # nobody asks for the places


def _cumprod(values: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return _running(torch.mul, values if dtype is None else values.to(dtype), dim)


_UNROLLED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.cummin.default: _cummin,
    torch.ops.aten.cumprod.default: _cumprod,
}
"""What the cumulative and the CORN head do and ONNX has no operator for, along four thresholds."""
