"""Types and ranges of all settings, declared once and checked after a config is composed.

Defaults and meanings are in the YAML files below ``conf/``. Both are the source of ``--help`` and of
docs/configuration.md.
"""

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


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


SOMETIMES: Any = Field(default=None)
"""Default of a setting that not every choice of its group has."""

FilePath = Annotated[Path, BeforeValidator(_path)]
Paths = Annotated[list[FilePath], BeforeValidator(_listed), MinLen(1)]
Words = Annotated[list[str], BeforeValidator(_listed)]
Text = Annotated[str, BeforeValidator(_text)]
Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Below1 = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Gt(0), Le(1)]
Resamples = Annotated[int, Ge(100)]
Fold = Natural | Literal["published"]
Tta = Literal["none", "flips", "dihedral"]
Reading = Literal["head", "thresholds"]

FindingName = Literal[
    "conflicting_grades",
    "across_splits",
    "patient_across_splits",
    "across_datasets",
    "unreadable",
    "image_missing",
    "label_invalid",
    "identical",
    "near_duplicate",
    "across_patients",
    "train_val_copies",
    "shortcut",
    "blank",
    "dark",
    "over_exposed",
    "out_of_focus",
    "tiny",
    "label_repeated",
    "label_missing",
    "converted",
]


class CheckedSettings(BaseModel):
    """Settings of a command or of a group; further settings in the config are not looked at.

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
        """Compose the command's config and check it.

        Args:
            *overrides: As on the command line, ``"a.b=value"``.
            **settings: Settings at the top level.

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
    """Values of the declared settings, as plain Python objects; those that are not given are left out."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        try:
            value = cfg.get(name, _ABSENT)
        except InterpolationResolutionError:  # Hydra's own settings exist in its jobs only
            continue
        if _is_group(field.annotation) and isinstance(value, DictConfig):
            found[name] = _values(cast(Any, field.annotation), value)
        elif value is not _ABSENT:
            found[name] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return found


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
    """Describe a type in words.

    Args:
        kind: An annotation of this module.

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
    found: dict[str, Any] = {}
    for name in model.model_fields:
        if _is_group(hints[name]):
            found |= declared(hints[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = hints[name]
    return found


def holds_text(kind: Any) -> Literal["one", "many"] | None:
    """Return whether an annotation is text or a path, or a list of these."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return "many" if holds_text(parts[0]) else None
    if origin is Annotated:
        return holds_text(parts[0])
    if origin in (Union, UnionType):
        return next(filter(None, map(holds_text, parts)), None)
    return "one" if kind in (str, Path) or origin is Literal else None


class PathSettings(CheckedSettings):
    """``paths``: folders that all commands share."""

    data: FilePath
    outputs: FilePath
    run: FilePath | None = None
    stores: FilePath | None
    encoders: FilePath


class DataSettings(CheckedSettings):
    """``data``: a data set; not every one has all settings."""

    name: Text
    root: FilePath
    image_size: Annotated[int, Ge(8)]
    batch_size: Count
    balanced: bool
    num_workers: Natural | Literal["auto"]
    fold: Fold
    labelled: list[Any]
    unlabelled: list[Any]
    external: list[Any]
    download: bool
    illumination: Literal["none", "ben_graham", "clahe"]
    duplicates: bool
    strict: bool
    workers: Count | None
    max_pixels: Count
    images: FilePath = SOMETIMES
    csv: FilePath | None = SOMETIMES
    image_column: Text = SOMETIMES
    grade_column: Text | None = SOMETIMES
    patient_column: Text | None = SOMETIMES
    eye_column: Text | None = SOMETIMES
    split_column: Text | None = SOMETIMES
    include_unlisted: bool = SOMETIMES
    count: Count = SOMETIMES
    size: Count = SOMETIMES
    seed: Natural = SOMETIMES
    pairs: FilePath | None = SOMETIMES


class SplitSettings(CheckedSettings):
    """``split``."""

    disagreeing: Literal["drop", "keep_one", "majority"]
    file: FilePath | None
    seed: Natural


class ProtocolSettings(CheckedSettings):
    """``protocol``: how fine-tuning runs."""

    epochs: Natural
    steps_per_epoch: Count | None
    frozen_epochs: Natural
    val_fraction: Below1
    val_within_fraction: bool
    checkpoint: Literal["last", "best"]
    pretrain_on: Literal["train", "all"]
    layer_decay: Fraction | None
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None
    shots: Count | None
    probe_sees_val: bool = SOMETIMES


class HeadSettings(CheckedSettings):
    """``head``: features to grade."""

    hidden: Natural
    dropout: Below1
    weighting: Literal["none", "balanced", "effective"]
    beta: Below1
    focal_gamma: NotNegative
    loss: Literal["smooth_l1", "mse"] = SOMETIMES
    thresholds: Literal["half", "fitted"] = SOMETIMES


class PretextSettings(CheckedSettings):
    """``pretext``: what all self-supervised tasks have."""

    init: Literal["random", "imagenet"]
    epochs: Annotated[int, Ge(-1)]
    max_steps: Annotated[int, Ge(-1)]
    batch_size: Count
    val_fraction: Below1
    seed: Natural


class TrainerSettings(CheckedSettings):
    """``trainer``: arguments of Lightning's ``Trainer``."""

    accelerator: Text
    max_epochs: Annotated[int, Ge(-1)] | None
    max_steps: Annotated[int, Ge(-1)]
    gradient_clip_val: NotNegative | None
    accumulate_grad_batches: Count
    deterministic: bool | Literal["warn"]


class LoggerSettings(CheckedSettings):
    """``logger``: not every one has all settings."""

    project: Text = SOMETIMES
    worst_photographs: Natural = SOMETIMES
    entity: Text | None = SOMETIMES
    offline: bool | None = SOMETIMES


class FeatureSettings(CheckedSettings):
    """``callbacks.features``."""

    every: Count
    knn: Count | None


class CallbackSettings(CheckedSettings):
    """``callbacks``."""

    features: FeatureSettings = SOMETIMES


class TrainSettings(CheckedSettings):
    """``conf/train.yaml``."""

    config, sweeps = "train", True

    name: Text
    method: Text | None
    task: Literal["grading", "pretext"]
    seed: Natural
    init: Text
    pretrain_on: Literal["train", "all"]
    label_fraction: Fraction
    fold: Fold
    folds: Annotated[int, Ge(2)]
    download: bool
    test: bool
    resume: Text | None
    sweep: Text | None
    compile: bool
    channels_last: bool
    sync_batchnorm: bool
    split: SplitSettings
    data: DataSettings
    head: HeadSettings
    pretext: PretextSettings
    protocol: ProtocolSettings
    trainer: TrainerSettings
    logger: LoggerSettings
    callbacks: CallbackSettings
    paths: PathSettings


class ReproduceSettings(TrainSettings):
    """``conf/reproduce.yaml``."""

    config = "reproduce"

    experiments: Words
    out: FilePath | None
    estimate: Literal["first", "only", "none"]
    measure: Positive


class PreparePaths(PathSettings):
    """``paths`` of ``drgrade prepare``."""

    previews: FilePath


class PrepareSettings(CheckedSettings):
    """``conf/prepare.yaml``."""

    config = "prepare"

    preview: Natural
    download: bool
    data: DataSettings
    paths: PreparePaths


class AuditThresholds(CheckedSettings):
    """``audit``: thresholds, explained in conf/audit.yaml; docs/audit.md has figures behind them."""

    fail_on: list[FindingName] = []
    tiny_below: NotNegative = 128.0
    blank_below: NotNegative = 0.004
    dark_below: NotNegative = 32.0
    over_exposed_above: NotNegative = 0.25
    blurred_below: NotNegative = 0.5
    outlying_below: NotNegative = 0.6
    outlying_deviations: NotNegative = 4.0
    folds: Annotated[int, Ge(2)] = 5
    permutations: Annotated[int, Ge(19)] = 30
    resamples: Resamples = 500
    probe_photographs: Annotated[int, Ge(100)] = 10_000
    shortcut_above: NotNegative = 0.2
    seed: Natural = 0
    pairs_on_page: Natural = 200


class AuditPaths(PathSettings):
    """``paths`` of ``drgrade audit``."""

    audit: FilePath


class AuditSettings(CheckedSettings):
    """``conf/audit.yaml``."""

    config = "audit"

    download: bool
    fail_on: list[FindingName]
    audit: AuditThresholds
    data: DataSettings
    paths: AuditPaths


class EvaluateData(CheckedSettings):
    """``data`` of ``drgrade evaluate``."""

    root: FilePath = SOMETIMES
    csv: FilePath | None = SOMETIMES
    images: FilePath = SOMETIMES
    batch_size: Count | None
    num_workers: Natural | Literal["auto"]


class EvaluateSettings(CheckedSettings):
    """``conf/evaluate.yaml``."""

    config = "evaluate"

    checkpoint: Paths
    part: Literal["all", "train", "val", "test"]
    tta: Tta
    reading: Reading
    overlap: Literal["refuse", "drop"]
    force: bool
    resamples: Resamples
    seed: Natural
    download: bool
    data: EvaluateData
    paths: PathSettings


class PredictSettings(CheckedSettings):
    """``conf/predict.yaml``."""

    config, positional = "predict", "input"

    checkpoint: Paths
    input: Words
    out: FilePath | None
    sensitivity: Fraction | None
    tta: Tta
    reading: Reading
    abstain: bool
    device: Text
    batch_size: Count
    workers: Count | None
    format: Annotated[list[Literal["csv", "jsonl"]], BeforeValidator(_listed), MinLen(1)]
    overlays: bool
    map: Text
    target: Literal["expected", "referable", "grade"]
    overlay_size: Natural
    overwrite: bool
    paths: PathSettings


class AppSettings(CheckedSettings):
    """``conf/app.yaml``."""

    config = "app"

    checkpoint: Paths
    port: Annotated[int, Ge(0), Le(65535)] | None
    sensitivity: Fraction | None
    tta: Tta
    device: Text
    abstain: bool
    maps: Words
    open: bool


class ExportSettings(CheckedSettings):
    """``conf/export.yaml``."""

    config = "export"

    checkpoint: Paths
    format: Literal["onnx", "torch"]
    out: FilePath | None
    overwrite: bool
    int8: bool
    photographs: FilePath | None
    count: Count
    resamples: Resamples
    seed: Natural


class PublishSettings(CheckedSettings):
    """``conf/publish.yaml``."""

    config = "publish"

    checkpoint: FilePath
    to: Text | None
    overwrite: bool
    private: bool
    licence: Text | None
    seen: bool | None
    training_features: bool
    resamples: Count


class ReportSettings(CheckedSettings):
    """``conf/report.yaml``."""

    config, positional = "report", "runs"

    runs: Paths
    out: FilePath | None
    title: Text | None
    resamples: Resamples
    seed: Natural
    compare: Text
    paths: PathSettings


class DashboardSettings(CheckedSettings):
    """``conf/dashboard.yaml``."""

    config, positional = "dashboard", "sweep"

    sweep: FilePath
    entity: Text | None
    project: Text | None
    offline: bool | None


COMMANDS: dict[str, type[CheckedSettings]] = {
    model.config: model
    for model in (
        *(TrainSettings, PrepareSettings, AuditSettings, EvaluateSettings, PredictSettings, AppSettings),
        *(ExportSettings, PublishSettings, ReportSettings, ReproduceSettings, DashboardSettings),
    )
}
"""Command: its settings."""
