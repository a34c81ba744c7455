"""Methods of a report: their runs, names, order and references."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

from drgrade.reporting.schema import Method
from drgrade.runs.reader import Run
from drgrade.runs.settings import (
    Settings,
    as_text,
    differing_settings,
    is_majority,
    method_settings,
    method_title,
    short_setting,
)

_INITS = {"ssl": "pre-trained", "imagenet": "ImageNet weights", "random": "random init"}
_LAST = len(_INITS)
_PROTOCOL = ("protocol.", "split.")
_PROTOCOLS = ("published", "matched")
_OF_PROTOCOL = (*_PROTOCOL, "grading.", "pretraining.", "pretrain_on", "trainer.max_epochs")
"""Prefixes of settings that a protocol determines."""

_TITLES = ("method", "init", "protocol.name")


@dataclass(frozen=True)
class Grouped:
    """Runs by method.

    Attributes:
        methods: In display order.
        runs: Runs of each method, by key.
    """

    methods: Sequence[Method]
    runs: Mapping[str, Sequence[Run]]


def group(runs: Sequence[Run]) -> Grouped:
    """Group runs by method."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[run.method].append(run)
    settings = {key: method_settings(of_key[0].config) for key, of_key in by_key.items()}
    protocols = _protocol_names(settings)
    order = sorted(settings, key=lambda key: _sort_key(settings[key], protocols[key], key))
    labels = _labels({key: settings[key] for key in order}, protocols)
    lines = _lines({key: settings[key] for key in order}, protocols, labels)
    references = _references({key: settings[key] for key in order}, protocols)
    names = [name for name in differing_settings([settings[key] for key in order]) if name not in _TITLES]
    methods = [
        Method(
            key,
            labels[key],
            protocols[key],
            str(settings[key]["init"]),
            dict(short_setting(name, settings[key][name]) for name in names if name in settings[key]),
            _saw_test(by_key[key]),
            lines[key],
            _pretext(settings[key]),
            references.get(key, ""),
        )
        for key in order
    ]
    return Grouped(methods, by_key)


def _sort_key(settings: Settings, protocol: str, key: str) -> tuple[object, ...]:
    """Sort key: fine-tuning before probes, baselines last, pre-trained weights before others."""
    places = {init: place for place, init in enumerate(_INITS)}
    init, name = str(settings["init"]), method_title(settings)
    measure = 2 if is_majority(settings) else int(name == init)
    known = _PROTOCOLS.index(protocol) if protocol in _PROTOCOLS else len(_PROTOCOLS)
    return known, protocol, measure, name, places.get(init, _LAST), init, key


def _saw_test(runs: Sequence[Run]) -> bool | None:
    answers = {run.record.get("pretraining_saw_test") for run in runs}
    if True in answers:
        return True
    return None if None in answers else False


def _protocol_names(settings: Mapping[str, Settings]) -> dict[str, str]:
    """Name the protocols; if several share a name, append the settings that distinguish them."""
    protocols = {key: _protocol(each) for key, each in settings.items()}
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, protocol in protocols.items():
        by_name[str(protocol["protocol.name"])].append(key)
    names: dict[str, str] = {}
    for name, keys in by_name.items():
        for key, text in _distinguishing_settings({key: protocols[key] for key in keys}).items():
            names[key] = f"{name} ({text})" if text else name
    return names


def _protocol(settings: Settings) -> dict[str, object]:
    """Return the settings of fine-tuning; ``pretrain_on`` belongs to pre-training."""
    return {
        name: value
        for name, value in settings.items()
        if name.startswith(_PROTOCOL) and name != "protocol.pretrain_on"
    }


def _labels(settings: Mapping[str, Settings], protocols: Mapping[str, str]) -> dict[str, str]:
    """Name methods by title and initial weights, then by protocol, then by settings, as far as needed."""
    labels = {key: _label(each) for key, each in settings.items()}
    for keys in _shared(labels):
        if len({protocols[key] for key in keys}) > 1:
            labels |= {key: f"{labels[key]}, {protocols[key]}" for key in keys}
    for keys in _shared(labels):
        texts = _distinguishing_settings({key: settings[key] for key in keys})
        labels |= {key: f"{labels[key]}, {texts[key]}" for key in keys}
    return labels


def _label(settings: Settings) -> str:
    """Return title and initial weights; once if they are equal."""
    name, init = method_title(settings), str(settings["init"])
    if is_majority(settings):
        return name
    return _init(init) if name == init else f"{name}, {_init(init)}"


def _lines(
    settings: Mapping[str, Settings], protocols: Mapping[str, str], labels: Mapping[str, str]
) -> dict[str, str]:
    """Name methods without their protocol; methods that differ only in it share the name."""
    lines = {key: _label(each) for key, each in settings.items()}
    for keys in _shared(lines):
        if not _have_different_protocols(keys, protocols):
            others = {
                key: {name: value for name, value in settings[key].items() if not _is_of_protocol(name)}
                for key in keys
            }
            texts = _distinguishing_settings(others)
            lines |= {key: ", ".join(filter(None, [lines[key], texts[key]])) for key in keys}
    for keys in _shared(lines):
        if not _have_different_protocols(keys, protocols):
            lines |= {key: labels[key] for key in keys}
    return lines


def _have_different_protocols(keys: Sequence[str], protocols: Mapping[str, str]) -> bool:
    return len({protocols[key] for key in keys}) == len(keys)


def _is_of_protocol(name: str) -> bool:
    return name.startswith(_OF_PROTOCOL)


def _pretext(settings: Settings) -> str:
    return str(settings.get("pretext.name", "")) if settings["init"] == "ssl" else ""


def _references(settings: Mapping[str, Settings], protocols: Mapping[str, str]) -> dict[str, str]:
    """Find the reference of each method: random weights of the same encoder under the same protocol.

    If there are several, the one with the most other settings in common is chosen.
    """
    found: dict[str, str] = {}
    for key, each in settings.items():
        if each["init"] == "random" or is_majority(each):
            continue
        similar = [
            other
            for other, its in settings.items()
            if its["init"] == "random"
            and protocols[other] == protocols[key]
            and _encoder(its) == _encoder(each)
            and not is_majority(its)
        ]
        if similar:
            found[key] = max(similar, key=partial(_count_shared, settings, each))
    return found


def _count_shared(settings: Mapping[str, Settings], one: Settings, key: str) -> int:
    """Count the settings that two methods have in common."""
    other = settings[key]
    return sum(name in other and other[name] == value for name, value in one.items())


def _encoder(settings: Settings) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name.startswith("encoder.")}


def _init(init: str) -> str:
    return _INITS.get(init, f"from {PurePath(init).name}")


def _shared(labels: Mapping[str, str]) -> list[list[str]]:
    """Return groups of keys with equal labels."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for key, label in labels.items():
        by_label[label].append(key)
    return [keys for keys in by_label.values() if len(keys) > 1]


def _distinguishing_settings(settings: Mapping[str, Settings]) -> dict[str, str]:
    """Describe each method by the fewest settings that distinguish them; empty if all are equal."""
    names = differing_settings(list(settings.values()), or_missing=True)
    chosen: list[str] = []
    while names and len(_distinct_values(settings, chosen)) < len(_distinct_values(settings, names)):
        # The setting with the most different values; differing_settings returns important ones first.
        chosen.append(max(names, key=lambda name: len(_distinct_values(settings, [*chosen, name]))))
    return {key: ", ".join(_setting_text(name, each) for name in chosen) for key, each in settings.items()}


def _distinct_values(settings: Mapping[str, Settings], names: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(_setting_text(name, each) for name in names) for each in settings.values()}


def _setting_text(name: str, settings: Settings) -> str:
    if name not in settings:
        return f"no {name.removesuffix('._target_')}"
    shown, value = short_setting(name, settings[name])
    return f"{shown.rsplit('.', 1)[-1]}={as_text(value)}"
