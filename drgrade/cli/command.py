"""Run a command, from the command line or from Python: config, help and errors."""

import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from drgrade.config import (
    CONF,
    CheckedSettings,
    as_override,
    choices,
    comments,
    groups,
    header,
    initialized_hydra,
    nearest,
    parse_override,
    refuse_missing,
    refuse_new_settings,
    setting_names,
    text_settings,
)
from drgrade.errors import ConfigError, DrgradeError, describe_disk_error
from drgrade.processes import end_with_parent, exit_interrupted, interruptible, run_child
from drgrade.progress import say

_FULL_ERROR = os.environ.setdefault("DRGRADE_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
"""True if the user wants stack traces. Started processes read it under a name of its own, because :func:`run`
changes Hydra's variable."""

_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--info", "-i", "--experimental-rerun", "--shell-completion"),
}
"""Options of Hydra that take a value."""

_running: list[type[CheckedSettings]] = []
"""Settings of the command that runs."""


def run(function: Callable[[DictConfig], object], settings: type[CheckedSettings]) -> None:
    """Compose a command's config from the command line and pass it to a function.

    An error that the user can correct is printed as one line, and the exit status is 1.

    Args:
        function: Receives the composed config.
        settings: Declares the command's settings and names its config.
    """
    _running[:] = [settings]
    if {"-h", "--help", "help"}.intersection(sys.argv[1:]):
        print(help_text(settings, sys.argv[1:]))
        return
    logging.raiseExceptions = False  # on a full disk, each line of the log would print a stack trace
    end_with_parent()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes exceptions on instead of printing them
    try:
        with _signals_raised():
            sys.argv[1:] = arguments(sys.argv[1:], settings)
            _share_run_folder(settings.config)
            main = hydra.main(config_path=str(CONF), config_name=settings.config, version_base="1.3")
            main(_job(function, settings))()
    except Exception as error:
        message = explain(error)
        if _FULL_ERROR or message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        say("interrupted")
        exit_interrupted()


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Turn signals into KeyboardInterrupt in the main process; a further process of a run ends at once."""
    from drgrade.training.distributed import is_main_process

    if is_main_process():
        with interruptible():
            yield
        return
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield


def arguments(given: Sequence[str], settings: type[CheckedSettings]) -> list[str]:
    """Rewrite a command line for Hydra: options, then overrides.

    Values of text and path settings are quoted where necessary, and positional paths become the value of the
    setting that receives them.

    Raises:
        ConfigError: If an argument is neither an option nor a setting, and the command takes no paths.
    """
    kinds = text_settings(settings) | {"hydra.run.dir": "one", "hydra.sweep.dir": "one"}
    options: list[str] = []
    overrides: list[str] = []
    paths: list[str] = []
    rest = iter(given)
    for argument in rest:
        name, _, value = argument.lstrip("+").partition("=")
        if argument.startswith("-") and argument != "-":
            options += [argument, *([next(rest, "")] if argument in _WITH_VALUE else [])]
        elif not _is_setting(argument, settings, kinds):
            paths.append(argument)
        elif kinds.get(name) or (name not in kinds and os.sep in value and os.path.lexists(value)):
            overrides.append(quote(argument, kinds.get(name) == "many", settings.sweeps))
        else:
            overrides.append(argument)
    if not paths:
        return [*options, *overrides]
    if settings.positional is None:
        hint = f" ({next(iter(settings.model_fields))}={paths[0]}?)" if os.path.lexists(paths[0]) else ""
        raise ConfigError(f"{paths[0]} is not a setting; settings are written name=value{hint}")
    return [*options, *with_paths(overrides, settings.positional, paths)]


def quote(argument: str, many: bool, sweeps: bool) -> str:
    """Quote the value of an override that is a text or a path, if Hydra would parse it differently.

    Args:
        argument: ``name=value``.
        many: The setting is a list, written with commas; a value that is an existing path is one item.
        sweeps: Commas separate the values of a sweep, unless the value is an existing path.

    Example:
        >>> quote("data.root=/photos/ddr (copy)", many=False, sweeps=True)
        "data.root='/photos/ddr (copy)'"
    """
    name, _, value = argument.partition("=")
    if value.startswith("~/"):
        value = os.path.expanduser(value)  # noqa: PTH111 - a Path would drop a slash at the end
    exists = os.path.lexists(value)
    read = _parsed(f"{name}={value}")
    if value in ("", "null") or read == value:
        return f"{name}={value}"
    explicit = read is not None and (value[0] in "'\"[" or sweeps)
    if explicit and not exists:
        return argument
    if many and not exists:
        return f"{name}={as_override([part.strip() for part in value.split(',') if part.strip()])}"
    return f"{name}={as_override(value)}"


def with_paths(overrides: Sequence[str], setting: str, paths: Sequence[str]) -> list[str]:
    """Add positional paths to the overrides, as further values of a setting."""
    begin = f"{setting}="
    values: list[str] = []
    for override in overrides:
        if override.startswith(begin):
            read = _parsed(override)
            values += read if isinstance(read, list) else [str(read)]
    values += paths
    value = values[0] if len(values) == 1 else values
    return [*(each for each in overrides if not each.startswith(begin)), begin + as_override(value)]


def _parsed(argument: str) -> Any:
    """Return the value that Hydra reads; None if it cannot read one."""
    override = parse_override(argument)
    return None if override is None else override.value()


def _is_setting(argument: str, settings: type[CheckedSettings], kinds: Container[str]) -> bool:
    """Return True if an argument is an override; a path may contain an equals sign, too."""
    if argument.startswith("~") and not os.path.lexists(argument):
        return True
    name, equals, _ = argument.partition("=")
    if settings.positional is None or not equals:
        return bool(equals)
    plain = re.fullmatch(r"\+{0,2}([A-Za-z_][\w.]*|hydra/[\w/]+)", name)
    return plain is not None and (name.lstrip("+") in kinds or not os.path.lexists(argument))


def _share_run_folder(config: str) -> None:
    """Give all processes started by torchrun or SLURM the same folder, because their start times differ."""
    from drgrade.training.distributed import broadcast, started_together

    if not started_together() or any(argument.startswith("hydra.run.dir=") for argument in sys.argv):
        return
    own = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml")))
    now = datetime.now()
    folder = re.sub(r"\$\{now:([^}]+)\}", lambda match: now.strftime(match[1]), own["hydra"]["run"]["dir"])
    sys.argv.append(f"hydra.run.dir={broadcast(folder)}")


def fail(message: str) -> NoReturn:
    """Print an error and exit with status 1."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _job(
    function: Callable[[DictConfig], object], settings: type[CheckedSettings]
) -> Callable[[DictConfig], None]:
    """Wrap the function for Hydra: check the config first, print errors as one line."""

    def job(cfg: DictConfig) -> None:
        try:
            refuse_new_settings(settings.config, HydraConfig.get().overrides.task)
            refuse_missing(cfg, settings.config)
            settings.read(cfg)
            function(cfg)
        except Exception as error:
            # In a sweep, Hydra has to see the error to know that this job failed and others did not.
            message = explain(error) if HydraConfig.get().mode == RunMode.RUN and not _FULL_ERROR else None
            if message is None:
                raise
            fail(message)

    return job


@contextmanager
def in_job(
    settings: type[CheckedSettings], overrides: Sequence[str], given: Mapping[str, object]
) -> Iterator[DictConfig]:
    """Compose and check the config of a command that is called from Python.

    Interpolations of the config see the folder of the job, as in a job of Hydra.

    Args:
        settings: Declares the command's settings and names its config.
        overrides: As on the command line.
        given: Further settings, as Python values.

    Raises:
        ConfigError: If a setting is unknown or missing, or its value is not allowed.
    """
    arguments = [*overrides, *_as_overrides(given)]
    refuse_new_settings(settings.config, arguments)
    outer_command, _running[:] = _running[:], [settings]
    try:
        with initialized_hydra():
            cfg = hydra.compose(settings.config, arguments, return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(explain(error) or str(error)) from error
    finally:
        _running[:] = outer_command
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
        refuse_missing(cfg, settings.config)
        settings.read(cfg)
        if "paths" in cfg and folder == Path(str(cfg.paths.get("run") or "")):
            folder.mkdir(parents=True, exist_ok=True)
        yield cfg
    finally:
        shared.cfg = outer
        if file is not None:
            main.__file__ = file


def run_training(overrides: Sequence[str], given: Mapping[str, object], folder: Path) -> None:
    """Run ``drgrade train`` in a process of its own; raise DrgradeError if it fails."""
    arguments = [*overrides, *_as_overrides({**given, "hydra.run.dir": folder})]
    status = run_child([sys.executable, "-m", "drgrade.cli.train", *arguments])
    if status:
        raise DrgradeError(f"training ended with status {status}; see the messages above")


def _as_overrides(given: Mapping[str, object]) -> list[str]:
    return [f"{name}={as_override(value)}" for name, value in given.items()]


def explain(error: BaseException) -> str | None:
    """Describe an error that the user can correct; return None for an error of the program."""
    for cause in _causes(error):
        if isinstance(cause, DrgradeError):
            return str(cause)  # with its line breaks: for a missing data set it shows the layout
        if message := describe_disk_error(cause):
            return message
        if type(cause).__name__ == "MisconfigurationException":  # Lightning's; its import takes seconds
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
    """Turn Hydra's message about an override into one sentence with the nearest existing name."""
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
    """Describe the remedy for an override that does not follow Hydra's grammar."""
    return (
        f"{override!r} cannot be read: a value with brackets, commas or other special characters needs "
        """two pairs of quotes, as in 'logger.notes="first (of two)"'"""
    )


def _unknown_key(key: str) -> str:
    if key == "experiment":
        return f"an experiment is chosen with +experiment=NAME; {nearest('', choices(key))}"
    known = _known_settings()
    if key.startswith("data.") and "data.source" not in known and "data" in groups(_config()):
        return f"{key} is a setting of a data set and none is named: add data=NAME"
    return f"there is no setting {key!r} here; {nearest(key, known)}"


def _config() -> str:
    return _running[0].config if _running else "train"


def _known_settings() -> list[str]:
    """Return every setting of the command's config with the given data set, as ``a.b.c``."""
    data = [argument for argument in sys.argv[1:] if re.fullmatch(r"data=\w+", argument)]
    chosen = [each for each in data if each.removeprefix("data=") in choices("data")]
    with initialized_hydra():
        cfg = hydra.compose(_config(), chosen if "data" in groups(_config()) else [])
    return sorted(setting_names(cfg))


def help_text(settings: type[CheckedSettings], given: Sequence[str] = ()) -> str:
    """Return the help of a command, from the comments in its YAML files.

    The settings of a group that is chosen on the command line (``given``) are listed, too.
    """
    config = CONF / f"{settings.config}.yaml"
    own = groups(settings.config)
    parts = [header(config), "", "settings, with their defaults:", *_lines(config, "")]
    for argument in given:
        group, _, choice = argument.partition("=")
        if group in own and choice in choices(group):
            parts += ["", f"settings of {argument}:"]
            parts += [line for file in group_files(group, choice) for line in _lines(file, f"{group}.")]
    offered = {group: choice for group, choice in own.items() if group not in _WIRING}
    if offered:
        parts += ["", "groups (GROUP=NAME, with the default first):"]
        for group, default in offered.items():
            others = [name for name in choices(group) if name != default]
            parts += _columns(f"{group}={default or ''}", ", ".join(others))
    return "\n".join([*parts, "", "--cfg job shows the composed config; --hydra-help lists Hydra's options."])


_WIRING = ("hydra", "paths", "preparation@photographs", "callbacks", "local")
"""Groups with one choice."""


def group_files(group: str, choice: str) -> list[Path]:
    """Return the YAML files of a choice of a group: those that it is based on, then its own."""
    file = CONF / group / f"{choice}.yaml"
    defaults = cast(DictConfig, OmegaConf.load(file)).get("defaults", [])
    based_on = [name for name in defaults if isinstance(name, str) and name != "_self_"]
    return [*(each for name in based_on for each in group_files(group, name)), file]


def _lines(file: Path, prefix: str) -> Iterator[str]:
    """Yield lines of help for the settings of a YAML file that have a comment."""
    values = cast(DictConfig, OmegaConf.load(file))
    for name, comment in comments(file).items():
        yield from _columns(f"{prefix}{name}={default_text(values, name)}", comment)


def default_text(values: DictConfig, name: str) -> str:
    """Return a default value as it is written in YAML; nothing for a required one."""
    raw: Any = OmegaConf.to_container(values, resolve=False)
    for part in name.split("."):
        raw = raw[part]
    if raw == "???":
        return ""
    if isinstance(raw, str):
        return raw
    return yaml.safe_dump(raw, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _columns(left: str, right: str) -> list[str]:
    """Return a name and its explanation in two columns."""
    indent = " " * 30
    wrapped = textwrap.wrap(right, 110, initial_indent=indent, subsequent_indent=indent) or [indent]
    if len(left) > 26:
        return [f"  {left}", *wrapped]
    return [f"  {left:28}{wrapped[0].strip()}", *wrapped[1:]]
