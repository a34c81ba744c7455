"""Which settings of a run make it another method, and how settings are told apart in few words."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from drgrade.renames import canonical
from drgrade.runs.run_dir import WITHOUT_EFFECT

MAJORITY = "majority class"

Settings = Mapping[str, object]
"""``a.b``: value, of a resolved config."""

_PLACES_AND_NAMES = ("name", "sweep", "resume", "task", "test", "download", "paths", "hydra", "logger")
_AXES = ("label_fraction", "fold", "folds", "seed")
_SAID_ELSEWHERE = ("data", "photographs", "split", "scale", "epochs", "steps")
"""Photographs and split are compared by content, over all runs of a report; ``scale``, ``epochs`` and
``steps`` only hand on values to settings that are looked at."""

_COUNTED = ("data.batch_size", "data.balanced", "split.val_fraction", "split.val_within_fraction")
"""What counts of those."""

_WITHOUT_EFFECT = (
    *(f"trainer.{name}" for name in WITHOUT_EFFECT if name != "_target_"),
    "callbacks.progress",
    "callbacks.seed_each_epoch",
    "callbacks.features",
    "pretext.seed",
)
"""On what a run is made and how it is watched; a batch is counted over all devices. ``pretext.seed``
follows the seed."""

_ENDINGS = (".datamodule.seed", ".num_workers", ".workers", ".download")

_OF_PRETRAINING = ("pretext", "pretraining", "pretrain_on", "protocol.pretrain_on")


def flat(config: Mapping[str, Any]) -> dict[str, object]:
    """Flatten a resolved config.

    Args:
        config: Nested mappings.

    Returns:
        ``a.b``: value; lists stay whole.
    """
    return dict(_leaves(config, ""))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def settings_of_method(config: Mapping[str, Any]) -> dict[str, object]:
    """What the runs of one method have in common.

    Left out are the axes (label fraction, fold, seed), places, names, devices and workers, and how a run is
    watched. What a run did not use does not count either: without ``init=ssl`` there is no pre-training.

    Args:
        config: Resolved config of a run.

    Returns:
        The settings that count, sorted by name.
    """
    ignored: tuple[str, ...] = (*_AXES, *_PLACES_AND_NAMES, *_SAID_ELSEWHERE, *_WITHOUT_EFFECT)
    init = config.get("init")
    if init in ("random", "imagenet"):
        ignored += _OF_PRETRAINING
    elif init != "ssl":  # a given encoder
        ignored += _OF_PRETRAINING[:2]
    return {
        name: value
        for name, value in sorted(flat(canonical(config)).items())
        if name in _COUNTED or not (_is_below(name, ignored) or name.endswith(_ENDINGS))
    }


def _is_below(name: str, nodes: Sequence[str]) -> bool:
    return any(name == node or name.startswith(f"{node}.") for node in nodes)


def method_key(config: Mapping[str, Any]) -> str:
    """Key of a run's method: what it is, and a hash of all settings that count.

    Args:
        config: Resolved config of a run.

    Returns:
        Letters, digits and hyphens; the same whatever else is in a report.
    """
    settings = settings_of_method(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = [title(settings), PurePath(str(settings["init"])).name, str(settings["protocol.name"]), digest]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def title(settings: Settings) -> str:
    """What people call a method, apart from its first weights: the experiment's word, or the encoder's.

    Args:
        settings: Of the method.
    """
    if is_majority(settings):
        return MAJORITY
    if settings.get("method"):
        return str(settings["method"])
    return str(settings.get("encoder.name") or said("encoder._target_", settings["encoder._target_"])[1])


def is_majority(settings: Settings) -> bool:
    """Whether a method gives the most frequent grade to every photograph: no encoder is run.

    Args:
        settings: Of the method.
    """
    return str(settings.get("protocol.probe._target_", "")).endswith(".MajorityProbe")


def differing(methods: Sequence[Settings], or_lacking: bool = False) -> list[str]:
    """Names of settings in which methods differ, the most telling first.

    A value that interpolation has handed to several settings is named once, by the shortest of their names.

    Args:
        methods: Settings of each.
        or_lacking: Also settings that only some have, with the same value; they come last.

    Returns:
        Names.
    """
    names = sorted({name for method in methods for name in method}, key=_rank)
    found: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for name in names:
        values = [as_text(method[name]) if name in method else None for method in methods]
        kinds = set(values)
        if len(kinds - {None}) > 1:
            found.setdefault(json.dumps(values), name)
        elif or_lacking and len(kinds) > 1:
            lacking.setdefault(json.dumps(values), name)
    return [*found.values(), *lacking.values()]


def _rank(name: str) -> tuple[bool, int, int, str]:
    """Before others: what users set, which is not deep."""
    derived = name.startswith(("grading.", "pretraining.", "split."))
    return derived, name.count("."), len(name), name


def as_text(value: object) -> str:
    """A value as people would write it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def said(name: str, value: object) -> tuple[str, object]:
    """Name and value for people: ``head._target_: a.b.CornHead`` is ``head: CornHead``."""
    if name.endswith("._target_"):
        return name.removesuffix("._target_"), str(value).rsplit(".", 1)[-1]
    return name, value


HARMLESS_TEXT = re.compile(r"[\w .,+=()-]*")
"""What strings of settings may consist of: no place on a disk, no address, nothing to be filled in."""


def plain(value: Any) -> Any:
    """A value without what may be a place, an address or code: such strings become None.

    Args:
        value: As JSON holds it.
    """
    if isinstance(value, Mapping):
        return {str(name): None if name == "weights" else plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if not isinstance(value, str) or HARMLESS_TEXT.fullmatch(value) else None
