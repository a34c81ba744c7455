"""The model card of a run: model, data, training, results and limits, in the format of the hub.

The card is filled from the files in the run's folder and the descriptions of data sets in drgrade. It names
no photograph, no patient and no path, so that it can be published.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drgrade.artefacts import looks_secret
from drgrade.data.splits.spec import SUBSETS
from drgrade.errors import ConfigError
from drgrade.files import write_text
from drgrade.grades import NUM_GRADES
from drgrade.model_card.facts import (
    UNNAMED,
    RunFiles,
    UsedDataSet,
    calibration_changes,
    find_limits,
    hardware,
    naming_config,
    papers_of,
    read_run_files,
)
from drgrade.models.calibration import TARGET_SENSITIVITIES, calibrated_metrics, referral_rule
from drgrade.runs.settings import IMAGENET, RANDOM, SSL, label_seed, published_weights
from drgrade.stats import formatting
from drgrade.stats.bootstrap import confusions
from drgrade.stats.estimates import Estimate
from drgrade.stats.formatting import code_markdown, escape_markdown
from drgrade.stats.selective import COVERAGES, REFER_ALL, at_coverage, read_limits

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

MODEL_CARD = "model_card.md"
"""File in a run's folder; in a published folder the card is ``README.md``."""

FOLDER = "FOLDER"
"""Placeholder in the examples for the folder of the card."""

RESAMPLES = 2000
"""Of the bootstrap. A report takes 10,000; the ends of an interval then differ by a few thousandths."""

NOTICE = (
    "**For research only. This is not a medical device.** The model has not been evaluated for use on "
    "patients. Do not diagnose, refer or treat anybody based on its output, and do not let it "
    "decide who is seen by a doctor."
)

METRICS: Mapping[str, str] = {
    "qwk": "quadratic weighted kappa (QWK)",
    "accuracy": "accuracy",
    "mae": "mean absolute error, in grades",
    "auroc": "AUROC, mean over the grades (one against the rest)",
    "referable_auroc": "AUROC of referable DR",
    "referable_sensitivity": "sensitivity to referable DR of the predicted grade",
    "referable_specificity": "specificity for referable DR of the predicted grade",
    "nll": "negative log-likelihood, before calibration",
    "brier": "Brier score, before calibration",
    "ece": "calibration error (root mean square, debiased), before calibration",
    "macro_f1": "F1, mean over the grades",
}
"""Titles of the metrics in a card, by their names in ``metrics.json``."""

DRGRADE = (
    "The drgrade developers, drgrade: diabetic-retinopathy grading with few labels, "
    f"version {version('drgrade')}"
)
"""As in ``CITATION.cff``."""

_RATES = ("sensitivity", "specificity")

_HUB_METRICS = {
    "qwk": ("cohen_kappa", "quadratic weighted kappa", {"weights": "quadratic"}),
    "accuracy": ("accuracy", "accuracy", {}),
    "mae": ("mae", "mean absolute error in grades", {}),
    "referable_auroc": ("roc_auc", "AUROC of referable DR (grade 2 and above)", {}),
}
"""Metric: its name on the hub, its title, and its arguments."""

_PRIVATE_GROUPS = ("paths", "logger", "hydra", "callbacks", "resume", "sweep", "name")
"""Settings of the command line that do not change the model and may name places and people."""

_PUBLIC_GROUPS = (
    *("experiment", "data", "encoder", "pretext", "head", "protocol", "augment", "optimizer", "schedule"),
    *("scale", "split", "trainer", "callbacks", "probe", "task", "seed", "init", "pretrain_on", "method"),
    *("label_fraction", "fold", "folds", "download", "test", "compile", "channels_last", "sync_batchnorm"),
    *("epochs", "steps", "grading", "pretraining", "debug", "preparation"),
)
"""Settings of the command line whose values are shown; others may be secrets."""

_PUBLIC_DATA = ("data.image_size", "data.batch_size", "data.balanced", "data.illumination", "data.fold")
"""Settings below ``data`` that cannot name a user's files and columns."""


def write_model_card(
    run: Path,
    resamples: int = RESAMPLES,
    licence: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model card into a run's folder.

    Args:
        run: Folder of a finished grading run.
        resamples: Number of bootstrap resamples.
        licence: Licence of the weights on the hub, such as ``mit``; None for that of the data set.
        record: Content of ``metrics.json``, if it is not written yet.

    Returns:
        Path of the card.

    Raises:
        DrgradeError: If the folder holds no such run, or its files are damaged.
    """
    write_text(run / MODEL_CARD, render_model_card(read_run_files(run, record), FOLDER, resamples, licence))
    return run / MODEL_CARD


def render_model_card(
    run: RunFiles, place: str = FOLDER, resamples: int = RESAMPLES, licence: str | None = None
) -> str:
    """Render a model card.

    Args:
        run: Files of a finished grading run.
        place: Where the model can be loaded from, for the examples: :data:`FOLDER`, or ``user/name`` on the
            Hugging Face hub.
        resamples: Number of bootstrap resamples.
        licence: As for :func:`write_model_card`.

    Returns:
        Markdown with a YAML header, in the format of the hub.

    Raises:
        ConfigError: If ``licence`` is not the name of a licence.
        DataError: If the config of the run lacks a setting, or has one of another type.
    """
    with naming_config(run.folder):
        return _render(run, place, resamples, licence)


def _render(run: RunFiles, place: str, resamples: int, licence: str | None) -> str:
    from huggingface_hub import ModelCard

    figures = run.estimates(resamples)
    calibrated = _calibrated(run)
    weights = _licence(run.data[0], licence)
    card = ModelCard.from_template(
        _card_data(run, figures, weights),
        template_str=files("drgrade.model_card").joinpath("card.md.j2").read_text(encoding="utf-8"),
        run=run,
        notice=NOTICE,
        place=place,
        resamples=resamples,
        version=version("drgrade"),
        fmt=formatting,
        md=escape_markdown,
        code=code_markdown,
        model=_escaped(_model(run)),
        data=[_data_row(each) for each in run.data],
        labels_used=_labels_used(run),
        split_counts=_split_counts(run),
        training=_escaped(_training(run)),
        results=list(_results(run, figures)),
        groups=len(set(run.tested.groups.tolist())) if run.tested else 0,
        confusion=_confusion(run, figures),
        external=_external(run),
        figures=figures,
        coverages=list(map(formatting.percent, COVERAGES)),
        coverage=_coverage(figures),
        uncertainty_limits=_uncertainty_limits(run, figures),
        thresholds=", ".join(f"{each:.2f}" for each in run.calibration.thresholds),
        calibrated=calibrated,
        changes=calibration_changes(run, calibrated),
        referral=referral_rule([run.calibration]).describe(),
        referred=[formatting.percent(calibrated[f"referral_{rate}"], 1) for rate in _RATES if calibrated],
        points=list(_operating_points(run, calibrated)),
        limits=find_limits(run, figures),
        compute=list(_compute(run)),
        public_command=public_command,
        licence=weights.get("license_name", weights["license"]),
        licence_given=licence is not None,
        citations=_citations(run),
    )
    return f"{card.content}\n"


def _escaped(facts: Mapping[str, str]) -> list[list[str]]:
    return [[name, escape_markdown(text)] for name, text in facts.items()]


def _model(run: RunFiles) -> dict[str, str]:
    encoder = run.config["encoder"]
    backbones = ", ".join(_backbones(encoder))
    size, light = run.config["photographs"]["image_size"], run.config["photographs"]["illumination"]
    grades = ", ".join(f"{grade} {name}" for grade, name in enumerate(formatting.GRADE_NAMES))
    return {
        "grades": f"diabetic retinopathy, international clinical severity scale: {grades}",
        "encoder": _class_name(encoder) + (f" ({backbones})" if backbones else ""),
        "head": _class_name(run.head),
        "first weights": _first_weights(run),
        "input": f"a colour fundus photograph, cropped to its disc, {size} x {size} px"
        + ("" if light == "none" else f", light: {light}"),
        "output": "a probability for each grade, the grade, P(grade >= 2) (referable DR)",
    }


def _class_name(node: Mapping[str, object]) -> str:
    return str(node["_target_"]).rsplit(".", 1)[-1]


def _backbones(encoder: Mapping[str, object]) -> list[str]:
    """Return the timm names of an encoder."""
    return [str(encoder[key]) for key in ("name", "cnn", "vit") if encoder.get(key)]


def _first_weights(run: RunFiles) -> str:
    if run.first_weights == RANDOM:
        return "random"
    if run.first_weights == IMAGENET:
        return f"{published_weights(run.config['encoder'])}, as published by the authors of timm"
    files = "; ".join(run.weights_files)
    if run.pretext:
        text = f"self-supervised pre-training by drgrade ({run.pretext})"
        return f"{text}, from {files}" if files else text
    rest = run.first_weights.partition(", rest ")[2]
    return f"from {files}" + (f"; the rest: {rest}" if rest else "")


def _data_row(data: UsedDataSet) -> list[str]:
    about = data.about
    if about is None:
        return [escape_markdown(data.name), data.role, "not known to drgrade", "not known to drgrade"]
    title = f"[{escape_markdown(about.title)}]({about.url})" if about.url else escape_markdown(about.title)
    if data.name.lower() not in about.title.lower():
        title = f"{escape_markdown(data.name)}: {title}"
    return [title, data.role, escape_markdown(about.terms), escape_markdown(about.cameras)]


def _split_counts(run: RunFiles) -> list[list[str]]:
    if run.split is None:
        return []
    rows = []
    for subset in SUBSETS:
        part = run.split[run.split["subset"] == subset]
        if len(part):
            counts = part["grade"].value_counts().reindex(range(NUM_GRADES), fill_value=0)
            cells = [*counts, part["grade"].isna().sum(), len(part), part["group"].nunique()]
            rows.append([subset, *map(str, cells)])
    return rows


def _training(run: RunFiles) -> dict[str, str]:
    config = run.config
    protocol, optimizer = config["protocol"], config["optimizer"]
    facts = {"protocol": str(protocol["name"]), "seed": str(config["seed"])}
    if label_seed(config):
        facts["label seed"] = str(label_seed(config))
    if protocol.get("probe") is not None:
        facts["fine-tuning"] = "none: the encoder is frozen, and a probe is fitted to its features"
    else:
        if protocol["epochs"] >= 0:
            frozen = config["grading"]["task"]["frozen_epochs"]
            facts["epochs"] = f"{protocol['epochs']}, of which {frozen} with a frozen encoder"
        facts |= {
            "steps": str(run.provenance.get("steps", formatting.DASH)),
            "batch": str(config["data"]["batch_size"]),
            "optimiser": f"{_class_name(optimizer)}, learning rate {_learning_rate(run)}",
            "chosen checkpoint": "the highest QWK on the validation photographs"
            if run.record["checkpoint"] == "best.ckpt"
            else "the last epoch",
        }
    return facts | (_pretraining(run) if run.is_pretrained else {})


def _learning_rate(run: RunFiles) -> str:
    if "learning_rate" not in run.record:
        return str(run.config["optimizer"].get("lr"))
    return f"{run.record['learning_rate']:g}, chosen by the QWK on the validation photographs"


def _labels_used(run: RunFiles) -> str:
    """Count the labels of training and of validation, which select and calibrate the model."""
    share = formatting.fraction(float(run.record["label_fraction"]))
    within = bool(run.config["split"].get("val_within_fraction"))
    of = f"{share} of the training labels{', validation included' if within else ''}"
    if run.split is None:
        return f"{of}; their number is not recorded"
    train, val = (int((run.split["subset"] == subset).sum()) for subset in ("train", "val"))
    return f"{train + val}: {train} for training and {val} for validation ({of})"


def _pretraining(run: RunFiles) -> dict[str, str]:
    facts, encoder = {"pre-training": _first_weights(run)}, run.encoder
    if encoder:
        sides = {"train": "the training side only", "all": "all photographs"}
        side = sides.get(str(encoder.get("pretrain_on")), "photographs not known")
        steps, images = (encoder.get(name) or formatting.DASH for name in ("steps", "images"))
        facts["pre-training saw"] = f"{encoder.get('data') or UNNAMED}, {side}"
        facts["pre-training length"] = f"{steps} steps, {images} photographs shown"
    saw = run.record.get("pretraining_saw_test")
    facts["pre-training saw test photographs"] = (
        "not known" if saw is None else "yes, without their grades" if saw else "no"
    )
    if run.record.get("encoder_hash"):
        facts["hash of the encoder"] = str(run.record["encoder_hash"])[:12]
    return facts


def _results(run: RunFiles, figures: Mapping[str, Estimate]) -> Iterator[list[str]]:
    """Yield title, value and interval of each metric; without predictions there are no intervals."""
    for name, title in METRICS.items() if run.is_tested else ():
        value = formatting.decimal(run.test_metrics.get(name, math.nan))
        if run.tested is None:
            yield [title, value]
        else:
            yield [title, value, formatting.interval(figures[name].interval) if name in figures else ""]


def _confusion(run: RunFiles, figures: Mapping[str, Estimate]) -> list[list[str]]:
    if run.tested is None:
        return []
    counts = confusions(run.tested.predicted, run.tested.grades)
    return [
        [
            f"**{grade}** {name}",
            *map(str, counts[grade].tolist()),
            formatting.estimate(figures[f"recall_{grade}"], 2),
        ]
        for grade, name in enumerate(formatting.GRADE_NAMES)
    ]


def _coverage(figures: Mapping[str, Estimate]) -> list[list[str]]:
    titles = {"qwk": "QWK", "macro_f1": "F1, mean over the grades"}
    return [
        [title, *(formatting.estimate(figures[at_coverage(name, share)], 2) for share in COVERAGES)]
        for name, title in titles.items()
        if figures
    ]


def _uncertainty_limits(run: RunFiles, figures: Mapping[str, Estimate]) -> list[list[str]]:
    """Return wanted QWK, uncertainty limit, share referred and QWK of the other test photographs."""
    rows = []
    for wanted, limit in read_limits(run.record).items() if figures else ():
        names = (f"referred_for_qwk_{wanted:g}", f"qwk_after_referral_{wanted:g}")
        shown = "none: all are referred" if limit == REFER_ALL else formatting.decimal(limit)
        rows.append([f"{wanted:g}", shown, *(formatting.estimate(figures[name], 2) for name in names)])
    return rows


def _external(run: RunFiles) -> list[list[str]]:
    rows, metrics = [], ("qwk", "accuracy", "referable_auroc")
    for name in (each.name for each in run.data if each.role == "external"):
        if f"external/{name}/qwk" in run.record:
            values = [float(run.record[f"external/{name}/{metric}"]) for metric in metrics]
            rows.append([escape_markdown(name), *map(formatting.decimal, values)])
    return rows


def _calibrated(run: RunFiles) -> Mapping[str, float]:
    """Compute the metrics of calibration and referral on the test photographs; empty without predictions."""
    if run.tested is None:
        return {}
    probabilities, grades = (torch.from_numpy(each) for each in (run.tested.probabilities, run.tested.grades))
    return calibrated_metrics(probabilities, grades, run.calibration)


def _operating_points(run: RunFiles, calibrated: Mapping[str, float]) -> Iterator[list[str]]:
    for target in TARGET_SENSITIVITIES if run.calibration.points else ():
        point = run.calibration.point(target)
        shares = [point.sensitivity, point.specificity]
        shares += [calibrated[f"{name}_at_{target}"] for name in _RATES if calibrated]
        cells = [formatting.percent(share, 1) for share in shares]
        yield [formatting.percent(target), f"{point.threshold:.4f}", *cells]


def _compute(run: RunFiles) -> Iterator[list[str]]:
    for phase, cost in (("training", run.provenance), ("pre-training", run.encoder_provenance)):
        if "seconds" in cost:
            memory = cost.get("peak_memory")
            peak = formatting.memory(None if memory is None else int(memory))
            yield [phase, formatting.hours(float(cost["seconds"])), escape_markdown(hardware(cost)), peak]


def public_command(command: Sequence[str]) -> str:
    """Format a command line without paths and names of people.

    Values that may be private are replaced by ``...``; settings of places and logging are left out.

    Example:
        >>> public_command(["/home/alice/train.py", "data=idrid", "data.root=/data", "logger=wandb"])
        'train.py data=idrid data.root=...'
    """
    if not command or not all(isinstance(argument, str) for argument in command):
        return "..."
    words = [Path(command[0]).name]
    for argument in command[1:]:
        setting, _, value = argument.partition("=")
        if setting.lstrip("+~").replace("/", ".").split(".")[0] in _PRIVATE_GROUPS:
            continue
        if _is_private(setting, value):
            words.append(f"{setting}=..." if value else "...")
        else:
            words.append(shlex.quote(argument))
    return " ".join(words).replace("`", "'")


def _is_private(setting: str, value: str) -> bool:
    """Return True if an argument may name a path, a file, a user's column or a secret."""
    if looks_secret(setting) or looks_secret(value) or any(sign in (value or setting) for sign in "/\\~@$"):
        return True
    if value and setting.lstrip("+~").split(".")[0].split("@")[0] not in _PUBLIC_GROUPS:
        return True
    if setting == "init":
        return value not in ("random", "imagenet", "ssl")
    return setting == "split.file" or (setting.startswith("data.") and setting not in _PUBLIC_DATA)


def _card_data(run: RunFiles, figures: Mapping[str, Estimate], weights: Mapping[str, str]) -> "ModelCardData":
    """Build the metadata of a card: licence, tags, data sets, metrics and ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    data, about, encoder = run.data[0], run.data[0].about, run.config["encoder"]
    tags = ["medical", "fundus", "diabetic-retinopathy", "research-only", data.name]
    tags += [_class_name(encoder).lower(), *_backbones(encoder)]
    tags += ["self-supervised", run.pretext] if run.pretext else []
    metrics = {name: entry for name, entry in _HUB_METRICS.items() if name in figures}
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


def _licence(data: UsedDataSet, licence: str | None) -> dict[str, str]:
    """Return the entries ``license``, ``license_name`` and ``license_link`` of a card.

    Without ``licence`` it is that of the data set if the hub has a name for it, else ``other`` with a link to
    the terms of the data set.
    """
    if licence is not None:
        if not licence or not all(sign.isalnum() or sign in "-." for sign in licence):
            raise ConfigError(f"licence={licence} is not a licence of the hub, such as mit or cc-by-nc-4.0")
        return {"license": licence.lower()}
    about = data.about
    if about is not None and about.licence:
        return {"license": about.licence}
    link = {"license_link": about.url} if about is not None and about.url else {}
    return {"license": "other", "license_name": f"see-the-terms-of-{data.name}".lower(), **link}


def _citations(run: RunFiles) -> list[str]:
    """Cite drgrade, the papers of encoder, pretext and head, and the data sets."""
    pretext = run.config["pretext"] if run.first_weights == SSL else run.encoder.get("pretext")
    method = papers_of(run.config["encoder"], pretext if run.is_pretrained else None, run.head)
    return [DRGRADE, *method, *(text for each in run.data if each.about for text in each.about.citations)]
