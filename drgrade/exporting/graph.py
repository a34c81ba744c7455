"""Computation of an exported file, and the check that a file computes the same as the model."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drgrade.data.normalisation import normalise
from drgrade.errors import ConfigError, DrgradeError
from drgrade.models.calibration import expected_grade, referable_probability
from drgrade.prediction.checkpoint import TrainedModel

INPUT = "photographs"

OUTPUTS: Mapping[str, str] = {
    "logits": "(B, K) float32: output of the head",
    "probabilities": "(B, 5) float32: calibrated probabilities of the grades 0 to 4; rows sum to 1",
    "grade": "(B,) int64: predicted grade, 0 to 4, by the rule of the head",
    "expected_grade": "(B,) float32: mean of the probabilities, 0 to 4",
    "p_referable": "(B,) float32: calibrated probability of grade 2 or worse",
}
"""Output name to description, in the order of the file."""

EXTRA_FILE = "drgrade.json"
"""Name of the description among the extra files of a .pt2 file."""

BATCHES = (1, 2, 7)
"""Batch sizes of the parity check."""

TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
"""Largest absolute and relative difference of an output; float32 has seven digits."""

Pixels = npt.NDArray[np.uint8]
FileRunner = Callable[[Pixels], dict[str, npt.NDArray[Any]]]
"""Runs a file: (B, S, S, 3) uint8 to the outputs by name."""


class ParityError(DrgradeError):
    """The outputs of an exported file differ from those of the model."""


@dataclass(frozen=True)
class Parity:
    """Difference between a file and the model.

    Attributes:
        logits: Largest difference of a logit.
        probabilities: Largest difference of a probability.
        photographs: Number of compared photographs.
    """

    logits: float
    probabilities: float
    photographs: int


class ExportedGrader(nn.Module):
    """Maps prepared photographs to all outputs."""

    def __init__(self, trained: TrainedModel) -> None:
        """Take model and calibration.

        Args:
            trained: Trained model in evaluation mode.

        Raises:
            ConfigError: If its head does not use the photographs.
        """
        super().__init__()
        if not getattr(trained.model.head, "needs_features", True):
            raise ConfigError(
                f"checkpoint={trained.folder}: the output of {type(trained.model.head).__name__} does not "
                "depend on the photograph; there is nothing to export"
            )
        self.model, self.calibration = trained.model, trained.calibration

    def forward(self, photographs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Grade photographs.

        Args:
            photographs: (B, S, S, 3) uint8 RGB, prepared.

        Returns:
            The outputs in the order of :data:`OUTPUTS`.
        """
        logits = self.model(normalise(photographs.permute(0, 3, 1, 2)))
        head = self.model.head
        probabilities = self.calibration.probabilities(head.probabilities(logits))
        grade = head.predict(logits)
        return (
            logits,
            probabilities,
            grade,
            expected_grade(probabilities),
            referable_probability(probabilities),
        )


def trace(grader: ExportedGrader, image_size: int) -> torch.export.ExportedProgram:
    """Trace the computation for any batch size.

    Args:
        grader: On the CPU.
        image_size: Side S of the prepared photographs in pixels.

    Raises:
        ConfigError: If torch cannot trace the model.
    """
    example = torch.zeros(
        2, image_size, image_size, 3, dtype=torch.uint8
    )  # torch specialises a dimension of 1
    shapes = {"photographs": {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad():
            return torch.export.export(grader, (example,), dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot trace {type(grader.model.encoder).__name__} with "
            f"{type(grader.model.head).__name__}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error message of torch."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def torch_bytes(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Serialise a traced grader as a .pt2 file.

    Args:
        program: From :func:`trace`.
        description: JSON that is stored in the file.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={EXTRA_FILE: description})
    return file.getvalue()


def torch_runner(data: bytes) -> FileRunner:
    """Load a .pt2 file on the CPU.

    Args:
        data: Content of the file.
    """
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda photographs: _run_module(module, photographs)


def _run_module(module: nn.Module, photographs: Pixels) -> dict[str, npt.NDArray[Any]]:
    with torch.inference_mode():
        found = module(torch.from_numpy(photographs))
    return {name: each.numpy() for name, each in zip(OUTPUTS, found, strict=True)}


def check_parity(grader: ExportedGrader, runner: FileRunner, image_size: int, seed: int = 0) -> Parity:
    """Compare a file with the model on synthetic photographs.

    Args:
        grader: The model.
        runner: The file.
        image_size: Side S of the prepared photographs in pixels.
        seed: Seed of the photographs.

    Raises:
        ParityError: If a difference is too large, or the grades do not follow from the file's logits.
    """
    logits, probabilities = 0.0, 0.0
    for batch in BATCHES:
        photographs = random_discs(batch, image_size, seed + batch)
        expected, found = _run_module(grader, photographs), runner(photographs)
        for name in OUTPUTS:
            if name == "grade":
                # Read from the file's logits: a grade may differ where logits differ in the last digit.
                grades = grader.model.head.predict(torch.from_numpy(np.array(found["logits"])))
                same = np.array_equal(found[name], grades.numpy())
            else:
                same = np.allclose(found[name], expected[name], rtol=RELATIVE_TOLERANCE, atol=TOLERANCE)
            if found[name].shape != expected[name].shape or not same:
                raise ParityError(_difference(name, batch, found[name], expected[name]))
        logits = max(logits, float(np.abs(found["logits"] - expected["logits"]).max()))
        gaps = np.abs(found["probabilities"] - expected["probabilities"])
        probabilities = max(probabilities, float(gaps.max()))
    return Parity(logits, probabilities, sum(BATCHES))


def _difference(name: str, batch: int, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    if found.shape != expected.shape:
        gap = f"shape {list(found.shape)} instead of {list(expected.shape)}"
    elif name == "grade":
        gap = "the grades do not follow from the logits"
    else:
        gap = f"largest difference {float(np.abs(found - expected).max()):.2g}, allowed {TOLERANCE:.0e}"
    return (
        f"the exported file differs from the model: {name} of {batch} photographs ({gap}); nothing was "
        "written. Try the other format, or another version of torch, and report it"
    )


def random_discs(count: int, image_size: int, seed: int) -> Pixels:
    """Draw discs of blotched orange on black, closer to fundus photographs than uniform noise.

    Args:
        count: Number B of photographs.
        image_size: Side S in pixels.
        seed: Seed of the drawing.

    Returns:
        (B, S, S, 3) uint8.
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
