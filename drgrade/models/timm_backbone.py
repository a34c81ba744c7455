"""Building timm models for any image size, with errors that say what to do.

timm is imported inside the functions: it pulls in torchvision, and a command that builds no model should
not wait for it.
"""

import difflib
import importlib
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.errors import EncoderError

_Module = TypeVar("_Module", bound=nn.Module)
_logger = logging.getLogger("drgrade.models")


class PublishedWeightsError(EncoderError):
    """The published weights of a model cannot be had."""

    def __init__(self, name: str, reason: str, advice: str | None = None) -> None:
        """Says what is missing and what to do.

        Args:
            name: timm name of the model.
            reason: why its weights cannot be had, the end of a sentence that begins with them.
            advice: what to do; None for that of an encoder that is one timm model.
        """
        self.reason = f"the weights of {name} {reason}"
        super().__init__(f"{self.reason}; {advice or downloading({'encoder.weights': name})}")


def downloading(needed: Mapping[str, str]) -> str:
    """What to do where there is no network.

    Args:
        needed: setting that names a local weights file: timm name of the model that it is for.

    Returns:
        What to download, and the overrides to give.
    """
    files = " ".join(f"{setting}=FILE ({published_file(name)})" for setting, name in needed.items())
    return f"download it elsewhere and give, beside init=imagenet, {files}; or start from init=random"


def published_file(name: str) -> str:
    """Where timm's authors have published the weights of a model.

    Args:
        name: timm name.

    Returns:
        An address, or a sentence that there is none.
    """
    config = None if ":" in name else _timm().get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return f"weights of {name}, from wherever they are"
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        return f"{file} of {config.hf_hub_id}, https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    return str(config.url)


def build(
    name: str, image_size: int, *, pretrained: bool = False, weights: str | None = None, **options: Any
) -> tuple[nn.Module, int | None]:
    """Builds a timm model without a classifier.

    Args:
        name: any model name that timm knows.
        image_size: side of the square images in pixels.
        pretrained: load the weights that timm's authors published; they come from the Hugging Face hub.
        weights: a local file (.safetensors, .pth, .bin) with the model's weights, instead of the hub.
        **options: passed on to `timm.create_model`, for example `drop_path_rate` or `features_only`.

    Returns:
        The model, and the side in pixels that images must be padded to before they enter it: `image_size`
        rounded up to a multiple of the patch size. None where the model takes images of every size.

    Raises:
        EncoderError: timm does not know the name or an option, or the weights cannot be had or do not fit.
    """
    _check_name(name)
    if pretrained and weights is not None:
        raise EncoderError(f"{name}: give either pretrained=true or weights={weights}, not both")
    side, options = _input_side(name, image_size, options)
    if side is not None:
        options = {"img_size": side, **options}
    if "features_only" not in options:
        options = {"num_classes": 0, **options}
    model = _create_pretrained(name, options) if pretrained else _create(name, options)
    if weights is not None:
        _load_file(model, name, Path(weights), options)
    return model, side


def output_width(model: Any) -> int:
    """The length of the vector that a timm model without classifier gives."""
    # Some CNNs widen the pooled map before the classifier; head_hidden_size is the width after that.
    return int(getattr(model, "head_hidden_size", model.num_features))


def pad_to(images: Tensor, side: int | None) -> Tensor:
    """Pads at the right and at the bottom with zeros, the mean of normalised images.

    Args:
        images: (B, 3, H, W).
        side: height and width wanted in pixels; None leaves the images alone.

    Returns:
        (B, 3, side, side). Images that are larger are left alone, so that the model can complain.
    """
    if side is None:
        return images
    height, width = images.shape[-2:]
    return F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))


def any_size(model: Any, side: int | None) -> bool:
    """Whether a model takes images of other sizes than the one it was built for.

    Args:
        model: of timm.
        side: as `build` gave it.
    """
    return side is None or bool(getattr(model, "dynamic_img_size", False))


def input_side(model: nn.Module, side: int | None, images: Tensor) -> int | None:
    """The side that images have to be padded to.

    Args:
        model: of timm.
        side: as `build` gave it.
        images: (B, 3, H, W).

    Returns:
        `side`, or of a model that takes other sizes too the next multiple of its patches; None where nothing
        has to be padded.
    """
    if side is None or not any_size(model, side):
        return side
    stride = _stride(model)
    return math.ceil(max(images.shape[-2:]) / stride) * stride


def padded_side(model: nn.Module, side: int | None, of_images: int) -> int:
    """The side of square images after `pad_to`.

    Args:
        model: of timm.
        side: as `build` gave it.
        of_images: side of the images before, in pixels.
    """
    wanted = input_side(model, side, torch.empty(1, 1, of_images, of_images, device="meta"))
    return max(of_images, wanted or 0)


def map_width(model: Any) -> int | None:
    """Channels of the map that `as_map` gives; None if the model has no features before its pooling."""
    return int(model.num_features) if hasattr(model, "forward_features") else None


def as_map(model: Any, images: Tensor) -> Tensor:
    """A model's features before they are pooled.

    Args:
        model: of timm, without a classifier.
        images: (B, 3, H, W), padded as the model needs it.

    Returns:
        (B, C, h, w); of a Vision Transformer the patch tokens, without class token and registers.

    Raises:
        EncoderError: the features are no map.
    """
    features: Tensor = model.forward_features(images)
    if features.ndim == 4:  # Swin and its like give (B, h, w, C)
        last = getattr(model, "output_fmt", None) == "NHWC"
        return features.permute(0, 3, 1, 2) if last else features
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    height, width = (side // _stride(model) for side in images.shape[-2:])
    if features.ndim != 3 or features.shape[1] != prefix + height * width:
        raise EncoderError(f"the features of {type(model).__name__} are no map: {list(features.shape)}")
    tokens = features[:, prefix:].transpose(1, 2)  # (B, C, h w)
    return tokens.reshape(*tokens.shape[:2], height, width)


def drop_padding(features: Tensor, images: Tensor, padded: Tensor) -> Tensor:
    """Cuts off the cells of a map that saw nothing but padding.

    Args:
        features: (B, C, h, w), computed from `padded`.
        images: (B, 3, H, W), the images before `pad_to`.
        padded: (B, 3, H', W'), the images after it.

    Returns:
        (B, C, ceil(h H / H'), ceil(w W / W')), a map of the picture itself.
    """
    height, width = (math.ceil(features.shape[i] * images.shape[i] / padded.shape[i]) for i in (-2, -1))
    return features[..., :height, :width]


def synchronised(model: _Module) -> _Module:
    """Replace every batch normalisation by one whose statistics are taken over all processes.

    torch's own conversion, which Lightning uses, drops the activation that timm builds into a normalisation
    (DenseNet and others).

    Args:
        model: Any model; it is changed, and must not have been converted before.

    Returns:
        The model, its tensors under the same names.
    """
    _timm()
    converted: _Module = importlib.import_module("timm.layers").convert_sync_batchnorm(model)
    return converted


def _timm() -> Any:
    """Import timm without wandb.

    timm imports wandb if it is installed, for a logger of its own training script: seconds of start-up for a
    run that logs to CSV.
    """
    if "timm" in sys.modules or "wandb" in sys.modules:
        return importlib.import_module("timm")
    sys.modules["wandb"] = None  # type: ignore[assignment]  # "not installed", as far as an import can tell
    try:
        return importlib.import_module("timm")
    finally:
        del sys.modules["wandb"]


def _check_name(name: str) -> None:
    timm = _timm()

    if ":" in name:  # "hf-hub:..." and "local-dir:..." are for timm to resolve
        return
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:  # the tag after the dot
            raise EncoderError(f"timm {timm.__version__}: {error}") from error
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else "; timm.list_models() lists all names"
    raise EncoderError(f"timm {timm.__version__} has no model named {name!r}{hint}")


def _input_side(name: str, image_size: int, options: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """The image side to build a fixed-size model for, None for a model that takes every size; the options.

    Where the model can be told to take other sizes as well, the options tell it.
    """
    timm = _timm()

    config = None if ":" in name else timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size or "img_size" in options:
        return None, options
    # On the meta device nothing is allocated and no random number is drawn.
    structure = {k: v for k, v in options.items() if k not in ("features_only", "out_indices")}
    with torch.device("meta"):
        try:
            probe = timm.create_model(name, num_classes=0, **{"img_size": image_size, **structure})
        except TypeError as error:
            if "img_size" in str(error):
                return None, options  # takes every size after all, for example the ResNet-ViT hybrids
            raise EncoderError(f"{name}: {error}") from error
        except (AssertionError, ValueError, RuntimeError):
            # Some families refuse sizes that their patches do not divide; their usual size always builds.
            probe = timm.create_model(name, num_classes=0, **structure)
    if hasattr(probe, "dynamic_img_size") and "features_only" not in options:
        options = {"dynamic_img_size": True, **options}
    stride = _stride(probe)
    return math.ceil(image_size / stride) * stride, options


def _stride(model: nn.Module) -> int:
    """Pixels between neighbouring cells of the last feature map; the image side must be a multiple of it."""
    info = getattr(model, "feature_info", None)
    if info:
        return int(info[-1]["reduction"])
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return int(patch[0] if isinstance(patch, tuple | list) else patch)


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    timm = _timm()

    try:
        model: nn.Module = timm.create_model(name, **options)
    except (TypeError, AssertionError, IndexError, RuntimeError) as error:
        # IndexError: fewer levels than out_indices asks for; RuntimeError: no features_only.
        raise EncoderError(
            f"timm cannot build {name} with {options}: {type(error).__name__}: {error}"
        ) from error
    return model


def _create_pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    timm = _timm()

    config = None if ":" in name else timm.get_pretrained_cfg(name)
    if config is not None and not config.has_weights:
        raise PublishedWeightsError(name, "cannot be had: timm knows no published weights for it")
    try:
        return _create(name, {"pretrained": True, **options})
    except OSError as error:  # the base class of huggingface_hub's and urllib's network errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PublishedWeightsError(name, f"could not be downloaded ({reason})") from error


def _load_file(model: nn.Module, name: str, path: Path, options: dict[str, Any]) -> None:
    """Fills `model` from a local file and stops unless every one of its tensors was found there."""
    source = model
    if "features_only" in options:  # timm renames layers there, so the file is matched with the plain model
        plain = {k: v for k, v in options.items() if k not in ("features_only", "out_indices")}
        source = _create(name, {"num_classes": 0, **plain})
    state = _read_state(path, source)
    # Files from before PyTorch 0.4.1 lack the counts of batches, and nothing here reads them.
    own = source.state_dict()
    wanted = {key: value for key, value in own.items() if not key.endswith("num_batches_tracked")}
    missing = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if missing:
        raise EncoderError(
            f"{path} does not fit {name}: {len(wanted) - len(missing)} of {len(wanted)} tensors match, "
            f"missing or of another shape are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    source.load_state_dict({**own, **{k: v for k, v in state.items() if k in own}})
    _logger.info("%s: all %d tensors read from %s", name, len(wanted), path)
    if source is not model:
        _copy_features(source, model)


def _read_state(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads a checkpoint and renames its keys as timm does for this family of models."""
    from timm.models import load_state_dict

    if not path.is_file():
        raise EncoderError(f"there is no weights file {path}")
    module = importlib.import_module(type(model).__module__)
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
        if hasattr(module, "checkpoint_filter_fn"):
            state = module.checkpoint_filter_fn(state, model)
        elif hasattr(module, "_filter_torchvision_pretrained"):
            state = module._filter_torchvision_pretrained(state)
    except Exception as error:  # pickle, safetensors and the filters raise all sorts
        raise EncoderError(f"{path} cannot be read as weights: {type(error).__name__}: {error}") from error
    return state


def _copy_features(source: nn.Module, features: nn.Module) -> None:
    """Copies a plain model's tensors into its `features_only` twin."""
    tensors = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    found = {key: tensors.get(key.removeprefix("model.").replace(".", "_")) for key in features.state_dict()}
    missing = [key for key, value in found.items() if value is None]
    if missing:
        raise EncoderError(f"cannot take {missing[:3]} of the feature extractor from the weights file")
    features.load_state_dict(found)
