"""Files of a pre-trained encoder: ``encoder.safetensors`` and its metadata, ``encoder.json``."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from drgrade.errors import EncoderError
from drgrade.files import file_sha256, write_text
from drgrade.models.encoder import Encoder

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"


def save_encoder(encoder: Encoder, folder: Path, card: dict[str, Any]) -> None:
    """Write an encoder; the metadata is written last, so a folder that has it is complete.

    Args:
        encoder: The encoder.
        folder: An existing folder.
        card: JSON-serialisable metadata; the hash and the number of tensors are added.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(state, partial)
    partial.replace(folder / WEIGHTS)
    card = {**card, "sha256": file_sha256(folder / WEIGHTS), "tensors": len(state)}
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")


def load_encoder(encoder: Encoder, path: Path) -> dict[str, Any]:
    """Load pre-trained weights into an encoder; every tensor must be matched.

    Args:
        encoder: Receives the weights; unchanged if an error is raised.
        path: A run's folder or an ``encoder.safetensors``.

    Returns:
        The metadata, if there are any, with ``matched``: the number of scalars in the loaded parameters and
        buffers.

    Raises:
        EncoderError: If the file is missing or unreadable, or a tensor is missing, left over or of another
            shape; the message names the tensors.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise EncoderError(
            f"no encoder at {weights}; set init=PATH to the folder of a pre-training run or its {WEIGHTS}"
        )
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"{weights} is not a readable safetensors file ({error}); pre-train again, or use init=ssl"
        ) from error
    card: dict[str, Any] = {}
    if weights.with_name(CARD).is_file():
        card = json.loads(weights.with_name(CARD).read_text())
        if card.get("sha256") not in (None, file_sha256(weights)):
            raise EncoderError(f"{weights} and {CARD} do not match (different hash); pre-train again")
    _check_fit({name: tuple(tensor.shape) for name, tensor in state.items()}, encoder, weights)
    encoder.load_state_dict(state, strict=True)
    return {**card, "matched": sum(tensor.numel() for tensor in state.values())}


def _check_fit(found: dict[str, tuple[int, ...]], encoder: Encoder, weights: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "not in this encoder": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {fault}: {_first(names)}" for fault, names in faults.items() if names
        )
        raise EncoderError(
            f"{weights} does not fit this encoder: {listed}. Use the encoder=, data.image_size= and scale= "
            f"of its pre-training (see {CARD} beside it), or pre-train one with init=ssl"
        )


def _first(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
