"""The head of a model card, in the Hugging Face hub's conventions."""

import math
from typing import Any

from drgrade.errors import ConfigError
from drgrade.model_card.facts import Artefacts, DataSet
from drgrade.stats.estimates import Estimate, Interval

_METRICS = {
    "qwk": ("cohen_kappa", "quadratic weighted kappa", {"weights": "quadratic"}),
    "accuracy": ("accuracy", "accuracy", {}),
    "mae": ("mae", "mean absolute error in grades", {}),
    "referable_auroc": ("roc_auc", "AUROC of referable DR (grade 2 and above)", {}),
}
"""Metric: its name on the hub, what it is called, and how it was computed."""


def metadata(
    artefacts: Artefacts, figures: dict[str, Estimate], name: str, licence: str | None = None
) -> str:
    """What stands between the dashes of a model card.

    Args:
        artefacts: Of the run.
        figures: On the test photographs, by their names in ``metrics.json``; empty if there are none.
        name: Of the model.
        licence: Of the weights, as the hub names licences; None: as the data set's if the hub has a name for
            that, else ``other``, with a link to the terms of the data set.

    Returns:
        YAML: license, library, tags, data sets, metrics and ``model-index``, as
        ``huggingface_hub.ModelCardData`` writes them.

    Raises:
        ConfigError: If the licence is no name of one.
    """
    from huggingface_hub import ModelCardData

    data = artefacts.data[0]
    on_hub = [each.about.hub for each in artefacts.data if each.about and each.about.hub]
    said = licence_of(data, licence)
    card = ModelCardData(
        language="en",
        license=said["license"],
        license_name=said.get("license_name"),
        license_link=said.get("license_link"),
        library_name="drgrade",
        pipeline_tag="image-classification",
        tags=_tags(artefacts),
        datasets=on_hub or None,
        metrics=[_METRICS[metric][0] for metric in _METRICS if metric in figures] or None,
        model_name=name,
        eval_results=_results(artefacts, data, figures) or None,
    )
    return card.to_yaml()


def licence_of(data: DataSet, licence: str | None) -> dict[str, str]:
    """The licence of the weights, as a card's head says it.

    Args:
        data: That they were made from.
        licence: That was asked for.

    Returns:
        ``license``, and if the hub has no name for it ``license_name`` and maybe ``license_link``.

    Raises:
        ConfigError: If the licence is no name of one.
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


def _tags(artefacts: Artefacts) -> list[str]:
    config = artefacts.config
    tags = ["medical", "fundus", "diabetic-retinopathy", "research-only", str(artefacts.data[0].name)]
    tags.append(str(config["encoder"]["_target_"]).rsplit(".", 1)[-1].lower())
    tags += [str(config["encoder"][key]) for key in ("name", "cnn", "vit") if config["encoder"].get(key)]
    if artefacts.is_pretrained:
        tags += ["self-supervised", *([str(config["pretext"]["name"])] if config["init"] == "ssl" else [])]
    return tags


def _results(artefacts: Artefacts, data: DataSet, figures: dict[str, Estimate]) -> list[Any]:
    from huggingface_hub import EvalResult

    about = data.about
    return [
        EvalResult(
            task_type="image-classification",
            task_name="diabetic-retinopathy grading",
            dataset_type=about.hub if about is not None and about.hub else data.name,
            dataset_name=about.title if about is not None else data.name,
            dataset_split="test",
            dataset_args={key: artefacts.record[key] for key in ("fold", "data_hash", "split_hash")},
            metric_type=kind,
            metric_name=called,
            metric_value=round(figures[metric].value, 4),
            metric_args={**arguments, **_ends(figures[metric].interval)},
        )
        for metric, (kind, called, arguments) in _METRICS.items()
        if metric in figures
    ]


def _ends(interval: Interval) -> dict[str, list[float]]:
    """The interval, if there is one: YAML has no number for what is not defined that JSON has, too."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return {}
    return {"interval_95": [round(interval.low, 4), round(interval.high, 4)]}
