"""A grading model, and its construction from the settings and weights of a run or a published folder.

The artefact may come from anybody. Only the classes listed here and those of installed entry points are
built, with the settings declared here; every number is bounded, and a model may not be much larger than its
weights. ``docs/security.md`` states what is trusted.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from drgrade.artefacts import installed_class, is_number, leaves, shortened
from drgrade.errors import DataError, DrgradeError, EncoderError
from drgrade.models.encoder import Encoder, TimmEncoder, check_finite
from drgrade.models.heads import CornHead, CumulativeHead, Head, RegressionHead, SoftmaxHead
from drgrade.models.msssl import MsSSL
from drgrade.models.probes import KnnProbe, LinearProbe, MajorityProbe, PrototypeProbe
from drgrade.models.timm_backbone import is_timm_name, similar_names


class GradingModel(nn.Module):
    """Normalised images (B, 3, S, S) to the logits (B, K) of the head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) float32 of normalised images (B, 3, S, S)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits.float()

    def load(self, tensors: Mapping[str, Tensor], origin: object) -> None:
        """Load all weights and buffers from tensors by name; those of other modules are ignored.

        Args:
            tensors: Tensors by their names in this model.
            origin: Where the tensors come from, for the error message.

        Raises:
            EncoderError: If a tensor is missing, left over, of another shape or not finite.
        """
        own = {name: each for name, each in tensors.items() if name.startswith(("encoder.", "head."))}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise EncoderError(f"{origin} does not fit the model of its config: {reason}") from error
        check_finite(self.state_dict(), origin)


ENTRY_POINTS = "drgrade.models"
"""Group of the entry points by which an installed package offers its own encoders and heads."""

MAX_IMAGE_SIZE = 2048
"""Largest side of the images of an artefact in pixels."""

TIMM_OPTIONS = frozenset(
    (
        *("act_layer", "attn_drop_rate", "avg_down", "base_width", "block_config", "bn_size"),
        *("cardinality", "channels", "class_token", "depth", "depths", "dims", "drop_block_rate"),
        *("drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size", "embed_dim"),
        *("embed_dims", "fc_norm", "final_norm", "fix_init", "global_pool", "growth_rate"),
        *("head_hidden_size", "img_size", "init_values", "kernel_sizes", "layers", "ls_init_value"),
        *("memory_efficient", "mlp_ratio", "mlp_ratios", "no_embed_class", "norm_eps", "norm_layer"),
        *("num_features", "num_heads", "output_stride", "patch_drop_rate", "patch_size"),
        *("pool_include_prefix", "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias"),
        *("proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "stem_size", "stem_type"),
        *("stem_width", "strict_img_size", "use_grn", "weight_init", "window_size"),
    )
)
"""Options of timm that change layers and neither read a file nor download anything."""

_MOST = {"depth": 512, "depths": 512, "layers": 512, "block_config": 512, "window_size": 128}
"""Largest value of an option, or sum of its values: layers, and side of a window of attention."""

_MAX_OPTION = 8192
_WORD = re.compile(r"\w{0,40}")


def _timm_name(name: str) -> str:
    if not is_timm_name(name):
        raise PydanticCustomError("timm", f"not a model of timm; {similar_names(name)}")
    return name


def _timm_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in options.items():
        empty = value is None or value is False
        if not (name in TIMM_OPTIONS and _is_option(value)) and not (name in _WEIGHTS and empty):
            raise PydanticCustomError("option", f"{name}={shortened(value)}".replace("{", "("))
    for name, most in _MOST.items():
        value = options.get(name)
        if sum(value if isinstance(value, list) else [value or 0]) > most:
            raise PydanticCustomError("option", f"{name}={shortened(value)}")
    return options


_WEIGHTS = ("weights", "pretrained")
"""Settings that read or download weights; they must be empty."""


def _is_option(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 16 and all(is_number(each, 0, _MAX_OPTION) for each in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool) or is_number(value, 0, _MAX_OPTION)


ImageSize = Annotated[int, Ge(8), Le(MAX_IMAGE_SIZE)]
_Width = Annotated[int, Ge(1), Le(8192)]
_Penalty = Annotated[float, Ge(0), Le(1e9)]
_TimmName = Annotated[str, AfterValidator(_timm_name)]
_TimmOptions = Annotated[dict[str, Any], AfterValidator(_timm_options)]


class _Settings(BaseModel):
    """Arguments of a class."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    built: ClassVar[type[nn.Module]]

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class _Timm(_Settings):
    model_config = ConfigDict(extra="allow")
    built = TimmEncoder

    name: _TimmName
    image_size: ImageSize = 224
    pretrained: Literal[False] = False
    weights: None = None
    options: _TimmOptions | None = None
    pixel_mean: Annotated[float, Ge(0), Le(1)] | None = None
    pixel_std: Annotated[float, Gt(0.01), Le(1)] | None = None

    @model_validator(mode="after")
    def _check_more_options(self) -> Self:
        _timm_options(self.model_extra or {})
        return self


class _MsSSL(_Settings):
    built = MsSSL

    cnn: _TimmName = "resnet50"
    vit: _TimmName = "vit_small_patch16_224"
    image_size: ImageSize = 224
    channels: _Width = 256
    refined_channels: _Width = 128
    pretrained: Literal[False] = False
    use_vit: bool = True
    use_fpn: bool = True
    use_deep_learner: bool = True
    use_cbam: bool = True
    reduction: _Width = 16
    cnn_options: _TimmOptions | None = None
    vit_options: _TimmOptions | None = None


class _Head(_Settings):
    hidden: Annotated[int, Ge(0), Le(65536)] = 1024
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    num_grades: Literal[5] = 5
    weighting: Literal["none", "balanced", "effective"] = "none"
    beta: Annotated[float, Ge(0), Lt(1)] = 0.999
    focal_gamma: Annotated[float, Ge(0), Le(100)] = 0.0


class _Cumulative(_Head):
    built = CumulativeHead


class _Softmax(_Head):
    built = SoftmaxHead


class _Corn(_Head):
    built = CornHead


class _Regression(_Head):
    built = RegressionHead

    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    thresholds: Literal["half", "fitted"] = "half"


class _Knn(_Settings):
    built = KnnProbe

    k: Annotated[int, Ge(1), Le(1_000_000)] = 20
    temperature: Annotated[float, Gt(0), Le(1e6)] = 0.07
    num_grades: Literal[5] = 5


class _Prototypes(_Settings):
    built = PrototypeProbe

    num_grades: Literal[5] = 5


class _Majority(_Settings):
    built = MajorityProbe

    num_grades: Literal[5] = 5


class _Linear(_Settings):
    built = LinearProbe

    head: dict[str, Any]
    penalty: _Penalty | None = None
    penalties: Annotated[list[_Penalty], MaxLen(1000)] | None = None
    num_grades: Literal[5] = 5

    def arguments(self) -> dict[str, Any]:
        settings = super().arguments()
        if settings.get("penalties") is None:
            settings.pop("penalties", None)
        return {**settings, "head": _Part.read("head", Head, self.head).build}


_CLASSES: Mapping[str, type[_Settings]] = {
    f"{each.built.__module__}.{each.built.__qualname__}": each
    for each in (
        *(_Timm, _MsSSL, _Cumulative, _Softmax, _Corn, _Regression),
        *(_Knn, _Prototypes, _Majority, _Linear),
    )
}


class _Part:
    """A class of an artefact with checked arguments."""

    def __init__(self, name: str, built: type[nn.Module], arguments: dict[str, Any]) -> None:
        self.name, self.built, self._arguments = name, built, arguments

    @classmethod
    def read(cls, name: str, kind: type[nn.Module], node: object) -> Self:
        """Check the settings of an encoder or head; raise DataError with the setting that is not allowed."""
        settings = dict(node) if isinstance(node, Mapping) else {}
        target, partial = settings.pop("_target_", None), settings.pop("_partial_", False)
        built = model_class(target)
        if built is None or not issubclass(built, kind):
            raise DataError(f"its {name} is {shortened(target)}, which is not in drgrade.models")
        if partial not in (kind is Head, False):
            raise DataError(f"its {name} has _partial_={shortened(partial)}, which is not allowed")
        declared = _CLASSES.get(str(target))
        if declared is None:
            return cls(name, built, _plain_settings(name, settings))
        try:
            return cls(name, built, declared(**settings).arguments())
        except ValidationError as error:
            raise DataError(f"its {name} has {_fault(error)}") from None

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Build the object; raise EncoderError if its class refuses the settings."""
        try:
            return self.built(*args, **{**self._arguments, **kwargs})
        except DrgradeError:
            raise
        except Exception as error:  # timm's models raise errors of many types for settings that do not fit
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(
                f"the {self.name} {self.built.__name__} cannot be built: {type(error).__name__}: {reason}"
            ) from error


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    setting = ".".join(str(part) for part in first["loc"] if not str(part).startswith("dict["))
    if first["type"] == "timm":
        return f"{setting}={shortened(first['input'])}, {first['msg']}"
    if first["type"] == "option":
        return f"{f'{setting}: ' if setting else ''}{first['msg']}, which is not allowed"
    return f"{setting}={shortened(first['input'])}, which is not allowed ({first['msg']})"


def model_class(target: object) -> type[nn.Module] | None:
    """Return the class of an encoder, head or probe that an artefact may name; None for every other name.

    These are those of drgrade, and those that installed packages offer as entry points of the group
    :data:`ENTRY_POINTS`, ``my_encoder = "package.module:Class"``. Nothing else is imported.
    """
    if not isinstance(target, str):
        return None
    if target in _CLASSES:
        return _CLASSES[target].built
    found = installed_class(ENTRY_POINTS, target)
    return found if isinstance(found, type) and issubclass(found, Encoder | Head) else None


def _plain_settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Check settings of a class from another package: bounded numbers, words, truth values."""
    for setting, value in leaves(settings):
        private = any(part.startswith("_") for part in setting.split("."))
        if private or not (_is_option(value) or is_number(value, -1e6, 1e6)):
            raise DataError(f"its {name} has {setting}={shortened(value)}, which is not allowed")
    return settings


def model_settings(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the settings of encoder and head of a run; raise DataError if there are none."""
    try:
        probe = settings["protocol"].get("probe")
        return settings["encoder"], probe or settings["grading"]["task"]["head"]
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"it is damaged: it has no encoder or no head ({error!r})") from error


def without_weights(encoder: Any) -> Any:
    """Return a copy of an encoder's settings without weights files and downloads."""
    if not isinstance(encoder, Mapping):
        return encoder
    return {
        name: without_weights(value) if isinstance(value, Mapping) else value
        for name, value in encoder.items()
        if name not in _WEIGHTS
    }


def check_model_settings(encoder: object, head: object) -> None:
    """Raise DataError if settings describe anything but a model that :func:`build_model` builds."""
    _Part.read("encoder", Encoder, encoder)
    _Part.read("head", Head, head)


def build_model(encoder: object, head: object, tensors: Mapping[str, Tensor], origin: object) -> GradingModel:
    """Build an encoder and a head from settings, and load their weights.

    Args:
        encoder: Settings of the encoder, with ``_target_``.
        head: Settings of the head or probe.
        tensors: Weights by their names in :class:`~drgrade.models.grading_model.GradingModel`; others are
            ignored.
        origin: Where the weights come from, for messages.

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        DataError: If a class or setting is not allowed.
        EncoderError: If the settings describe no model, or the weights do not fit or are not finite.
    """
    parts = _Part.read("encoder", Encoder, encoder), _Part.read("head", Head, head)
    with _limited_size(sum(each.numel() for each in tensors.values()), origin):
        built = parts[0].build()
        model = GradingModel(built, parts[1].build(built.num_features))
    model.load(tensors, origin)
    return model.eval()


@contextmanager
def _limited_size(loaded: int, origin: object) -> Iterator[None]:
    """Raise EncoderError while a model is built that needs far more memory than its ``loaded`` weights."""
    # Feature extractors are built with layers that are dropped afterwards.
    limit, count = 4 * loaded + 100_000_000, 0

    def add(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal count
        count += 0 if tensor is None else tensor.numel()
        if count > limit:
            raise EncoderError(f"{origin} does not fit the model of its config: that is far larger")

    hooks = (
        register_module_parameter_registration_hook(add),
        register_module_buffer_registration_hook(add),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
