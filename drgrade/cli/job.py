"""Run commands from Python: compose a config as Hydra does for a job, without Hydra's command line."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from drgrade.checked_settings import CheckedSettings
from drgrade.cli.command import explain
from drgrade.config import as_override, initialized_hydra, refuse_missing, refuse_new_settings
from drgrade.errors import ConfigError, DrgradeError


@contextmanager
def in_job(
    command: type[CheckedSettings], overrides: Sequence[str], settings: Mapping[str, object]
) -> Iterator[DictConfig]:
    """Compose and check the config of a command, and let interpolations see the folder of the job.

    Args:
        command: Declares the settings of the command and names its config.
        overrides: As on the command line.
        settings: Further settings, as Python values.

    Yields:
        The composed config.

    Raises:
        ConfigError: If a setting is unknown or missing, or its value is not allowed.
    """
    given = [*overrides, *(f"{name}={as_override(value)}" for name, value in settings.items())]
    refuse_new_settings(command.config, given)
    try:
        with initialized_hydra():
            cfg = hydra.compose(command.config, given, return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(explain(error) or str(error)) from error
    with open_dict(cfg):
        folder = Path(cfg.hydra.run.dir).absolute()
        cfg.hydra.runtime.output_dir = str(folder)
    shared = HydraConfig.instance()
    outer, shared.cfg = shared.cfg, cast(Any, OmegaConf.create({"hydra": cfg.hydra}))
    main = sys.modules["__main__"]
    file = main.__dict__.pop("__file__", None)  # or worker processes would run the caller's script again
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        refuse_missing(cfg, command.config)
        command.read(cfg)
        if "paths" in cfg and folder == Path(str(cfg.paths.get("run") or "")):
            folder.mkdir(parents=True, exist_ok=True)
        yield cfg
    finally:
        shared.cfg = outer
        if file is not None:
            main.__file__ = file


def run_training(overrides: Sequence[str], settings: Mapping[str, object], folder: Path) -> None:
    """Run ``drgrade train`` in a process of its own, with a given folder.

    Raises:
        DrgradeError: If it fails; its messages have been printed.
    """
    given = [*overrides, *(f"{name}={as_override(value)}" for name, value in settings.items())]
    command = [sys.executable, "-m", "drgrade.cli.train", *given, f"hydra.run.dir={as_override(folder)}"]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DrgradeError(f"training ended with status {status}; see the messages above")
