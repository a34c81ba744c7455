"""The methods of a report: which runs are of one method, and what it is called."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from drgrade.report.contents import Method
from drgrade.report.reading import Run
from drgrade.report.settings import Settings, as_text, differing, said, settings_of_method, title

_INITS = {"ssl": "pre-trained", "imagenet": "ImageNet weights", "random": "random init"}
_LAST = len(_INITS)
_PROTOCOL = ("protocol.", "split.")
_TITLES = ("method", "init", "protocol.name")


@dataclass(frozen=True)
class Grouped:
    """Runs by method.

    Attributes:
        methods: In the order in which they are shown.
        runs: Of each method, by its key.
    """

    methods: Sequence[Method]
    runs: Mapping[str, Sequence[Run]]


def group(runs: Sequence[Run]) -> Grouped:
    """Group runs by method.

    Args:
        runs: Of a report.

    Returns:
        The methods, and the runs of each.
    """
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[run.method].append(run)
    settings = {key: settings_of_method(of_key[0].config) for key, of_key in by_key.items()}
    protocols = _protocol_names(settings)
    order = sorted(settings, key=lambda key: _place(settings[key], protocols[key], key))
    labels = _labels({key: settings[key] for key in order}, protocols)
    names = [name for name in differing([settings[key] for key in order]) if name not in _TITLES]
    methods = [
        Method(
            key,
            labels[key],
            protocols[key],
            str(settings[key]["init"]),
            dict(said(name, settings[key][name]) for name in names if name in settings[key]),
            _saw_test(by_key[key]),
        )
        for key in order
    ]
    return Grouped(methods, by_key)


def _place(settings: Settings, protocol: str, key: str) -> tuple[object, ...]:
    """Published protocol first; the pre-trained encoder before the same one without."""
    places = {init: place for place, init in enumerate(_INITS)}
    init = str(settings["init"])
    return protocol != "published", protocol, title(settings), places.get(init, _LAST), init, key


def _saw_test(runs: Sequence[Run]) -> bool | None:
    answers = {run.record.get("pretraining_saw_test") for run in runs}
    if True in answers:
        return True
    return None if None in answers else False


def _protocol_names(settings: Mapping[str, Settings]) -> dict[str, str]:
    """Names of protocols; where settings were changed under one name, with what tells them apart."""
    protocols = {key: _protocol(each) for key, each in settings.items()}
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, protocol in protocols.items():
        by_name[str(protocol["protocol.name"])].append(key)
    names: dict[str, str] = {}
    for name, keys in by_name.items():
        for key, words in _told_apart({key: protocols[key] for key in keys}).items():
            names[key] = f"{name} ({words})" if words else name
    return names


def _protocol(settings: Settings) -> dict[str, object]:
    """How fine-tuning runs. ``pretrain_on`` is the pre-training's, and absent where there is none."""
    return {
        name: value
        for name, value in settings.items()
        if name.startswith(_PROTOCOL) and name != "protocol.pretrain_on"
    }


def _labels(settings: Mapping[str, Settings], protocols: Mapping[str, str]) -> dict[str, str]:
    """Title and first weights; then, only where methods would share that, the protocol; then settings."""
    labels = {key: f"{title(each)}, {_init(str(each['init']))}" for key, each in settings.items()}
    for keys in _shared(labels):
        if len({protocols[key] for key in keys}) > 1:
            labels |= {key: f"{labels[key]}, {protocols[key]}" for key in keys}
    for keys in _shared(labels):
        words = _told_apart({key: settings[key] for key in keys})
        labels |= {key: f"{labels[key]}, {words[key]}" for key in keys}
    return labels


def _init(init: str) -> str:
    return _INITS.get(init, f"from {PurePath(init).name}")


def _shared(labels: Mapping[str, str]) -> list[list[str]]:
    """Keys of the methods that share a label."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for key, label in labels.items():
        by_label[label].append(key)
    return [keys for keys in by_label.values() if len(keys) > 1]


def _told_apart(settings: Mapping[str, Settings]) -> dict[str, str]:
    """As few settings as tell things apart, in words; empty if they are all the same."""
    names = differing(list(settings.values()), or_lacking=True)
    chosen: list[str] = []
    while names and len(_kinds(settings, chosen)) < len(_kinds(settings, names)):
        # The setting that tells most apart; of equal ones the most telling, which comes first.
        chosen.append(max(names, key=lambda name: len(_kinds(settings, [*chosen, name]))))
    return {key: ", ".join(_word(name, each) for name in chosen) for key, each in settings.items()}


def _kinds(settings: Mapping[str, Settings], names: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(_word(name, each) for name in names) for each in settings.values()}


def _word(name: str, settings: Settings) -> str:
    if name not in settings:
        return f"no {name.removesuffix('._target_')}"
    shown, value = said(name, settings[name])
    return f"{shown.rsplit('.', 1)[-1]}={as_text(value)}"
