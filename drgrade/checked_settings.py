"""Settings as pydantic models: read them from a composed config, describe their types in words."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from drgrade.config import compose, nearest
from drgrade.errors import ConfigError


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def as_list(value: object) -> object:
    """Return a list of one value for a single text or path."""
    return [value] if isinstance(value, str | Path) else value


SOMETIMES: Any = Field(default=None)
"""Default of a setting that not every choice of its group has."""

FilePath = Annotated[Path, BeforeValidator(_path)]
Paths = Annotated[list[FilePath], BeforeValidator(as_list), MinLen(1)]
Words = Annotated[list[str], BeforeValidator(as_list)]
Text = Annotated[str, BeforeValidator(_text)]
Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Below1 = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Gt(0), Le(1)]
Resamples = Annotated[int, Ge(100)]


class CheckedSettings(BaseModel):
    """Settings of a command or of a group; further settings in the config are ignored.

    Attributes:
        config: Name of the command's file in ``conf/``.
        positional: Setting that receives the arguments of the command line that are no settings.
        sweeps: A comma in a value separates values to sweep over.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    config: ClassVar[str] = ""
    positional: ClassVar[str | None] = None
    sweeps: ClassVar[bool] = False

    @classmethod
    def compose(cls, *overrides: str, **settings: object) -> Self:
        """Compose the command's config with overrides (``"a.b=value"``) and top-level settings, and check it.

        Raises:
            ConfigError: If a setting is unknown or missing, or its value is not allowed.
        """
        return cls.read(compose(cls.config, *overrides, **settings))

    @classmethod
    def read(cls, cfg: DictConfig) -> Self:
        """Check a composed config and return its settings.

        Raises:
            ConfigError: Naming the setting, its value, and what is allowed.
        """
        try:
            return cls.model_validate(_values(cls, cfg))
        except ValidationError as error:
            raise ConfigError(_message(cls, error.errors()[0])) from None


_ABSENT = object()


def _values(model: type[CheckedSettings], cfg: DictConfig) -> dict[str, Any]:
    """Return the declared settings that are given, as plain Python objects."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        try:
            value = cfg.get(name, _ABSENT)
        except InterpolationResolutionError:  # Hydra's own settings exist in its jobs only
            continue
        if _is_group(field.annotation) and isinstance(value, DictConfig):
            values[name] = _values(cast(Any, field.annotation), value)
        elif value is not _ABSENT:
            is_node = OmegaConf.is_config(value)
            values[name] = OmegaConf.to_container(value, resolve=True) if is_node else value
    return values


def _message(model: Any, error: ErrorDetails) -> str:
    """Name the setting, its value, and what is allowed."""
    names: list[str] = []
    for part in error["loc"]:
        if not _is_group(model):
            break
        names.append(str(part))
        model = get_type_hints(model, include_extras=True)[str(part)]
    value, name = error["input"], ".".join(names)
    if error["type"] == "missing":
        return f"{name} is not given: {describe(model)}"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    hint = nearest(str(value), _choices(model))
    if hint.startswith("did you mean"):
        return f"{name}={shown} is not allowed; {hint}"
    return f"{name}={shown} is not allowed: {describe(model)}"


def _choices(kind: Any) -> list[str]:
    """Return all literal values in an annotation."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [value for part in get_args(kind) for value in _choices(part)]


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, CheckedSettings)


_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
    dict: "mapping",
    Any: "any value",
}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def describe(kind: Any) -> str:
    """Describe an annotation of this module in words.

    Example:
        >>> describe(Count | Literal["auto"])
        'whole number ≥ 1, or auto'
        >>> describe(Fraction)
        'number > 0 and ≤ 1'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [
            f"{sign} {getattr(limit, name)}"
            for limit in parts[1:]
            for name, sign in _SIGNS.items()
            if isinstance(limit, BaseMetadata) and hasattr(limit, name)
        ]
        return f"{describe(parts[0])} {' and '.join(bounds)}".rstrip()
    if origin in (Union, UnionType):
        return ", or ".join(map(describe, parts))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is list:
        return "list" if parts[0] is Any else f"list of {describe(parts[0])}"
    return _WORDS[kind]


def declared(model: type[CheckedSettings], prefix: str = "") -> dict[str, Any]:
    """Return the declared settings of a command, ``a.b.c``, with their annotations."""
    hints = get_type_hints(model, include_extras=True)
    annotations: dict[str, Any] = {}
    for name in model.model_fields:
        if _is_group(hints[name]):
            annotations |= declared(hints[name], f"{prefix}{name}.")
        else:
            annotations[prefix + name] = hints[name]
    return annotations


def text_settings(model: type[CheckedSettings]) -> dict[str, Literal["one", "many"] | None]:
    """Return ``one`` for each setting that is a text or path, ``many`` for a list of these, else None."""
    return {name: _holds_text(kind) for name, kind in declared(model).items()}


def _holds_text(kind: Any) -> Literal["one", "many"] | None:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return "many" if _holds_text(parts[0]) else None
    if origin is Annotated:
        return _holds_text(parts[0])
    if origin in (Union, UnionType):
        return next(filter(None, map(_holds_text, parts)), None)
    return "one" if kind in (str, Path) or origin is Literal else None
