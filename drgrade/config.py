"""The config folder: where it is, what it offers, and further data sets by their names in it."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import drgrade
from drgrade.errors import ConfigError

CONF = next(
    folder
    for folder in (Path(drgrade.__file__).parent / "conf", Path(drgrade.__file__).parents[1] / "conf")
    if folder.is_dir()
)
"""The config folder: inside the package when it is installed from a wheel, beside it in a checkout."""

ROLES = ("labelled", "unlabelled", "external")
"""Settings ``data.ROLE`` that name further data sets."""


def choices(group: str) -> list[str]:
    """What a config group offers.

    Args:
        group: Folder below ``conf/``.

    Returns:
        Names, sorted.
    """
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


def nearest(word: str, known: list[str]) -> str:
    """Half a sentence on what a mistyped word may have meant."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there is: {', '.join(known)}" if len(known) <= 40 else "see docs/configuration.md"


_HINTS = {
    "data.root": "the folder of the data set",
    "encoder.name": "a model of timm",
    "checkpoint": "a run's folder",
}


def settings(node: DictConfig, prefix: str = "") -> list[str]:
    """Every setting of a config, as ``a.b.c``; nothing is resolved.

    Args:
        node: The config.
        prefix: Goes before each.

    Returns:
        Names, parents before what is in them.
    """
    found = []
    for name in map(str, node):
        found.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not (
            child._is_none() or child._is_interpolation() or child._is_missing()
        ):
            found += settings(child, f"{prefix}{name}.")
    return found


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse a config in which a value that has to be given is not.

    Args:
        cfg: A composed config.

    Raises:
        ConfigError: Naming the setting and what it is.
    """
    for name in sorted(settings(cfg)):
        parent, _, key = name.rpartition(".")
        if OmegaConf.is_missing(OmegaConf.select(cfg, parent) if parent else cfg, key):
            hint = _HINTS.get(name, "its value")
            raise ConfigError(f"{name} is not given; add {name}=... ({hint}) to the command")


def groups(config: str) -> list[str]:
    """Groups in a config's defaults list.

    Args:
        config: Name of a config in ``conf/``.

    Returns:
        Names, in the order of the list.
    """
    own = OmegaConf.load(CONF / f"{config}.yaml")
    chosen = [str(name) for choice in own.defaults if isinstance(choice, DictConfig) for name in choice]
    return [name.removeprefix("optional ") for name in chosen if not name.startswith("override ")]


def refuse_new_settings(config: str, overrides: Iterable[str]) -> None:
    """Hydra lets ``+anything=value`` add a setting that nobody reads, ``+experimnt=x`` among them.

    Args:
        config: Name of a config in ``conf/``.
        overrides: Of the command line.

    Raises:
        ConfigError: If one adds a setting at the top level.
    """
    own = OmegaConf.load(CONF / f"{config}.yaml")
    known = sorted({*groups(config), *map(str, own), *(["experiment", "scale"] if config == "train" else [])})
    for override in overrides:
        added = re.match(r"\++([\w-]+)", override)
        if added and added.group(1) not in known:
            raise ConfigError(
                f"{override}: nothing reads {added.group(1)!r}; {nearest(added.group(1), known)}"
            )


def further_sources(cfg: DictConfig) -> dict[str, list[Any]]:
    """Make the sources of ``data.labelled``, ``data.unlabelled`` and ``data.external``.

    Args:
        cfg: A composed config with ``data`` and ``paths``. Each of the settings is a list of names of
            ``conf/data``, or of mappings with such a name as ``data`` and settings that differ:
            ``{data: folder, name: more, root: DIR}``.

    Returns:
        Role: sources.

    Raises:
        ConfigError: If an item is no such name, or sets what there is not.
    """
    return {role: [_source(role, item, cfg) for item in _items(role, cfg)] for role in ROLES}


def _items(role: str, cfg: DictConfig) -> list[Any]:
    items = OmegaConf.select(cfg, f"data.{role}", default=[])
    if not OmegaConf.is_list(items):
        raise ConfigError(f"data.{role}={items} is not a list: data.{role}=[eyepacs,ddr]")
    return list(items)


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
                f"data.{role}: {setting!r} cannot be set for data={name}; what can: {', '.join(known)} "
                "(how photographs are prepared is the same for all data sets)"
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
