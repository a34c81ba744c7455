"""Computation of an exported file: trace it, write and run it as ONNX or .pt2, compare it with the model."""

import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError, DrgradeError
from drgrade.metrics.functional import referable_probability
from drgrade.models.calibration import expected_grade, referral_rule
from drgrade.prediction.checkpoint import TrainedModel

INPUT = "photographs"

OUTPUTS: Mapping[str, str] = {
    "logits": "(B, K) float32: output of the head",
    "probabilities": "(B, 5) float32: calibrated probabilities of the grades 0 to 4; rows sum to 1",
    "grade": "(B,) int64: predicted grade, 0 to 4, by the rule of the head",
    "expected_grade": "(B,) float32: mean of the probabilities, 0 to 4",
    "p_referable": "(B,) float32: calibrated probability of grade 2 or worse",
    "referable": "(B,) bool: the referral decision, p_referable reaches its threshold",
}
"""Output name to description, in the order of the file."""

EXTRA_FILE = "drgrade.json"
"""Name of the description among the extra files of a .pt2 file."""

METADATA_KEY = "drgrade"
"""Metadata key of the description in an ONNX file."""

OPSET = 18
"""Opset that torch >= 2.5 writes without conversion; onnxruntime reads it since 1.14."""

BATCHES = (1, 2, 7)
"""Batch sizes of the parity check."""

TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
"""Largest absolute and relative difference of an output; float32 has seven digits."""

_MAX_ONNX_BYTES = 2_000_000_000  # limit of a protocol buffer

Pixels = npt.NDArray[np.uint8]
FileRunner = Callable[[Pixels], dict[str, npt.NDArray[Any]]]
"""Runs a file on the CPU: (B, S, S, 3) uint8 to the outputs by name."""


class ParityError(DrgradeError):
    """The outputs of an exported file differ from those of the model."""


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit and of a probability between a file and the model."""

    logits: float
    probabilities: float
    photographs: int


class ExportedGrader(nn.Module):
    """Maps prepared photographs to all outputs."""

    def __init__(self, trained: TrainedModel) -> None:
        """Take model and calibration.

        Raises:
            ConfigError: If the output of the head does not depend on the photographs.
        """
        super().__init__()
        if not getattr(trained.model.head, "needs_features", True):
            raise ConfigError(
                f"checkpoint={trained.folder}: the output of {type(trained.model.head).__name__} does not "
                "depend on the photograph; there is nothing to export"
            )
        self.model, self.calibration = trained.model, trained.calibration
        self.rule = referral_rule([trained.calibration])

    def forward(self, photographs: Tensor) -> tuple[Tensor, ...]:
        """Grade photographs, (B, S, S, 3) uint8; returns the outputs in the order of :data:`OUTPUTS`."""
        logits = self.model(normalise(photographs.permute(0, 3, 1, 2)))
        head = self.model.head
        probabilities = self.calibration.probabilities(head.probabilities(logits))
        score = referable_probability(probabilities)
        return (
            logits,
            probabilities,
            head.predict(logits),
            expected_grade(probabilities),
            score,
            self.rule.refers(score),
        )


def trace(grader: ExportedGrader, image_size: int) -> torch.export.ExportedProgram:
    """Trace the computation on the CPU for any batch size.

    Raises:
        ConfigError: If torch cannot trace the model.
    """
    # Two photographs, because torch specialises a dimension of 1.
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    shapes = {"photographs": {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad():
            return torch.export.export(grader, (example,), dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot trace {type(grader.model.encoder).__name__} with "
            f"{type(grader.model.head).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def torch_bytes(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Serialise a traced grader as a .pt2 file that contains its description."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={EXTRA_FILE: description})
    return file.getvalue()


def torch_runner(data: bytes) -> FileRunner:
    """Load the content of a .pt2 file."""
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda photographs: _run_module(module, photographs)


def _run_module(module: nn.Module, photographs: Pixels) -> dict[str, npt.NDArray[Any]]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(photographs))
    return {name: each.numpy() for name, each in zip(OUTPUTS, outputs, strict=True)}


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

    Raises:
        ConfigError: If the model cannot be expressed in ONNX, or is too large for one file.
    """
    size = sum(each.nbytes for each in program.state_dict.values())
    if size > _MAX_ONNX_BYTES:
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
        reason = _first_line(error.__cause__ or error)
        raise ConfigError(f"the model cannot be expressed in ONNX ({reason}): use format=torch") from error
    assert exported is not None
    model = exported.model_proto
    _name_batch_dimension(model)
    return bytes(model.SerializeToString())


def with_metadata(data: bytes, entries: Mapping[str, str]) -> bytes:
    """Replace the metadata of an ONNX file."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, dict(entries))
    model.producer_name = "drgrade"
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_runner(data: bytes, threads: int | None = None) -> FileRunner:
    """Load the content of an ONNX file; ``threads`` is by default the number of threads of torch."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda photographs: dict(
        zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: photographs}), strict=True)
    )


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


def check_parity(grader: ExportedGrader, runner: FileRunner, image_size: int, seed: int = 0) -> Parity:
    """Compare a file with the model on synthetic photographs.

    Raises:
        ParityError: If a difference is too large, or the grades do not follow from the file's logits.
    """
    largest = {"logits": 0.0, "probabilities": 0.0}
    for batch in BATCHES:
        photographs = random_discs(batch, image_size, seed + batch)
        expected, outputs = _run_module(grader, photographs), runner(photographs)
        for name in OUTPUTS:
            if name == "grade":
                # Read from the file's logits: a grade may differ where logits differ in the last digit.
                grades = grader.model.head.predict(torch.from_numpy(np.array(outputs["logits"])))
                same = np.array_equal(outputs[name], grades.numpy())
            elif name == "referable":
                scores = torch.from_numpy(np.array(outputs["p_referable"]))
                same = np.array_equal(outputs[name], grader.rule.refers(scores).numpy())
            else:
                same = np.allclose(outputs[name], expected[name], rtol=RELATIVE_TOLERANCE, atol=TOLERANCE)
            if outputs[name].shape != expected[name].shape or not same:
                raise ParityError(_difference(name, batch, outputs[name], expected[name]))
        for name in largest:
            largest[name] = max(largest[name], float(np.abs(outputs[name] - expected[name]).max()))
    return Parity(**largest, photographs=sum(BATCHES))


def _difference(name: str, batch: int, output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    if output.shape != expected.shape:
        gap = f"shape {list(output.shape)} instead of {list(expected.shape)}"
    elif name in ("grade", "referable"):
        gap = "the decisions do not follow from the other outputs"
    else:
        gap = f"largest difference {float(np.abs(output - expected).max()):.2g}, allowed {TOLERANCE:.0e}"
    return (
        f"the exported file differs from the model: {name} of {batch} photographs ({gap}); nothing was "
        "written. Try the other format, or another version of torch, and report it"
    )


def random_discs(count: int, image_size: int, seed: int) -> Pixels:
    """Draw discs of blotched orange on black, closer to fundus photographs than uniform noise.

    Returns:
        (count, image_size, image_size, 3) uint8.
    """
    cells = 8
    rng = np.random.default_rng(seed)
    places = (np.arange(image_size) + 0.5) / (image_size / 2) - 1
    disc = (places[:, None] ** 2 + places**2 <= 1)[None, :, :, None]
    colour = np.array([180, 95, 45]) * rng.uniform(0.6, 1.3, (count, 1, 1, 1))
    blotches = rng.normal(0, 25, (count, cells, cells, 3))
    nearest = np.arange(image_size) * cells // image_size
    noise = rng.normal(0, 6, (count, image_size, image_size, 3))
    values = colour + blotches[:, nearest][:, :, nearest] + noise
    return np.asarray(np.clip(values * disc, 0, 255), dtype=np.uint8)
