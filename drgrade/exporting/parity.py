"""Whether a file says what the model says: asked of every file before it is kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drgrade.errors import DrgradeError
from drgrade.exporting.graph import OUTPUTS, ExportedGrader, Pixels, Runner, run_model

BATCHES = (1, 2, 7)
"""Numbers of photographs in a batch that are tried."""

TOLERANCE, RELATIVE = 1e-4, 1e-5
"""Largest difference of a logit, and of any other output but the grade: 1e-4, and 1e-5 of the value on top:
float32 has seven digits."""

_CELLS = 8


class ParityError(DrgradeError):
    """A file does not say what the model says."""


@dataclass(frozen=True)
class Parity:
    """How far a file is from the model.

    Attributes:
        logits: Largest difference of a logit.
        probabilities: Largest difference of a probability.
        photographs: Compared.
    """

    logits: float
    probabilities: float
    photographs: int


def check_parity(grader: ExportedGrader, runner: Runner, image_size: int, seed: int = 0) -> Parity:
    """Hold a file against the model on drawn photographs.

    Args:
        grader: The model.
        runner: The file.
        image_size: S.
        seed: Of the drawing.

    Returns:
        The largest differences.

    Raises:
        ParityError: If one is too large, or the grades are not those of the file's logits.
    """
    logits, probabilities = 0.0, 0.0
    for batch in BATCHES:
        photographs = drawn_photographs(batch, image_size, seed + batch)
        wanted, found = run_model(grader, photographs), runner(photographs)
        for name in OUTPUTS:
            if name == "grade":
                # Of logits that differ in the last digit the grade may differ: so it is read from the file's.
                read = grader.model.head.predict(torch.from_numpy(np.array(found["logits"])))
                same = np.array_equal(found[name], read.numpy())
            else:
                same = np.allclose(found[name], wanted[name], rtol=RELATIVE, atol=TOLERANCE)
            if found[name].shape != wanted[name].shape or not same:
                raise ParityError(_different(name, batch, found[name], wanted[name]))
        logits = max(logits, float(np.abs(found["logits"] - wanted["logits"]).max()))
        gaps = np.abs(found["probabilities"] - wanted["probabilities"])
        probabilities = max(probabilities, float(gaps.max()))
    return Parity(logits, probabilities, sum(BATCHES))


def drawn_photographs(count: int, image_size: int, seed: int) -> Pixels:
    """Discs of blotched orange on black: what a model may be asked, as noise from edge to edge is not.

    Args:
        count: B.
        image_size: S.
        seed: Of the drawing.

    Returns:
        (B, S, S, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    places = (np.arange(image_size) + 0.5) / (image_size / 2) - 1
    disc = (places[:, None] ** 2 + places**2 <= 1)[None, :, :, None]
    colour = np.array([180, 95, 45]) * rng.uniform(0.6, 1.3, (count, 1, 1, 1))
    blotches = rng.normal(0, 25, (count, _CELLS, _CELLS, 3))
    nearest = np.arange(image_size) * _CELLS // image_size
    values = (
        colour + blotches[:, nearest][:, :, nearest] + rng.normal(0, 6, (count, image_size, image_size, 3))
    )
    return np.asarray(np.clip(values * disc, 0, 255), dtype=np.uint8)


def _different(name: str, batch: int, found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    if found.shape != wanted.shape:
        gap = f"shape {list(found.shape)} for {list(wanted.shape)}"
    elif name == "grade":
        gap = "the grades are not those that the head reads from the file's logits"
    else:
        gap = f"largest difference {float(np.abs(found - wanted).max()):.2g}, allowed {TOLERANCE:.0e}"
    return (
        f"the file does not say what the model says: {name} of {batch} photographs ({gap}); nothing was "
        "kept. Try the other format, or another version of torch, and report it"
    )
