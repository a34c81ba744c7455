"""Files of ``torch.export`` (.pt2), which torch loads without the code of the model."""

import io
from typing import Any

import torch

from drgrade.inference.exporting.graph import OUTPUTS, Pixels, Runner

DESCRIPTION = "drgrade.json"
"""Name of the description among the extra files in the file."""


def torch_bytes(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Write a traced grader.

    Args:
        program: Of :func:`drgrade.inference.exporting.graph.traced`.
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
