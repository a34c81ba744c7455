"""What all commands share: the config folder, and errors that are one line."""

import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drgrade.config import CONF, choices, groups, nearest, refuse_missing, refuse_new_settings, settings
from drgrade.errors import DrgradeError

_FULL_ERROR = os.environ.setdefault("DRGRADE_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
"""Whether the user wants stack traces. Kept under a name of its own for the processes that this one starts,
in which Hydra's
variable is what :func:`run` has made of it."""


def run(function: Callable[[DictConfig], object], config: str) -> None:
    """Compose a config from the command line and hand it to a function.

    What the user can mend ends as one line and status 1.

    Args:
        function: Does the work.
        config: Name of the config in ``conf/``.
    """
    _running[:] = [config]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions on, instead of printing them in its own way
    try:
        _share_run_folder(config)
        hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(_job(function, config))()
    except Exception as error:
        message = explain(error)
        if _FULL_ERROR or message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _share_run_folder(config: str) -> None:
    """Give the processes that torchrun or SLURM has started the same folder: each has the time of its own."""
    from drgrade.training.distributed import agree, started_together

    if not started_together() or any(argument.startswith("hydra.run.dir=") for argument in sys.argv):
        return
    own = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml")))
    now = datetime.now()
    folder = re.sub(r"\$\{now:([^}]+)\}", lambda found: now.strftime(found[1]), own["hydra"]["run"]["dir"])
    # Beside the other overrides: Hydra does not take them both before and after an option.
    places = (place for place, argument in enumerate(sys.argv) if re.match(r"[^-].*=", argument) and place)
    sys.argv.insert(next(places, len(sys.argv)), f"hydra.run.dir={agree(folder)}")


def fail(message: str) -> NoReturn:
    """Print what is wrong, and exit with status 1.

    Args:
        message: What is wrong and what to do.
    """
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _job(function: Callable[[DictConfig], object], config: str) -> Callable[[DictConfig], None]:
    """What Hydra runs: the function, its errors told in our way."""

    def job(cfg: DictConfig) -> None:
        try:
            refuse_new_settings(config, HydraConfig.get().overrides.task)
            refuse_missing(cfg)
            function(cfg)
        except Exception as error:
            # In a sweep Hydra has to see the error, to tell this job's end from the others'; alone it would
            # only add noise.
            message = explain(error) if HydraConfig.get().mode == RunMode.RUN and not _FULL_ERROR else None
            if message is None:
                raise
            fail(message)

    return job


def explain(error: BaseException) -> str | None:
    """Say what is wrong, if it is something the user can mend.

    Args:
        error: What was raised.

    Returns:
        The sentence, or None for an error of the program.
    """
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    for cause in _causes(error):
        if isinstance(cause, DrgradeError):
            return str(cause)  # its line breaks are meant: a data set that is not there shows the layout
        if isinstance(cause, MisconfigurationException):
            return _one_line(str(cause))
        if isinstance(cause, OverrideParseException):
            return _unreadable(str(cause.override))
        if isinstance(cause, ConfigCompositionException | MissingConfigException):
            return _one_line(explain_override(str(cause)))
    if isinstance(error, OmegaConfBaseException | InstantiationException | HydraException):
        return _one_line(str(error))
    return None


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def explain_override(message: str) -> str:
    """Turn Hydra's message about an override into one sentence with the nearest thing that exists.

    Args:
        message: Hydra's message.

    Returns:
        One sentence.
    """
    key = re.search(r"Could not override '([^']+)'", message)
    if key:
        return _unknown_key(key.group(1))
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if choice:
        group, name = choice.groups()
        return f"there is no {group}={name}; {nearest(name, choices(group))}"
    group_only = re.search(r"Could not find '([^']+)'", message)
    if group_only:
        return f"there is no config {group_only.group(1)!r}"
    return message.split("\nSet the environment")[0]


def _unreadable(override: str) -> str:
    """What to do about an override that Hydra's grammar has no place for."""
    return (
        f"{override!r} cannot be read: a value with blanks, brackets, commas or other signs needs two pairs "
        """of quotes, as in 'data.root="/photos/ddr (copy)"'; and ~ is not expanded, write $HOME"""
    )


def _unknown_key(key: str) -> str:
    if key == "experiment":
        return f"an experiment is chosen with +experiment=NAME; {nearest('', choices(key))}"
    known = _settings()
    if key.startswith("data.") and "data.source" not in known and "data" in groups(_running[0]):
        return f"{key} is a setting of a data set and none is named: add data=NAME"
    return f"there is no setting {key!r} here; {nearest(key, known)}"


_running = ["train"]
"""Name of the config of the command that runs."""


def _settings() -> list[str]:
    """Every setting of the command's config with the data set that was asked for, as ``a.b.c``."""
    chosen = [argument for argument in sys.argv[1:] if re.fullmatch(r"data=\w+", argument)]
    known = [each for each in chosen if each.removeprefix("data=") in choices("data")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(_running[0], known if "data" in groups(_running[0]) else [])
    return sorted(settings(cfg))
