"""What an evaluation is asked for: which runs, and settings that make sense together."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from drgrade.errors import ConfigError
from drgrade.prediction.published import is_published
from drgrade.runs.run_dir import read_finished
from drgrade.settings import EvaluateSettings

REFUSE, DROP = "refuse", "drop"
"""Values of ``overlap``: what becomes of photographs that a run has learnt from."""

_IDLE = {"labelled": [], "unlabelled": [], "external": [], "balanced": False}
"""Settings of a data set that mean nothing here, with the value that leaves them out."""


def folders_of(checkpoint: Any) -> list[Path]:
    """Folders of the runs that are evaluated.

    Args:
        checkpoint: A folder, or a list of some.

    Returns:
        One at least.

    Raises:
        ConfigError: If there is none, or one is named twice.
    """
    listed = list(checkpoint) if isinstance(checkpoint, ListConfig | list) else [checkpoint]
    folders = [Path(str(each)) for each in listed]
    if not folders:
        raise ConfigError("checkpoint=[] names no run; checkpoint=RUN, or checkpoint=RUN,RUN for an ensemble")
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ConfigError(
                f"checkpoint: {folders[number]} is named twice; a run counts once in an ensemble"
            )
    return folders


def read_run(folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Read the config and the metrics of a run that may be tested again.

    Args:
        folder: The run's folder.

    Returns:
        The config, and what ``metrics.json`` holds.

    Raises:
        ConfigError: If there is no finished grading run, or one that is not to be tested.
        DataError: If its ``metrics.json`` is damaged.
    """
    if is_published(folder):
        raise ConfigError(
            f"checkpoint={folder} is a published grader, which does not say where its photographs are: "
            "name a data set with data=NAME"
        )
    cfg, record = read_finished(folder)
    if "test/qwk" not in record:
        raise ConfigError(
            f"checkpoint={folder} was run with test=false, as the trials of a search are: its test "
            "photographs stay unseen; run its settings with test=true"
        )
    return cfg, record


def is_external(cfg: DictConfig) -> bool:
    """Whether a data set is named; else the runs are tested on what they were split for."""
    return "source" in cfg.data


def check_runs(cfg: DictConfig, folders: list[Path]) -> None:
    """Refuse runs that must not be tested, before their weights are read.

    Args:
        cfg: The composed config.
        folders: Of the runs.

    Raises:
        ConfigError: As :func:`read_run`; a published grader may be tested on a data set.
        DataError: As :func:`read_run`.
    """
    for folder in folders:
        if not (is_external(cfg) and is_published(folder)):
            read_run(folder)


def is_plain(cfg: DictConfig, folders: list[Path]) -> bool:
    """Whether one run is tested again exactly as it was tested when it was made."""
    return not is_external(cfg) and len(folders) == 1 and cfg.tta == "none" and cfg.reading == "head"


def check_settings(cfg: DictConfig) -> None:
    """Check the settings before anything is loaded.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).

    Raises:
        ConfigError: Naming the setting, its value, and what is allowed.
    """
    EvaluateSettings.read(cfg)
    if cfg.force and cfg.overlap == DROP:
        raise ConfigError(
            "force=true tests on all photographs, overlap=drop leaves some out: give one of them"
        )
    _check_data(cfg)


def _check_data(cfg: DictConfig) -> None:
    if cfg.data.fold is not None:
        raise ConfigError(
            f"data.fold={cfg.data.fold} has no effect here: part=test is the published test set"
        )
    if not is_external(cfg):
        if cfg.part != "all":
            raise ConfigError(f"part={cfg.part} is a part of a data set: name it with data=NAME")
        return
    for name, idle in _IDLE.items():
        if cfg.data[name] != idle:
            raise ConfigError(
                f"data.{name}={cfg.data[name]} has no effect here: an evaluation is on one data set, "
                "data=NAME, every photograph once; evaluate on another one in a second command"
            )


def check_preparation(cfg: DictConfig, prepared: dict[str, Any]) -> None:
    """Refuse another preparation of the photographs than that of the runs.

    Args:
        cfg: The composed config.
        prepared: Setting below ``data``: its value in the runs.

    Raises:
        ConfigError: Naming the setting.
    """
    for name, value in prepared.items():
        if cfg.data[name] not in (None, value):
            raise ConfigError(
                f"data.{name}={cfg.data[name]}, but the run was trained with {value}: photographs are "
                "prepared as in training; leave it out"
            )
