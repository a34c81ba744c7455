"""Name the weights that the encoder of a run started from, in records, reports, cards and trackers."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from drgrade.config import is_set

RANDOM, IMAGENET, SSL = "random", "imagenet", "ssl"
UNNAMED_FILE = "file (name not recorded)"

WEIGHTS_HASH = "weights_hash"
"""End of the names of entries of ``metrics.json`` with the hash of a weights file."""

_LONGEST = 200  # characters of a name or a statement, which may come from anybody
_WITHOUT_FILE = (RANDOM, IMAGENET)
_BACKBONES = ("name", "cnn", "vit")
_OTHER_TRAINING = {"ft", "jft", "in12k", "in21k", "in22k", "ssl", "swsl"}
"""Parts of timm's tags of weights that saw more than ImageNet's 1,000 classes."""
_OTHER_MODELS = ("aimv2", "beit", "clip", "dino", "eva", "mae", "sam", "siglip")
"""Begin of parts of the names of models whose weights in timm are from another training by default."""


def weights_files(encoder: Mapping[Any, Any]) -> dict[str, str]:
    """Return the weights files in an encoder's config, as ``{"part.weights": path}``.

    Example:
        >>> weights_files({"name": "resnet18", "weights": None, "cnn_options": {"weights": "a/b.pth"}})
        {'cnn_options.weights': 'a/b.pth'}
    """
    files: dict[str, str] = {}
    for name, value in encoder.items():
        if isinstance(value, Mapping):
            files |= {f"{name}.{setting}": path for setting, path in weights_files(value).items()}
        elif name == "weights" and value:
            files["weights"] = str(value)
    return files


def first_weights(config: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> str:
    """Return the first weights of a run's encoder.

    Weights from a file are named after the file, whatever ``init`` is.

    Args:
        config: Config of the run, resolved.
        record: ``metrics.json``, which shows that there was a file if the config has no paths any more.

    Returns:
        ``random``, ``imagenet``, ``ssl``, the path of an encoder, or the names of weights files.

    Example:
        >>> encoder = {"cnn_options": {"weights": "a/b.pth"}, "vit_options": {}}
        >>> first_weights({"init": "random", "encoder": encoder})
        'b.pth (cnn), rest random'
    """
    init, encoder = str(config["init"]), config["encoder"]
    if init not in _WITHOUT_FILE:
        return init
    files = weights_files(encoder)
    rest = IMAGENET if is_set(encoder, "pretrained") else init
    if not files and any(name.endswith(WEIGHTS_HASH) for name in record or {}):
        return str((record or {}).get("weights_file") or UNNAMED_FILE)
    if not files:
        return rest
    parts = [name.removesuffix("_options") for name in encoder if str(name).endswith("_options")]
    given = {_part(setting): PurePath(path).name for setting, path in files.items()}
    names = ", ".join(f"{name} ({part})" if part in parts else name for part, name in given.items())
    if parts and not {*parts} <= {*given}:
        others = RANDOM if rest == RANDOM else f"{published_weights(encoder)} weights"
        return f"{names}, rest {others}"
    return f"{names} (file)" if names in (*_WITHOUT_FILE, SSL) else names


def published_weights(encoder: Mapping[Any, Any]) -> str:
    """Name the weights that timm publishes for an encoder: ``ImageNet``, or the models with their tags.

    Weights of a tag like ``dino``, ``mae``, ``openai`` or ``augreg_in21k`` are from another training than
    the classification of ImageNet's 1,000 classes.

    Args:
        encoder: Config of the encoder.

    Example:
        >>> published_weights({"name": "resnet18.a1_in1k"}), published_weights({"name": "vit_small.dino"})
        ('ImageNet', 'vit_small.dino')
    """
    names = [str(encoder[part]) for part in _BACKBONES if encoder.get(part)]
    others = [PurePath(name).name for name in names if not _is_imagenet(name)]
    return ", ".join(others)[:_LONGEST] or "ImageNet"


def _is_imagenet(name: str) -> bool:
    model, _, tag = name.partition(".")
    if ":" in name or any(part.startswith(_OTHER_MODELS) for part in model.split("_")):
        return False
    parts = tag.split("_")
    return not tag or (parts[-1] == "in1k" and not _OTHER_TRAINING & {*parts})


def describe_weights_files(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Describe the files that a run's encoder started from: name, hash, and what they say of themselves.

    Args:
        config: Config of the run, resolved; it may be without paths.
        record: ``metrics.json``.

    Returns:
        One phrase for each file; empty if there was none.
    """
    if str(config["init"]) not in (*_WITHOUT_FILE, SSL):
        return [_describe("encoder", PurePath(str(config["init"])).name, record)]
    files = weights_files(config["encoder"])
    recorded = [name.removesuffix("_hash") for name in record if name.endswith(WEIGHTS_HASH)]
    return [
        _describe(setting, PurePath(files.get(setting, "")).name, record)
        for setting in sorted({*files, *recorded})
    ]


def _describe(setting: str, name: str, record: Mapping[str, Any]) -> str:
    name = str(record.get(f"{setting}_file") or name or UNNAMED_FILE)[:_LONGEST]
    digest = str(record.get(f"{setting}_hash") or "not recorded")[:12]
    says = record.get(f"{setting}_says")
    if says is None:
        stated = "what it says of its origin is not recorded"
    else:
        stated = f"says: {str(says)[:_LONGEST]}" if says else "says nothing of its origin"
    part = _part(setting)
    return f"{name}{f' ({part})' if part not in ('', 'encoder') else ''}, SHA-256 {digest}, {stated}"


def _part(setting: str) -> str:
    """Return the part of the encoder that a setting belongs to: ``cnn`` of ``cnn_options.weights``."""
    return setting.removesuffix("weights").removesuffix(".").removesuffix("options").removesuffix("_")
