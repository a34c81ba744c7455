"""What makes a run what it is: the settings that must be equal for one run to go on as another."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from drgrade.config import ROLES
from drgrade.renames import canonical

AUTO = "auto"
"""Value of ``resume``: go on from the run's own folder, if it has been begun there."""

FREE_TO_CHANGE = (
    "resume",
    "download",
    "paths",
    "trainer",
    "logger",
    "callbacks",
    "hydra",
    "name",
    "method",
    "sweep",
)
"""Settings that may differ when a run goes on: where, on what, for how long, how it is watched and called."""

_PLACES = (
    "data.root",
    "data.source.root",
    "photographs.source.root",
    "photographs.folder",
    "split.file",
    "photographs.split.file",
)
"""Photographs may have moved; whether they are still the same, the hash of the split tells."""


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
"""What of ``trainer`` does not change what is learnt; a batch is counted over all devices."""


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Every setting that makes a run what it is.

    Args:
        cfg: The run's config.

    Returns:
        ``{"a.b": value}``, without what is free to change.
    """
    # Interpolations point anywhere, so everything is resolved before anything is left out.
    container = canonical(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    flat: dict[str, Any] = {}

    def collect(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")
            elif prefix == "data." and name in ROLES:
                flat[f"{prefix}{name}"] = [_without_root(item) for item in value]
            else:
                flat[f"{prefix}{name}"] = value

    collect({name: value for name, value in container.items() if name not in FREE_TO_CHANGE}, "")
    return {
        name: value
        for name, value in flat.items()
        if name not in _PLACES and not name.endswith((".workers", ".download"))
    }


def differences(before: DictConfig, now: DictConfig, *, finished: bool = False) -> list[str]:
    """In what two configs are not one run's.

    Args:
        before: A config.
        now: Another.
        finished: The first one's run is over and shall stand for the second's: length and precision of the
            training, which may change when a run goes on, have to be the same as well.

    Returns:
        Half a sentence for each setting that differs and may not; empty if one run can stand for the other.
    """
    first, second = identity(before), identity(now)
    if finished:
        first, second = first | _training(before), second | _training(now)
    return [
        f"{name} was {first.get(name)} and is {second.get(name)}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def _training(cfg: DictConfig) -> dict[str, Any]:
    """What of the trainer changes what is learnt."""
    trainer = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))["trainer"]
    return {f"trainer.{name}": value for name, value in trainer.items() if name not in WITHOUT_EFFECT}


def _without_root(item: Any) -> Any:
    """A further data set, wherever it lies."""
    return {name: value for name, value in item.items() if name != "root"} if isinstance(item, dict) else item
