"""Types and ranges of the settings of all commands, declared once and checked after a config is composed.

Defaults and meanings are in the YAML files below ``conf/``. Both are the source of ``--help`` and of
docs/configuration.md.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, Field

from drgrade.config import (
    SOMETIMES,
    Below1,
    CheckedSettings,
    Count,
    FilePath,
    Fraction,
    MaybePaths,
    Natural,
    NotNegative,
    Paths,
    Positive,
    Resamples,
    Text,
    Words,
    as_list,
)

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


class PathSettings(CheckedSettings):
    """``paths``: folders that all commands share."""

    data: FilePath
    outputs: FilePath
    run: FilePath | None = None
    stores: FilePath | None
    encoders: FilePath
    weights: FilePath | None


class DataSettings(CheckedSettings):
    """``data``: settings of a data set; some data sets lack some of them."""

    name: Text
    root: FilePath
    image_size: Annotated[int, Ge(8), Le(2048)]
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
    label_seed: Natural


class ProtocolSettings(CheckedSettings):
    """``protocol``: settings of fine-tuning."""

    epochs: Annotated[int, Ge(-1)]
    steps: Annotated[int, Ge(-1)]
    steps_per_epoch: Count | None
    frozen_epochs: Natural
    val_fraction: Below1
    val_within_fraction: bool
    checkpoint: Literal["last", "best"]
    pretrain_on: Literal["train", "all"]
    precise_bn: bool
    layer_decay: Fraction | None
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None
    decay_norms: bool
    gradient_clip: NotNegative | None
    head_width: Natural
    probe_first: bool
    learning_rates: list[Positive] | None
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
    """``pretext``: common settings of the self-supervised tasks."""

    init: Literal["random", "imagenet"]
    epochs: Annotated[int, Ge(-1)]
    max_steps: Annotated[int, Ge(-1)]
    batch_size: Count
    val_fraction: Below1
    seed: Natural


class TrainerSettings(CheckedSettings):
    """``trainer``: arguments of Lightning's ``Trainer``."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    max_epochs: Annotated[int, Ge(-1)] | None
    max_steps: Annotated[int, Ge(-1)]
    gradient_clip_val: NotNegative | None
    accumulate_grad_batches: Count
    deterministic: bool | Literal["warn"]


class LoggerSettings(CheckedSettings):
    """``logger``: settings of a logger; some loggers lack some of them."""

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
    trial: bool
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

    fail_on: list[FindingName] = Field(default=[])
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
    own_run: bool
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
    format: Annotated[list[Literal["csv", "jsonl"]], BeforeValidator(as_list), MinLen(1)]
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
    own_run: bool
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
    cross: MaybePaths
    compare: Text
    published: Literal["own", "all"]
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
