"""What an exported file computes: from prepared photographs to grades, with nothing left to do outside."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drgrade.data.normalisation import normalise
from drgrade.errors import ConfigError
from drgrade.models.calibration import expected_grade, referable_probability
from drgrade.prediction.checkpoint import Trained

INPUT = "photographs"

OUTPUTS: Mapping[str, str] = {
    "logits": "(B, K) float32: what the head says, before anything is made of it",
    "probabilities": "(B, 5) float32: of the grades 0 to 4, calibrated; rows with sum 1",
    "grade": "(B,) int64: 0 to 4, as the head reads it",
    "expected_grade": "(B,) float32: the mean of the probabilities, 0 to 4",
    "p_referable": "(B,) float32: probability of grade 2 or worse, calibrated",
}
"""Name: what it is, in the order in which they come."""

Pixels = npt.NDArray[np.uint8]
Runner = Callable[[Pixels], dict[str, npt.NDArray[Any]]]
"""A file at work: (B, S, S, 3) uint8 to the outputs by name."""


class ExportedGrader(nn.Module):
    """Prepared photographs to everything that is said of them."""

    def __init__(self, trained: Trained) -> None:
        """Take over model and calibration.

        Args:
            trained: Loaded; in evaluation mode.

        Raises:
            ConfigError: If its head does not look at the photographs.
        """
        super().__init__()
        if not getattr(trained.model.head, "needs_features", True):
            raise ConfigError(
                f"checkpoint={trained.folder}: {type(trained.model.head).__name__} says the same of every "
                "photograph: there is nothing to export"
            )
        self.model, self.calibration = trained.model, trained.calibration

    def forward(self, photographs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Grade.

        Args:
            photographs: (B, S, S, 3) uint8 RGB, prepared.

        Returns:
            In the order of :data:`OUTPUTS`.
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


def run_model(grader: ExportedGrader, photographs: Pixels) -> dict[str, npt.NDArray[Any]]:
    """What the model itself says.

    Args:
        grader: On the CPU.
        photographs: (B, S, S, 3) uint8.

    Returns:
        The outputs by name.
    """
    with torch.inference_mode():
        found = grader(torch.from_numpy(photographs))
    return {name: each.numpy() for name, each in zip(OUTPUTS, found, strict=True)}


def traced(grader: ExportedGrader, image_size: int) -> torch.export.ExportedProgram:
    """Trace the computation for any number of photographs.

    Args:
        grader: On the CPU.
        image_size: S.

    Returns:
        The program.

    Raises:
        ConfigError: If torch cannot trace the model.
    """
    # Two photographs: torch takes a dimension of 1 for a constant.
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
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
    """What an error of torch says, without its page of advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


DESCRIPTION = "drgrade.json"
"""Name of the description among the extra files in the file."""


def torch_bytes(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Write a traced grader.

    Args:
        program: Of :func:`drgrade.exporting.graph.traced`.
        description: JSON; goes into the file.

    Returns:
        The file.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={DESCRIPTION: description})
    return file.getvalue()


def torch_runner(data: bytes) -> Runner:
    """Run a file on the CPU.

    Args:
        data: The file.

    Returns:
        Photographs to outputs.
    """
    module = torch.export.load(io.BytesIO(data)).module()

    def run(photographs: Pixels) -> dict[str, Any]:
        with torch.inference_mode():
            found = module(torch.from_numpy(photographs))
        return {name: each.numpy() for name, each in zip(OUTPUTS, found, strict=True)}

    return run
