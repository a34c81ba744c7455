"""Settings of runs: comparison on resume, runs of the same method, and the first weights of the encoder."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drgrade.artefacts import shortened
from drgrade.config import ROLES, is_pretrained, is_set
from drgrade.errors import DataError
from drgrade.renames import canonical

MAJORITY = "majority class"

Settings = Mapping[str, object]
"""``a.b``: value, of a resolved config."""

FREE_TO_CHANGE = (
    *("resume", "download", "paths", "trainer", "logger", "callbacks", "hydra", "name", "method", "sweep"),
    "trial",
)
"""Settings that may differ when a run is resumed: names, places, hardware, length and logging."""

_PLACES = (
    "data.root",
    "data.source.root",
    "photographs.source.root",
    "photographs.folder",
    "split.file",
    "photographs.split.file",
)
"""Photographs may have moved; the hash of the split detects other photographs."""

WITHOUT_EFFECT = (
    "_target_",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "deterministic",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "enable_model_summary",
    "use_distributed_sampler",
)
"""Settings of ``trainer`` that do not change the result; a batch is counted over all devices."""

_OF_A_PART: Mapping[str, object] = {
    "fast_dev_run": False,
    "overfit_batches": 0,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "limit_predict_batches": None,
    "max_time": None,
}
"""Arguments of Lightning's Trainer with which a run ends early or uses a part of its photographs, and the
value that disables each."""


_ADDED: Mapping[str, object] = {
    "protocol.steps": -1,
    "protocol.precise_bn": False,
    "protocol.decay_norms": True,
    "protocol.gradient_clip": None,
    "protocol.probe_first": False,
    "protocol.learning_rates": None,
    "grading.task.decay_norms": True,
    "grading.task.gradient_clip": None,
}
"""Settings that runs of earlier versions lack, and the value of each at which a run is like one of those."""

_PASSED_ON = ("protocol.head_width", "scale.tuned_steps")
"""Settings that runs of earlier versions lack, and that only set others."""


def _without_added(settings: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Leave out settings that do what earlier versions did, and with a config those that follow from it."""
    ordinary = dict(_ADDED)
    if config and "init" in config and "encoder" in config:
        # Earlier versions froze random weights too; such a run is another method.
        frozen = settings.get("protocol.frozen_epochs") if is_pretrained(config) else 0
        ordinary["grading.task.frozen_epochs"] = frozen
    return {
        name: value
        for name, value in settings.items()
        if name not in _PASSED_ON and not (name in ordinary and value == ordinary[name])
    }


def partial_settings(config: Mapping[Any, Any]) -> list[str]:
    """Return the settings of a run, ``trainer.NAME``, with which it uses a part of its photographs.

    Example:
        >>> partial_settings({"trainer": {"limit_test_batches": 1, "fast_dev_run": False}})
        ['trainer.limit_test_batches']
    """
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return []
    return [f"trainer.{name}" for name, unused in _OF_A_PART.items() if trainer.get(name, unused) != unused]


def identity_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that identify a run as ``{"a.b": value}``, without those free to change."""
    # Interpolations may point anywhere: resolve everything before leaving anything out.
    container = canonical(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    data = container.get("data", {})
    data |= {role: [_without_root(item) for item in data[role]] for role in ROLES if role in data}
    return {
        name: value
        for name, value in _without_added(flat(container)).items()
        if value != {}
        and name.split(".")[0] not in FREE_TO_CHANGE
        and name not in _PLACES
        and not name.endswith((".workers", ".download"))
        and (value or not name.endswith("split.label_seed"))  # earlier runs do not have it
    }


def changed_settings(before: DictConfig, now: DictConfig, *, finished: bool = False) -> list[str]:
    """Describe the settings in which two configs describe different runs, in a phrase for each.

    Args:
        before: Config of an earlier run.
        now: Config of this run.
        finished: The earlier run is finished and is to be reused: length and precision of the training, which
            may change when a run is resumed, must be equal too.

    Raises:
        DataError: If the earlier config, which is read from a file, is not the config of a run.
    """
    second = identity_settings(now)
    try:
        first = identity_settings(before)
        if finished:
            first, second = first | _trainer_settings(before), second | _trainer_settings(now)
    except (OmegaConfBaseException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"the config of the earlier run is damaged ({error!r}); remove its folder") from error
    return [
        f"{name} was {shortened(first.get(name), 200)} and is {shortened(second.get(name), 200)}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def label_seed(config: Mapping[Any, Any]) -> int:
    """Return the seed of the drawn labels; 0 for earlier runs, and if all labels are used.

    Example:
        >>> label_seed({"label_fraction": 1.0, "protocol": {}, "split": {"label_seed": 3}})
        0
    """
    draws = config["label_fraction"] != 1 or config["protocol"].get("shots") is not None
    return int(config["split"].get("label_seed", 0)) if draws else 0


def _trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    trainer = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))["trainer"]
    return {f"trainer.{name}": value for name, value in trainer.items() if name not in WITHOUT_EFFECT}


def _without_root(item: Any) -> Any:
    """Remove the folder of a further data set."""
    return {name: value for name, value in item.items() if name != "root"} if isinstance(item, dict) else item


_AXES = ("label_fraction", "fold", "folds", "seed")
_NAMES_AND_PLACES = (
    "name",
    "sweep",
    "resume",
    "task",
    "test",
    "trial",
    "download",
    "paths",
    "hydra",
    "logger",
)
_COMPARED_ELSEWHERE = ("data", "photographs", "split", "scale", "epochs", "steps")
"""A report compares photographs and splits by content; ``scale``, ``epochs`` and ``steps`` only pass values
on to settings that are compared."""

_COUNTED = ("data.batch_size", "data.balanced", "split.val_fraction", "split.val_within_fraction")
"""Settings below those that are compared all the same."""

_NOT_OF_A_METHOD = (
    *(f"trainer.{name}" for name in WITHOUT_EFFECT if name != "_target_"),
    "callbacks.progress",
    "callbacks.seed_each_epoch",
    "callbacks.features",
    "pretext.seed",  # follows the seed
)
_NOT_OF_A_METHOD_ENDINGS = (".datamodule.seed", ".num_workers", ".workers", ".download")
_PRETRAINING = ("pretext", "pretraining", "pretrain_on", "protocol.pretrain_on")


def flat(config: Mapping[str, Any]) -> dict[str, object]:
    """Flatten nested mappings; lists and empty mappings are values.

    Example:
        >>> flat({"a": {"b": 1, "c": [2, 3]}})
        {'a.b': 1, 'a.c': [2, 3]}
    """
    return dict(_leaves(config, ""))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def method_settings(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that all runs of one method share.

    Excluded are the axes of a table (label fraction, fold, seed), names, places, hardware and logging, and
    settings that the run did not use: without ``init=ssl`` those of pre-training. ``init`` is replaced by
    :func:`~drgrade.runs.settings.first_weights`, so that weights of a file are called neither random nor
    ImageNet.

    Args:
        config: Resolved config of a run.
    """
    ignored = (*_AXES, *_NAMES_AND_PLACES, *_COMPARED_ELSEWHERE, *_NOT_OF_A_METHOD)
    init = config.get("init")
    if init in ("random", "imagenet"):
        ignored += _PRETRAINING
    elif init != "ssl":  # the path of an encoder
        ignored += _PRETRAINING[:2]
    settings = flat(canonical(config))
    if init is not None and "encoder" in config:
        settings["init"] = first_weights(config)
    return {
        name: value
        for name, value in sorted(_without_added(settings, config).items())
        if name in _COUNTED or not (_is_below(name, ignored) or name.endswith(_NOT_OF_A_METHOD_ENDINGS))
    }


def _is_below(name: str, nodes: Sequence[str]) -> bool:
    return any(name == node or name.startswith(f"{node}.") for node in nodes)


def method_key(config: Mapping[str, Any]) -> str:
    """Return the key of a run's method: title, init, protocol and a hash of the settings, with hyphens."""
    settings = method_settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    init = PurePath(str(settings["init"])).name
    parts = [method_title(settings), init, str(settings["protocol.name"]), digest]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def method_title(settings: Settings) -> str:
    """Return a method's name without its initial weights: the setting ``method``, or the encoder."""
    if is_majority(settings):
        return MAJORITY
    if settings.get("method"):
        return str(settings["method"])
    if settings.get("encoder.name"):
        return str(settings["encoder.name"])
    return str(short_setting("encoder._target_", settings["encoder._target_"])[1])


def is_majority(settings: Settings) -> bool:
    """Return True for the majority-class probe, which runs no encoder."""
    return str(settings.get("protocol.probe._target_", "")).endswith(".MajorityProbe")


def differing_settings(methods: Sequence[Settings], or_missing: bool = False) -> list[str]:
    """List the names of settings in which methods differ, those that users set directly first.

    A value that interpolation has passed to several settings is listed once, under the shortest name.

    Args:
        methods: Settings of each method.
        or_missing: Also list settings that only some methods have, with the same value; they come last.
    """
    names = sorted({name for method in methods for name in method}, key=_rank)
    differing: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        values = [as_text(method[name]) if name in method else None for method in methods]
        distinct = set(values)
        if len(distinct - {None}) > 1:
            differing.setdefault(json.dumps(values), name)
        elif or_missing and len(distinct) > 1:
            missing.setdefault(json.dumps(values), name)
    return [*differing.values(), *missing.values()]


def _rank(name: str) -> tuple[bool, int, int, str]:
    """Sort settings that users set before derived ones, and shallow ones before deep ones."""
    derived = name.startswith(("grading.", "pretraining.", "split."))
    return derived, name.count("."), len(name), name


def as_text(value: object) -> str:
    """Format a value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def short_setting(name: str, value: object) -> tuple[str, object]:
    """Shorten a setting for display: ``head._target_: a.b.CornHead`` becomes ``head: CornHead``."""
    if name.endswith("._target_"):
        return name.removesuffix("._target_"), str(value).rsplit(".", 1)[-1]
    return name, value


RANDOM, IMAGENET, SSL = "random", "imagenet", "ssl"
UNNAMED_FILE = "file (name not recorded)"

WEIGHTS_HASH = "weights_hash"
"""End of the names of entries of ``metrics.json`` with the hash of a weights file."""

_LONGEST = 200  # characters of a name or a statement, which may come from anybody
_WITHOUT_FILE = (RANDOM, IMAGENET)
_BACKBONES = ("name", "cnn", "vit")
_OTHER_TRAINING = {"ft", "jft", "in12k", "in21k", "in22k", "ssl", "swsl"}
"""Parts of timm's tags of weights that saw more than ImageNet's 1,000 classes."""
_OTHER_MODELS = ("aimv2", "beit", "clip", "dino", "eva", "mae", "sam", "siglip")
"""Begin of parts of the names of models whose weights in timm are from another training by default."""


def weights_files(encoder: Mapping[Any, Any]) -> dict[str, str]:
    """Return the weights files in an encoder's config, as ``{"part.weights": path}``.

    Example:
        >>> weights_files({"name": "resnet18", "weights": None, "cnn_options": {"weights": "a/b.pth"}})
        {'cnn_options.weights': 'a/b.pth'}
    """
    files: dict[str, str] = {}
    for name, value in encoder.items():
        if isinstance(value, Mapping):
            files |= {f"{name}.{setting}": path for setting, path in weights_files(value).items()}
        elif name == "weights" and value:
            files["weights"] = str(value)
    return files


def first_weights(config: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> str:
    """Return the first weights of a run's encoder.

    Weights from a file are named after the file, whatever ``init`` is.

    Args:
        config: Config of the run, resolved.
        record: ``metrics.json``, which shows that there was a file if the config has no paths any more.

    Returns:
        ``random``, ``imagenet``, ``ssl``, the path of an encoder, or the names of weights files.

    Example:
        >>> encoder = {"cnn_options": {"weights": "a/b.pth"}, "vit_options": {}}
        >>> first_weights({"init": "random", "encoder": encoder})
        'b.pth (cnn), rest random'
    """
    init, encoder = str(config["init"]), config["encoder"]
    if init not in _WITHOUT_FILE:
        return init
    files = weights_files(encoder)
    rest = IMAGENET if is_set(encoder, "pretrained") else init
    if not files and any(name.endswith(WEIGHTS_HASH) for name in record or {}):
        return str((record or {}).get("weights_file") or UNNAMED_FILE)
    if not files:
        return rest
    parts = [name.removesuffix("_options") for name in encoder if str(name).endswith("_options")]
    given = {_part(setting): PurePath(path).name for setting, path in files.items()}
    names = ", ".join(f"{name} ({part})" if part in parts else name for part, name in given.items())
    if parts and not {*parts} <= {*given}:
        others = RANDOM if rest == RANDOM else f"{published_weights(encoder)} weights"
        return f"{names}, rest {others}"
    return f"{names} (file)" if names in (*_WITHOUT_FILE, SSL) else names


def published_weights(encoder: Mapping[Any, Any]) -> str:
    """Name the weights that timm publishes for an encoder: ``ImageNet``, or the models with their tags.

    Weights of a tag like ``dino``, ``mae``, ``openai`` or ``augreg_in21k`` are from another training than
    the classification of ImageNet's 1,000 classes.

    Args:
        encoder: Config of the encoder.

    Example:
        >>> published_weights({"name": "resnet18.a1_in1k"}), published_weights({"name": "vit_small.dino"})
        ('ImageNet', 'vit_small.dino')
    """
    names = [str(encoder[part]) for part in _BACKBONES if encoder.get(part)]
    others = [PurePath(name).name for name in names if not _is_imagenet(name)]
    return ", ".join(others)[:_LONGEST] or "ImageNet"


def _is_imagenet(name: str) -> bool:
    model, _, tag = name.partition(".")
    if ":" in name or any(part.startswith(_OTHER_MODELS) for part in model.split("_")):
        return False
    parts = tag.split("_")
    return not tag or (parts[-1] == "in1k" and not _OTHER_TRAINING & {*parts})


def describe_weights_files(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Describe the files that a run's encoder started from: name, hash, and what they say of themselves.

    Args:
        config: Config of the run, resolved; it may be without paths.
        record: ``metrics.json``.

    Returns:
        One phrase for each file; empty if there was none.
    """
    if str(config["init"]) not in (*_WITHOUT_FILE, SSL):
        return [_describe("encoder", PurePath(str(config["init"])).name, record)]
    files = weights_files(config["encoder"])
    recorded = [name.removesuffix("_hash") for name in record if name.endswith(WEIGHTS_HASH)]
    return [
        _describe(setting, PurePath(files.get(setting, "")).name, record)
        for setting in sorted({*files, *recorded})
    ]


def _describe(setting: str, name: str, record: Mapping[str, Any]) -> str:
    name = str(record.get(f"{setting}_file") or name or UNNAMED_FILE)[:_LONGEST]
    digest = str(record.get(f"{setting}_hash") or "not recorded")[:12]
    says = record.get(f"{setting}_says")
    if says is None:
        stated = "what it says of its origin is not recorded"
    else:
        stated = f"says: {str(says)[:_LONGEST]}" if says else "says nothing of its origin"
    part = _part(setting)
    return f"{name}{f' ({part})' if part not in ('', 'encoder') else ''}, SHA-256 {digest}, {stated}"


def _part(setting: str) -> str:
    """Return the part of the encoder that a setting belongs to: ``cnn`` of ``cnn_options.weights``."""
    return setting.removesuffix("weights").removesuffix(".").removesuffix("options").removesuffix("_")
