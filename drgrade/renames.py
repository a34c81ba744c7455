"""Renamed classes and functions, so that earlier configs, runs and encoders stay valid.

Configs name classes and functions by their dotted names (``_target_``). Hashes (encoder keys, feature keys,
method keys) and comparisons on resume use the first name of each; loading uses the present one.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "drgrade.data.squares.SquareView": "drgrade.data.transforms.SquareView",
    "drgrade.data.squares.SeveralViews": "drgrade.data.transforms.MultiView",
    "drgrade.data.views.MaskedView": "drgrade.data.transforms.MaskedView",
    "drgrade.data.augment.FundusAugmentation": "drgrade.data.transforms.FundusAugmentation",
    "drgrade.data.augmentation.FundusAugmentation": "drgrade.data.transforms.FundusAugmentation",
    "drgrade.data.collection.Collection": "drgrade.data.photographs.Collection",
    "drgrade.data.modules.GradingDataModule": "drgrade.data.datamodules.GradingDataModule",
    "drgrade.data.modules.PretextDataModule": "drgrade.data.datamodules.PretextDataModule",
    "drgrade.data.splits.SplitSpec": "drgrade.data.splits.spec.SplitSpec",
    "drgrade.tasks.GradingTask": "drgrade.tasks.GradingTask",
    "drgrade.tasks.grading.GradingTask": "drgrade.tasks.GradingTask",
    "drgrade.tasks.PretextTask": "drgrade.tasks.PretextTask",
    "drgrade.tasks.pretext.PretextTask": "drgrade.tasks.PretextTask",
    "drgrade.tasks.schedules.constant": "drgrade.tasks.constant",
    "drgrade.tasks.schedules.cosine": "drgrade.tasks.cosine",
    "drgrade.training.feature_watch.FeatureWatch": "drgrade.training.callbacks.FeatureMonitor",
    "drgrade.training.pruning.Pruning": "drgrade.sweeps.trials.Pruning",
    "drgrade.training.loggers.mlflow_logger": "drgrade.training.tracking.figure_loggers.mlflow_logger",
    "drgrade.training.loggers.tensorboard_logger": "drgrade.training.tracking.figure_loggers.TensorBoardTracker",
    "drgrade.training.loggers.wandb_logger": "drgrade.training.tracking.wandb_logger.wandb_logger",
    "drgrade.models.linear_probe.LinearProbe": "drgrade.models.probes.LinearProbe",
    "drgrade.pretext.combination.views_of": "drgrade.pretext.combination.combine_views",
}
"""Earlier dotted name to present dotted name; the first name of all is the first of its entries."""

_FIRST_OF_PRESENT = {present: earlier for earlier, present in reversed(RENAMED.items())}
_FIRST = _FIRST_OF_PRESENT | {earlier: _FIRST_OF_PRESENT[present] for earlier, present in RENAMED.items()}


def canonical(value: Any) -> Any:
    """Replace present and later dotted names by the first ones, for hashing and comparing.

    Args:
        value: Mappings, lists, strings and numbers, as in JSON.

    Returns:
        A copy with every renamed string replaced.

    Example:
        >>> canonical({"views": {"_target_": "drgrade.data.transforms.MaskedView"}})
        {'views': {'_target_': 'drgrade.data.views.MaskedView'}}
    """
    return _replace(_first_forms(value), _FIRST)


def _first_forms(value: Any) -> Any:
    """Replace settings that are computed in another way than at first, with the same result."""
    if isinstance(value, Mapping):
        if value.get("_target_") == "drgrade.pretext.dino.default_local_size":
            half = {"_target_": "operator.floordiv", "_args_": [value["image_size"], 2]}
            return {"_target_": "builtins.max", "_args_": [half, 32]}
        return {key: _first_forms(item) for key, item in value.items()}
    return [_first_forms(item) for item in value] if isinstance(value, list | tuple) else value


def current(value: Any) -> Any:
    """Replace earlier dotted names by the present ones, for instantiating the parts of an earlier config.

    Args:
        value: Mappings, lists, strings and numbers, as in JSON.

    Returns:
        A copy with every renamed string replaced.
    """
    return _replace(value, RENAMED)


def _replace(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
