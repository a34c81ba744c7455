"""A pre-trained encoder as it travels: ``encoder.safetensors`` with a small ``encoder.json`` beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from drgrade.errors import EncoderError
from drgrade.models.encoder import Encoder

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"

_NAMED = 5  # tensors spelt out in an error


def save_encoder(encoder: Encoder, folder: Path, card: dict[str, Any]) -> None:
    """Write an encoder; the card comes last, so that a folder with a card is complete.

    Args:
        encoder: What to write.
        folder: An existing folder.
        card: How it came about, JSON-serialisable.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(state, partial)
    partial.replace(folder / WEIGHTS)
    card = {**card, "sha256": file_hash(folder / WEIGHTS), "tensors": len(state)}
    partial = folder / f"{CARD}.partial"
    partial.write_text(json.dumps(card, indent=2) + "\n")
    partial.replace(folder / CARD)


def load_encoder(encoder: Encoder, path: Path) -> dict[str, Any]:
    """Fill an encoder with pre-trained weights: all of them, or none.

    Args:
        encoder: Receives the weights.
        path: A run's folder or an ``encoder.safetensors``.

    Returns:
        The card, with ``matched``: the number of parameters (scalars, buffers included) that were loaded.
        Empty of anything else if the file has no card.

    Raises:
        EncoderError: If there is no such file, it cannot be read, or any tensor is missing, left over or of
            another shape; the message names
            them, and the encoder is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise EncoderError(
            f"no encoder at {weights}; give init=PATH the folder of a pre-training run, or its {WEIGHTS}"
        )
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"{weights} is not a readable safetensors file ({error}); pre-train again, or use init=ssl"
        ) from error
    if weights.with_name(CARD).is_file():
        card: dict[str, Any] = json.loads(weights.with_name(CARD).read_text())
        if card.get("sha256") not in (None, file_hash(weights)):
            raise EncoderError(
                f"{weights} is not the file that its {CARD} describes (another hash); pre-train again"
            )
    else:
        card = {}
    _check_fit({name: tuple(tensor.shape) for name, tensor in state.items()}, encoder, weights)
    encoder.load_state_dict(state, strict=True)
    return {**card, "matched": sum(tensor.numel() for tensor in state.values())}


def _check_fit(found: dict[str, tuple[int, ...]], encoder: Encoder, weights: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    faults = {
        "missing": sorted(wanted.keys() - found.keys()),
        "not in this encoder": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(wanted[name])}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ],
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {fault}: {_shortened(names)}" for fault, names in faults.items() if names
        )
        raise EncoderError(
            f"{weights} does not fit this encoder: {listed}. Use the encoder=, data.image_size= and scale= "
            f"of its pre-training ({CARD} beside it says which), or pre-train one with init=ssl"
        )


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
