"""Methods of a report: their runs, names, order, references and published results."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

import yaml

from drgrade.reporting.schema import Method, PublishedRow
from drgrade.runs.reader import Run
from drgrade.runs.settings import (
    IMAGENET,
    SSL,
    Settings,
    as_text,
    differing_settings,
    first_weights,
    is_majority,
    method_settings,
    method_title,
    published_weights,
    short_setting,
)
from drgrade.stats.formatting import listed

_PUBLISHED = Path(__file__).with_name("published.yaml")
_INITS = {"ssl": "pre-trained", "imagenet": "ImageNet weights", "random": "random init"}
_PROTOCOL = ("protocol.", "split.")
_PROTOCOLS = ("published", "matched", "tuned")
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
    unsorted = {key: method_settings(of_key[0].config) for key, of_key in by_key.items()}
    protocols = _protocol_names(unsorted)
    order = sorted(unsorted, key=lambda key: _sort_key(unsorted[key], protocols[key], key))
    settings = {key: unsorted[key] for key in order}
    labels = _labels(settings, protocols)
    lines = _lines(settings, protocols, labels)
    references = _references(settings, protocols)
    names = [
        name
        for name in differing_settings(list(settings.values()))
        if name not in _TITLES and not name.endswith(".weights")  # the label names the file
    ]
    methods = [
        Method(
            key,
            labels[key],
            protocols[key],
            str(own["init"]),
            dict(short_setting(name, own[name]) for name in names if name in own),
            _saw_test(by_key[key]),
            lines[key],
            str(own.get("pretext.name", "")) if own["init"] == "ssl" else "",
            references.get(key, ""),
        )
        for key, own in settings.items()
    ]
    return Grouped(methods, by_key)


def is_trained(run: Run) -> bool:
    """Return whether a run takes optimiser steps; probes do not."""
    return not run.config["protocol"].get("probe")


def _sort_key(settings: Settings, protocol: str, key: str) -> tuple[object, ...]:
    """Sort key: fine-tuning before probes, baselines last, pre-trained weights before others."""
    places = {init: place for place, init in enumerate(_INITS)}
    init, name = str(settings["init"]), method_title(settings)
    measure = 2 if is_majority(settings) else int(name == init)
    known = _PROTOCOLS.index(protocol) if protocol in _PROTOCOLS else len(_PROTOCOLS)
    return known, protocol, measure, name, places.get(init, len(places)), init, key


def _saw_test(runs: Sequence[Run]) -> bool | None:
    answers = {run.record.get("pretraining_saw_test") for run in runs}
    if True in answers:
        return True
    return None if None in answers else False


def _protocol_names(settings: Mapping[str, Settings]) -> dict[str, str]:
    """Name the protocols; if several share a name, append the settings that distinguish them."""
    protocols = {  # pretrain_on belongs to pre-training
        key: {
            name: value
            for name, value in each.items()
            if name.startswith(_PROTOCOL) and name != "protocol.pretrain_on"
        }
        for key, each in settings.items()
    }
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, protocol in protocols.items():
        by_name[str(protocol["protocol.name"])].append(key)
    names: dict[str, str] = {}
    for name, keys in by_name.items():
        for key, text in _distinguishing_settings({key: protocols[key] for key in keys}).items():
            names[key] = f"{name} ({text})" if text else name
    return names


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
    text = _INITS.get(init, f"from {PurePath(init).name}")
    if init == IMAGENET:
        parts = {name.removeprefix("encoder."): value for name, value in settings.items()}
        text = f"{published_weights(parts)} weights"
    files = [PurePath(path).name for path in _weights_files(settings).values()]
    if init == SSL and files:
        text += f" from {listed(files)}"
    return text if name == init else f"{name}, {text}"


def _lines(
    settings: Mapping[str, Settings], protocols: Mapping[str, str], labels: Mapping[str, str]
) -> dict[str, str]:
    """Name methods without their protocol; methods that differ only in it share the name."""
    lines = {key: _label(each) for key, each in settings.items()}
    for keys in _shared(lines):
        if not _have_different_protocols(keys, protocols):
            others = {
                key: {
                    name: value for name, value in settings[key].items() if not name.startswith(_OF_PROTOCOL)
                }
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


def _references(settings: Mapping[str, Settings], protocols: Mapping[str, str]) -> dict[str, str]:
    """Find the reference of each method: random weights of the same encoder under the same protocol.

    If there are several, the one with the most other settings in common is chosen.
    """
    references: dict[str, str] = {}
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
            references[key] = max(similar, key=partial(_count_shared, settings, each))
    return references


def _count_shared(settings: Mapping[str, Settings], one: Settings, key: str) -> int:
    """Count the settings that two methods have in common."""
    other = settings[key]
    return sum(name in other and other[name] == value for name, value in one.items())


def _encoder(settings: Settings) -> dict[str, object]:
    """Return the settings of an encoder without those of its first weights."""
    return {
        name: value
        for name, value in settings.items()
        if name.startswith("encoder.") and not name.endswith((".weights", ".pretrained"))
    }


def _weights_files(settings: Settings) -> dict[str, str]:
    """Return the files with first weights by setting."""
    return {
        name: str(value)
        for name, value in settings.items()
        if name.startswith("encoder.") and name.endswith(".weights") and value
    }


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


def published_rows() -> list[PublishedRow]:
    """Read the published results, by paper, method and label fraction."""
    papers: list[dict[str, Any]] = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    rows = []
    for paper in papers:
        for share, qwk in sorted(paper["qwk"].items()):
            minimum, mean, maximum = qwk if isinstance(qwk, list) else (None, qwk, None)
            row = PublishedRow(paper["label"], paper["source"], share, mean, minimum, maximum, paper["of"])
            noted = share in paper.get("caveat_at", [share])
            caveat = paper.get("caveat", "") if noted else ""
            rows.append(replace(row, data=paper.get("data", row.data), caveat=caveat))
    return rows


def choose_published(
    rows: Sequence[PublishedRow], choice: Literal["own", "all"], data: str, fractions: Collection[float]
) -> list[PublishedRow]:
    """Choose the published results of a report.

    Args:
        rows: All published results.
        choice: ``own``: those of the data set and the label fractions of the report; ``all``: all, of which
            those of other data sets are named so.
        data: Name of the data set of the report.
        fractions: Its label fractions.
    """
    if choice == "own":
        return [row for row in rows if row.data == data and row.label_fraction in fractions]
    return [row if row.data == data else replace(row, label=f"{row.label}, on {row.data}") for row in rows]


def match_methods(rows: Sequence[PublishedRow], grouped: Grouped) -> list[PublishedRow]:
    """Set ``beside`` to the line of the first fine-tuned method with the same weights and encoder family."""
    configs: dict[str, Mapping[str, Any]] = {}
    for method in grouped.methods:
        run = grouped.runs[method.key][0]
        if is_trained(run):
            configs.setdefault(method.name, run.config)

    def line(row: PublishedRow) -> str:
        return next((name for name, config in configs.items() if _matches(row.of, config)), "")

    return [replace(row, beside=line(row)) for row in rows]


def _matches(published: Mapping[str, str], config: Mapping[str, Any]) -> bool:
    init = first_weights(config)
    pretext = str(config["pretext"]["name"]) if init == SSL else ""
    encoder = f"{config['encoder']['_target_']} {config['encoder'].get('name', '')}".lower()
    same = (published["init"], published.get("pretext", "")) == (init, pretext)
    return same and published["encoder"] in encoder
