"""Metadata of a model card in the conventions of the Hugging Face hub, and the papers to cite."""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from drgrade.errors import ConfigError
from drgrade.model_card.facts import RunFiles, UsedDataSet
from drgrade.stats.estimates import Estimate

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

DRGRADE = (
    "The drgrade developers, drgrade: diabetic-retinopathy grading with few labels, "
    f"version {version('drgrade')}"
)
"""As in ``CITATION.cff``."""

_METRICS = {
    "qwk": ("cohen_kappa", "quadratic weighted kappa", {"weights": "quadratic"}),
    "accuracy": ("accuracy", "accuracy", {}),
    "mae": ("mae", "mean absolute error in grades", {}),
    "referable_auroc": ("roc_auc", "AUROC of referable DR (grade 2 and above)", {}),
}
"""Metric: its name on the hub, its title, and its arguments."""


def card_data(run: RunFiles, figures: Mapping[str, Estimate], licence: str | None = None) -> "ModelCardData":
    """Make the metadata of a model card: licence, tags, data sets, metrics and ``model-index``.

    Args:
        run: Files of the run.
        figures: Estimates on the test photographs by their names in ``metrics.json``; may be empty.
        licence: Licence of the weights; see :func:`licence_of`.

    Returns:
        The metadata.

    Raises:
        ConfigError: If ``licence`` is not the name of a licence.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data, about = run.data[0], run.data[0].about
    weights = licence_of(data, licence)
    config = run.config
    encoder = config["encoder"]
    tags = ["medical", "fundus", "diabetic-retinopathy", "research-only", data.name]
    tags.append(str(encoder["_target_"]).rsplit(".", 1)[-1].lower())
    tags += [str(encoder[key]) for key in ("name", "cnn", "vit") if encoder.get(key)]
    if run.is_pretrained:
        tags += ["self-supervised", *([str(config["pretext"]["name"])] if config["init"] == "ssl" else [])]
    metrics = {name: entry for name, entry in _METRICS.items() if name in figures}
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="diabetic-retinopathy grading",
            dataset_type=(about.hub if about else None) or data.name,
            dataset_name=about.title if about else data.name,
            dataset_split="test",
            dataset_args={key: run.record[key] for key in ("fold", "data_hash", "split_hash")},
            metric_type=kind,
            metric_name=title,
            metric_value=round(figures[name].value, 4),
            metric_args={**arguments, **_interval(figures[name])},
        )
        for name, (kind, title, arguments) in metrics.items()
    ]
    return ModelCardData(
        language="en",
        license=weights["license"],
        license_name=weights.get("license_name"),
        license_link=weights.get("license_link"),
        library_name="drgrade",
        pipeline_tag="image-classification",
        tags=tags,
        datasets=[each.about.hub for each in run.data if each.about and each.about.hub] or None,
        metrics=[kind for kind, _, _ in metrics.values()] or None,
        model_name=run.name,
        eval_results=results or None,
    )


def _interval(figure: Estimate) -> dict[str, list[float]]:
    low, high = figure.interval.low, figure.interval.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return {}  # JSON has no NaN
    return {"interval_95": [round(low, 4), round(high, 4)]}


def licence_of(data: UsedDataSet, licence: str | None) -> dict[str, str]:
    """Return the licence of the weights in the metadata of a card.

    Args:
        data: Data set that the weights were trained on.
        licence: Name of a licence on the hub; None for that of the data set if the hub has a name for it,
            else ``other`` with a link to the terms of the data set.

    Returns:
        ``license``, and for ``other`` also ``license_name`` and, if known, ``license_link``.

    Raises:
        ConfigError: If ``licence`` is not the name of a licence.
    """
    if licence is not None:
        if not licence or not all(sign.isalnum() or sign in "-." for sign in licence):
            raise ConfigError(f"licence={licence} is no name of a licence on the hub, as mit or cc-by-nc-4.0")
        return {"license": licence.lower()}
    about = data.about
    if about is not None and about.licence:
        return {"license": about.licence}
    link = {"license_link": about.url} if about is not None and about.url else {}
    return {"license": "other", "license_name": f"see-the-terms-of-{data.name}".lower(), **link}


def cited_papers(run: RunFiles) -> list[str]:
    """List what to cite for a run: drgrade, the papers of encoder, pretext and head, and the data sets."""
    pretext = run.config["pretext"] if run.config["init"] == "ssl" else run.encoder.get("pretext")
    method = papers_of(run.config["encoder"], pretext if run.is_pretrained else None, run.head)
    return [DRGRADE, *method, *(text for each in run.data if each.about for text in each.about.citations)]


@cache
def papers() -> Mapping[str, Mapping[str, Any]]:
    """Read ``papers.yaml``: ``of`` (class, or prefix of a timm name: keys) and ``papers`` (key: paper)."""
    text = files("drgrade.model_card").joinpath("papers.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)
    return found


def papers_of(*configs: Mapping[str, Any] | None) -> list[str]:
    """List the papers of the parts in configs.

    Args:
        *configs: Configs of encoder, pretext, head or probe; None for a part that is not used.

    Returns:
        Papers without repetition, those of classes before those of backbones.
    """
    known = papers()
    names = [name for config in configs for name in _names(config)]
    classes = [name.rsplit(".", 1)[-1] for name in names if name.startswith("drgrade.")]
    backbones = [
        kind
        for name in names
        for kind in known["of"]
        if kind.islower() and re.match(rf"(test_)?{kind}(?![a-z])", name)
    ]
    keys = [key for name in [*classes, *backbones] for key in known["of"].get(name, [])]
    return [str(known["papers"][key]) for key in dict.fromkeys(keys)]


def _names(node: object) -> Iterator[str]:
    """Yield the names of classes and timm models in a config."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in ("_target_", "cnn", "vit", "name") and isinstance(value, str):
                yield value
            else:
                yield from _names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _names(item)
