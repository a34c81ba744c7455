"""Construction of timm models for any image size, with actionable errors.

timm is imported inside the functions: it imports torchvision, and commands that build no model start faster
without it.
"""

import difflib
import importlib
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.files import require_regular

_Module = TypeVar("_Module", bound=nn.Module)
_logger = logging.getLogger("drgrade.models")


class PublishedWeightsError(EncoderError):
    """The published weights of a model are not available; ``reason`` names the model and the cause."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = f"the weights of {name} {reason}"
        super().__init__(f"{self.reason}; {download_advice({'encoder.weights': name})}")


def download_advice(needed: Mapping[str, str]) -> str:
    """Describe how to proceed without network access.

    Args:
        needed: Setting that takes a local weights file: timm name of the model.
    """
    files = " ".join(f"{setting}=FILE ({_published_file(name)})" for setting, name in needed.items())
    return (
        f"download the weights on another machine and give, beside init=imagenet, {files}; "
        "or start from init=random"
    )


def _published_file(name: str) -> str:
    config = _pretrained_config(name)
    if config is None or not config.has_weights:
        return f"weights of {name}"
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        return f"{file} of {config.hf_hub_id}, https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    return str(config.url)


@dataclass(frozen=True)
class InputSize:
    """Image sizes that a timm model accepts, and the padding that brings images to such a size.

    Attributes:
        side: Side in pixels that the model was built for, a multiple of ``stride``; None for a model that
            accepts every size.
        stride: Pixels between neighbouring cells of the last map; 1 if ``side`` is None.
        dynamic: Whether the model also accepts other multiples of ``stride``.
    """

    side: int | None = None
    stride: int = 1
    dynamic: bool = True

    def padded(self, side: int) -> int:
        """Return the side in pixels of square images after :meth:`pad`."""
        if self.side is None:
            return side
        return math.ceil(side / self.stride) * self.stride if self.dynamic else max(side, self.side)

    def pad(self, images: Tensor) -> Tensor:
        """Pad images (B, 3, H, W) to a square with zeros, the mean colour, at the right and at the bottom.

        Images that are too large are returned unchanged, so that the model raises an error.
        """
        if self.side is None:
            return images
        height, width = images.shape[-2:]
        side = self.padded(max(height, width))
        return F.pad(images, (0, side - width, 0, side - height))


def build(
    name: str, image_size: int, *, pretrained: bool = False, weights: str | None = None, **options: Any
) -> tuple[nn.Module, InputSize]:
    """Build a timm model without a classifier.

    Args:
        name: Any timm model name.
        image_size: Side of the square images in pixels.
        pretrained: Load the published weights from the Hugging Face hub.
        weights: Local file (.safetensors, .pth, .bin) with the model's weights, instead of the hub.
        **options: Passed to ``timm.create_model``, for example ``drop_path_rate`` or ``features_only``.

    Returns:
        The model and the image sizes that it accepts.

    Raises:
        EncoderError: If timm does not know the name or an option, or the weights are missing or do not fit.
    """
    _check_name(name)
    if pretrained and weights is not None:
        raise EncoderError(f"{name}: give either pretrained=true or weights={weights}, not both")
    size, options = _input_size(name, image_size, options)
    if size.side is not None:
        options = {"img_size": size.side, **options}
    if "features_only" not in options:
        options = {"num_classes": 0, **options}
    if weights is not None:
        return _create_from_file(name, Path(weights), options), size
    return (_create_pretrained if pretrained else _create)(name, options), size


def num_features(model: Any) -> int:
    """Return the length of the feature vector of a timm model without classifier."""
    # Some CNNs widen the pooled map before the classifier; head_hidden_size is the width after that.
    return int(getattr(model, "head_hidden_size", model.num_features))


def forward_map(model: Any, images: Tensor) -> Tensor:
    """Compute the features of a timm model before pooling, of padded images (B, 3, H, W).

    Returns:
        (B, C, h, w); for a Vision Transformer the patch tokens, without class token and registers.

    Raises:
        EncoderError: If the features are not a map.
    """
    features: Tensor = model.forward_features(images)
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if is_channels_last(model) else features
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    height, width = (side // _stride(model) for side in images.shape[-2:])
    if features.ndim != 3 or features.shape[1] != prefix + height * width:
        raise EncoderError(f"the features of {type(model).__name__} are not a map: {list(features.shape)}")
    tokens = features[:, prefix:].transpose(1, 2)  # (B, C, h w)
    return tokens.reshape(*tokens.shape[:2], height, width)


def is_channels_last(model: Any) -> bool:
    """Return whether the maps of a timm model are (B, h, w, C), as those of Swin."""
    return getattr(model, "output_fmt", None) == "NHWC"


def crop_padding(features: Tensor, images: Tensor, padded: Tensor) -> Tensor:
    """Drop the cells of a map (B, C, h, w) that cover padding alone.

    Args:
        features: Map computed from ``padded``.
        images: (B, 3, H, W), the images before :meth:`InputSize.pad`.
        padded: (B, 3, H', W'), the images after it.
    """
    height, width = (math.ceil(features.shape[i] * images.shape[i] / padded.shape[i]) for i in (-2, -1))
    return features[..., :height, :width]


def convert_sync_batchnorm(model: _Module) -> _Module:
    """Replace every batch normalisation of a model by one with statistics over all processes.

    torch's own conversion, which Lightning uses, drops the activation that timm builds into a normalisation
    (DenseNet and others). The model is modified, keeps its tensor names, and must not have been converted
    before.
    """
    _timm()
    converted: _Module = importlib.import_module("timm.layers").convert_sync_batchnorm(model)
    return converted


def _timm() -> Any:
    """Import timm without wandb, which timm imports for its own training script and which takes seconds."""
    if "timm" in sys.modules or "wandb" in sys.modules:
        return importlib.import_module("timm")
    sys.modules["wandb"] = None  # type: ignore[assignment]  # makes "import wandb" raise an ImportError
    try:
        return importlib.import_module("timm")
    finally:
        del sys.modules["wandb"]


def _pretrained_config(name: str) -> Any:
    """Return timm's config of the published weights; None for names that timm resolves ("hf-hub:...")."""
    return None if ":" in name else _timm().get_pretrained_cfg(name)


def is_timm_name(name: str) -> bool:
    """Return True for a model of timm itself, unlike ``hf-hub:...`` and ``local-dir:...``."""
    return ":" not in name and bool(_timm().is_model(name))


def _check_name(name: str) -> None:
    timm = _timm()
    if ":" in name or timm.is_model(name):
        try:
            _pretrained_config(name)
        except RuntimeError as error:  # an unknown tag after the dot
            raise EncoderError(f"timm {timm.__version__}: {error}") from error
        return
    raise EncoderError(f"timm {timm.__version__} has no model named {name!r}; {similar_names(name)}")


def similar_names(name: str) -> str:
    """Return a hint to models of timm with a similar name."""
    close = difflib.get_close_matches(name[:100], _timm().list_models(), n=5, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all names"


def _input_size(name: str, image_size: int, options: dict[str, Any]) -> tuple[InputSize, dict[str, Any]]:
    """Return the image size to build a model for, and options that make other sizes possible."""
    timm = _timm()
    config = _pretrained_config(name)
    if config is None or not config.fixed_input_size or "img_size" in options:
        return InputSize(), options
    structure = {k: v for k, v in options.items() if k not in ("features_only", "out_indices")}
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        try:
            probe = timm.create_model(name, num_classes=0, **{"img_size": image_size, **structure})
        except TypeError as error:
            if "img_size" in str(error):
                return InputSize(), options  # accepts every size after all, as the ResNet-ViT hybrids do
            raise EncoderError(f"{name}: {error}") from error
        except (AssertionError, ValueError, RuntimeError):
            # Some families refuse sizes that their patches do not divide; their usual size always builds.
            probe = timm.create_model(name, num_classes=0, **structure)
    if hasattr(probe, "dynamic_img_size") and "features_only" not in options:
        options = {"dynamic_img_size": True, **options}
    stride = _stride(probe)
    dynamic = "features_only" not in options and bool(options.get("dynamic_img_size"))
    return InputSize(math.ceil(image_size / stride) * stride, stride, dynamic), options


def _stride(model: nn.Module) -> int:
    """Return the pixels between neighbouring cells of the last map."""
    info = getattr(model, "feature_info", None)
    if info:
        return int(info[-1]["reduction"])
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return int(patch[0] if isinstance(patch, tuple | list) else patch)


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = _timm().create_model(name, **options)
    except (TypeError, AssertionError, IndexError, RuntimeError) as error:
        # IndexError: fewer levels than out_indices asks for; RuntimeError: no features_only.
        raise EncoderError(
            f"timm cannot build {name} with {options}: {type(error).__name__}: {error}"
        ) from error
    return model


def _create_pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    config = _pretrained_config(name)
    if config is not None and not config.has_weights:
        raise PublishedWeightsError(name, "are not available: timm knows no published weights for it")
    try:
        return _create(name, {"pretrained": True, **options})
    except OSError as error:  # the base class of huggingface_hub's and urllib's network errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PublishedWeightsError(name, f"could not be downloaded ({reason})") from error


def _create_from_file(name: str, path: Path, options: dict[str, Any]) -> nn.Module:
    """Build a model with the weights of a local file, which must hold every tensor of the model."""
    if not require_regular(path).is_file():
        raise EncoderError(f"there is no weights file {path}")
    missing: list[str] = []
    load = nn.Module.load_state_dict

    def load_and_record(
        model: nn.Module, state: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        result = load(model, state, strict=False, assign=assign)
        missing.extend(result.missing_keys)
        return result

    # timm converts the file for the architecture, but only logs missing tensors.
    overlay = {"file": str(path), "source": ""}
    nn.Module.load_state_dict = load_and_record  # type: ignore[method-assign, assignment]
    try:
        model: nn.Module = _timm().create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **options
        )
    except Exception as error:  # file formats and conversions raise errors of many types
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{path} cannot be loaded into {name}: {type(error).__name__}: {reason}"
        ) from error
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
    # A feature extractor drops the classifier and renames layers. Files from before PyTorch 0.4.1 lack the
    # counts of batches, which are not used here.
    own = {_plain_name(key) for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    unfilled = [key for key in missing if _plain_name(key) in own]
    if unfilled:
        named = ", ".join(unfilled[:3]) + (", ..." if len(unfilled) > 3 else "")
        raise EncoderError(
            f"{path} does not fit {name}: it lacks {len(unfilled)} of {len(own)} tensors ({named})"
        )
    _logger.info("%s: all %d tensors read from %s", name, len(own), path)
    return model


def _plain_name(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")


MAX_LAYERS = 13
"""Maximum number of layers of a backbone: a stem and twelve blocks, as in a ViT-B. Neighbouring layers of
deeper backbones are joined, as in ConvNeXt (Liu et al., CVPR 2022); otherwise the lowest of the 59 layers of
a DenseNet-121 would learn with 0.75^59 = 4e-8 of the rate."""


def backbone_depths(model: Any) -> dict[str, int]:
    """Return the depth of each parameter of a timm model below its (removed) classifier.

    The depth is 0 for parameters that timm groups with the classifier, such as a last normalisation, 1 for
    the uppermost layer, and so on down to the stem.

    Raises:
        EncoderError: If timm does not define the layers.
    """
    if not hasattr(model, "group_matcher"):
        raise EncoderError(
            f"timm does not define the layers of {type(model).__name__}; set protocol.layer_decay=null"
        )
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = [names] if isinstance(names, str) else list(names)
    manipulate = importlib.import_module("timm.models._manipulate")
    # The classifier has been removed, but timm's numbering ends with it.
    named = chain(model.named_parameters(), ((f"{head}.weight", None) for head in heads))
    layers: dict[str, int] = manipulate.group_with_matcher(
        named, model.group_matcher(coarse=False), reverse=True
    )
    below = {name: max(layers.values()) - layer for name, layer in layers.items()}
    joined = math.ceil(max(below.values()) / MAX_LAYERS) or 1
    return {name: math.ceil(below[name] / joined) for name, _ in model.named_parameters()}


def extractor_depths(features: nn.Module, name: str, options: dict[str, Any]) -> dict[str, int]:
    """Return :func:`backbone_depths` of a model that timm built with ``features_only``, which renames layers.

    ``name`` and ``options`` are those that the feature extractor was built with.

    Raises:
        EncoderError: If timm does not define the layers.
    """
    without = ("features_only", "out_indices", "weights", "pretrained")
    with torch.device("meta"):
        plain = _timm().create_model(
            name, num_classes=0, **{key: value for key, value in options.items() if key not in without}
        )
    depths = {key.replace(".", "_"): depth for key, depth in backbone_depths(plain).items()}
    own = {key: key.removeprefix("model.").replace(".", "_") for key, _ in features.named_parameters()}
    missing = [key for key, plain_key in own.items() if plain_key not in depths]
    if missing:
        raise EncoderError(
            f"timm does not define the layers of {', '.join(missing[:3])} of {name}; "
            "set protocol.layer_decay=null"
        )
    return {key: depths[plain_key] for key, plain_key in own.items()}
