"""Compose configs from the YAML files in ``conf/``, check settings, read comments, and write overrides."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

import hydra
from annotated_types import BaseMetadata, Ge, Gt, Le, Lt, MinLen
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from drgrade.errors import ConfigError

CONF = next(
    folder
    for folder in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf")
    if folder.is_dir()
)
"""The config folder: inside the package when it is installed from a wheel, beside it in a checkout."""

ROLES = ("labelled", "unlabelled", "external")
"""Settings ``data.ROLE`` that name further data sets."""


def is_set(encoder: Mapping[Any, Any], *settings: str) -> bool:
    """Return True if any of these settings has a value in an encoder's config, in any part.

    Example:
        >>> is_set({"weights": None, "cnn_options": {"pretrained": True}}, "weights", "pretrained")
        True
    """
    return any(
        is_set(value, *settings) if isinstance(value, Mapping) else name in settings and bool(value)
        for name, value in encoder.items()
    )


def is_pretrained(cfg: Mapping[Any, Any]) -> bool:
    """Return True if the encoder of a grading run starts from trained weights, at least in a part.

    Args:
        cfg: The run's config, with ``init`` and ``encoder``.

    Example:
        >>> is_pretrained({"init": "random", "encoder": {"name": "resnet18", "weights": None}})
        False
        >>> is_pretrained({"init": "random", "encoder": {"name": "resnet18", "weights": "a.safetensors"}})
        True
    """
    return cfg["init"] != "random" or is_set(cfg["encoder"], "weights", "pretrained")


def _if_pretrained(value: Any, *, _root_: DictConfig) -> Any:
    """Return a value for trained first weights, and 0 for random ones."""
    return value if is_pretrained(_root_) else 0


def _imagenet_file(name: str, *, _root_: DictConfig) -> str | None:
    """Return the file of a model in ``paths.weights``; None unless ``init=imagenet``."""
    folder = OmegaConf.select(_root_, "paths.weights")
    if _root_.init != "imagenet" or not folder:
        return None
    file = Path(folder) / f"{name}.safetensors"
    return str(file) if file.is_file() else None


OmegaConf.register_new_resolver("if_pretrained", _if_pretrained, replace=True)
OmegaConf.register_new_resolver("imagenet_file", _imagenet_file, replace=True)


@contextmanager
def initialized_hydra() -> Iterator[Hydra]:
    """Initialise Hydra with the config folder, also within a job of Hydra."""
    running = GlobalHydra.instance()
    outer, running.hydra = running.hydra, None
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            inner = GlobalHydra.instance().hydra
            assert inner is not None
            yield inner
    finally:
        running.hydra = outer


def compose(config: str, *overrides: str, **settings: object) -> DictConfig:
    """Compose a config outside of the command line.

    Args:
        config: Name of a config in ``conf/``.
        *overrides: As on the command line, ``"a.b=value"``.
        **settings: Settings at the top level.

    Raises:
        ConfigError: If an override adds an unknown setting, or a required setting is not given.
    """
    given = [f"{name}={as_override(value)}" for name, value in settings.items()]
    refuse_new_settings(config, overrides)
    with initialized_hydra():
        cfg = hydra.compose(config, [*overrides, *given])
    refuse_missing(cfg, config)
    return cfg


def choices(group: str) -> list[str]:
    """Return the sorted choices of a config group, a folder below ``conf/``."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


def nearest(word: str, known: list[str]) -> str:
    """Return a hint: the known words that are most similar to a mistyped one, or all of them."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"available: {', '.join(known)}" if len(known) <= 40 else "see docs/configuration.md"


def setting_names(node: DictConfig, prefix: str = "") -> list[str]:
    """Return every setting of a config as ``a.b.c``, parents first; nothing is resolved."""
    names = []
    for name in map(str, node):
        names.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not (
            child._is_none() or child._is_interpolation() or child._is_missing()
        ):
            names += setting_names(child, f"{prefix}{name}.")
    return names


def refuse_missing(cfg: DictConfig, config: str = "train") -> None:
    """Raise ConfigError if a required value is not given in a composed config."""
    for name in sorted(setting_names(cfg)):
        parent, _, key = name.rpartition(".")
        if OmegaConf.is_missing(OmegaConf.select(cfg, parent) if parent else cfg, key):
            hint = meaning(config, name) or "its value"
            raise ConfigError(f"{name} is not given; add {name}=... ({hint}) to the command")


def groups(config: str) -> dict[str, str | None]:
    """Return the groups in a config's defaults list, with the default choice of each."""
    own = OmegaConf.load(CONF / f"{config}.yaml")
    chosen = [item for choice in own.defaults if isinstance(choice, DictConfig) for item in choice.items()]
    return {str(name).rpartition(" ")[2]: choice for name, choice in chosen if "override " not in str(name)}


def refuse_new_settings(config: str, overrides: Iterable[str]) -> None:
    """Raise ConfigError for ``+name=value`` if ``name`` is unknown; Hydra accepts ``+experimnt=x``."""
    own = OmegaConf.load(CONF / f"{config}.yaml")
    known = sorted({*groups(config), *map(str, own), *(["experiment", "scale"] if config == "train" else [])})
    for override in overrides:
        added = re.match(r"\++([\w-]+)", override)
        if added and added.group(1) not in known:
            raise ConfigError(
                f"{override}: there is no setting {added.group(1)!r}; {nearest(added.group(1), known)}"
            )


def header(path: Path) -> str:
    """Return the comment at the top of a YAML file, without its signs."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(line for line in lines if not line.startswith("@package"))


def comments(path: Path) -> dict[str, str]:
    """Return the settings of a YAML file that have a comment on their line: ``a.b.c`` and the comment."""
    meanings: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)(\w+):(?: |$)", line)
        if not key:
            continue
        depth = len(key[1])
        parents = [(indent, name) for indent, name in parents if indent < depth] + [(depth, key[2])]
        comment = re.search(r"\s# (.*)", line)
        if comment and parents[0][1] not in ("defaults", "hydra"):
            meanings[".".join(name for _, name in parents)] = comment[1]
    return meanings


def meaning(config: str, setting: str) -> str:
    """Return the comment on a setting in the YAML files; empty if there is none."""
    group, _, rest = setting.partition(".")
    files = [
        (CONF / f"{config}.yaml", setting),
        *((path, rest) for path in sorted((CONF / group).glob("*.yaml"))),
    ]
    return next((comment for path, name in files if (comment := comments(path).get(name))), "")


def further_sources(cfg: DictConfig) -> dict[str, list[Any]]:
    """Make the sources of ``data.labelled``, ``data.unlabelled`` and ``data.external``.

    Args:
        cfg: A composed config with ``data`` and ``paths``. Each of the settings is a list of names of
            ``conf/data``, or of mappings with such a name as ``data`` and settings that differ:
            ``{data: folder, name: more, root: DIR}``.

    Returns:
        Role: sources.

    Raises:
        ConfigError: If an item is not such a name, or has a setting that the data set does not have.
    """
    return {
        role: [_source(role, item, cfg) for item in OmegaConf.select(cfg, f"data.{role}", default=[])]
        for role in ROLES
    }


def _source(role: str, item: Any, cfg: DictConfig) -> Any:
    settings = dict(item) if isinstance(item, DictConfig) else {"data": item}
    name = str(settings.pop("data", ""))
    if name not in choices("data"):
        raise ConfigError(f"data.{role}: there is no data set {name!r}; {nearest(name, choices('data'))}")
    file = OmegaConf.load(CONF / "data" / f"{name}.yaml")
    assert isinstance(file, DictConfig)
    known = sorted({*map(str, file), "name", "root"} - {"defaults", "fold", "source"})
    for setting in settings:
        if setting not in known:
            raise ConfigError(
                f"data.{role}: {setting!r} cannot be set for data={name}; available: {', '.join(known)} "
                "(all data sets are prepared in the same way)"
            )
    own = OmegaConf.merge(OmegaConf.load(CONF / "data" / "base.yaml"), file)
    whole = OmegaConf.merge(
        {"paths": cfg.paths, "data": own}, {"data": {"workers": cfg.data.workers, **settings}}
    )
    if OmegaConf.is_missing(whole.data, "root"):
        raise ConfigError(
            f"data.{role}: data={name} needs a folder: data.{role}=[{{data: {name}, root: DIR}}]"
        )
    try:
        return instantiate(whole.data.source)
    except OmegaConfBaseException as error:
        raise ConfigError(f"data.{role}, data={name}: {error}") from error


def as_override(value: object) -> str:
    """Return a value as the right side of an override ``setting=...``, so that Hydra reads the same one.

    Args:
        value: Text, path, number, truth value, None, or a list or mapping of such; keys are plain words.

    Raises:
        TypeError: If it is of another kind.

    Example:
        >>> as_override(["a (copy)", None, True])
        "['a (copy)',null,true]"
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str | os.PathLike):
        return "'" + _escaped(os.fspath(value)) + "'"
    if isinstance(value, Sequence):
        return "[" + ",".join(as_override(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"{value!r} cannot be written as an override")


def _escaped(text: str) -> str:
    """Escape quotes. Backslashes count only before a quote, and at the end, where a quote follows."""
    return re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)


def is_sweep(argument: str) -> bool:
    """Return True if Hydra would sweep over the values of an override."""
    override = parse_override(argument)
    return override is not None and override.is_sweep_override()


def parse_override(argument: str) -> Override | None:
    """Parse an override by Hydra's grammar; return None if it does not follow it."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


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
MaybePaths = Annotated[list[FilePath], BeforeValidator(as_list)]
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
    """Return a message that names the setting, its value, and what is allowed."""
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
