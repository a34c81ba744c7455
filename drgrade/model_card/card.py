"""Write the model card of a run: what it is, how it was trained and tested, and its limits.

The card is filled from the files in the run's folder and the descriptions of data sets in drgrade. It names
no photograph, no patient and no path, so that it can be published.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from drgrade.data.splits.spec import SUBSETS
from drgrade.files import write_text
from drgrade.model_card.facts import UNNAMED, RunFiles, UsedDataSet, read_run_files
from drgrade.model_card.limits import find_limits
from drgrade.model_card.metadata import card_data, cited_papers, licence_of
from drgrade.models.calibration import TARGET_SENSITIVITIES, calibrated_metrics
from drgrade.stats import formatting
from drgrade.stats.bootstrap import confusions
from drgrade.stats.estimates import Estimate
from drgrade.stats.formatting import escape_markdown

MODEL_CARD = "model_card.md"
"""File in a run's folder; in a published folder the card is ``README.md``."""

FOLDER = "FOLDER"
"""Placeholder in the examples for the folder of the card."""

RESAMPLES = 2000
"""Of the bootstrap. A report takes 10,000; the ends of an interval then differ by a few thousandths."""

NOTICE = (
    "**For research only. This is no medical device.** The model has not been evaluated for use on patients. "
    "Do not diagnose, refer or treat anybody based on its output, and do not let it decide who is seen by a "
    "doctor."
)

METRICS: Mapping[str, str] = {
    "qwk": "quadratic weighted kappa (QWK)",
    "accuracy": "accuracy",
    "mae": "mean absolute error, in grades",
    "auroc": "AUROC, mean over the grades (one against the rest)",
    "referable_auroc": "AUROC of referable DR",
    "referable_sensitivity": "sensitivity to referable DR",
    "referable_specificity": "specificity for referable DR",
    "ece": "expected calibration error, before calibration",
    "macro_f1": "F1, mean over the grades",
}
"""Titles of the metrics in a card, by their names in ``metrics.json``."""

_PRIVATE_GROUPS = ("paths", "logger", "hydra", "callbacks", "resume", "sweep", "name")
"""Settings of the command line that do not change the model and may name places and people."""

_PUBLIC_DATA = ("data.image_size", "data.batch_size", "data.balanced", "data.illumination", "data.fold")
"""Settings below ``data`` that cannot name a user's files and columns."""


def write_model_card(run: Path, resamples: int = RESAMPLES, licence: str | None = None) -> Path:
    """Write the model card into a run's folder.

    Args:
        run: Folder of a finished grading run.
        resamples: Number of bootstrap resamples.
        licence: Licence of the weights; see :func:`drgrade.model_card.metadata.licence_of`.

    Returns:
        Path of the card.

    Raises:
        DrgradeError: If the folder holds no such run, or its files are damaged.
    """
    target = run / MODEL_CARD
    write_text(target, render_model_card(read_run_files(run), resamples=resamples, licence=licence))
    return target


def render_model_card(
    run: RunFiles, place: str = FOLDER, resamples: int = RESAMPLES, licence: str | None = None
) -> str:
    """Render a model card.

    Args:
        run: Files of a finished grading run.
        place: Where the model can be loaded from, for the examples: :data:`FOLDER`, or ``user/name`` on the
            Hugging Face hub.
        resamples: Number of bootstrap resamples.
        licence: Licence of the weights.

    Returns:
        Markdown with a YAML header, in the format of the hub.
    """
    from huggingface_hub import ModelCard

    figures = run.estimates(resamples)
    calibrated = _calibrated(run)
    weights = licence_of(run.data[0], licence)
    card = ModelCard.from_template(
        card_data(run, figures, licence),
        template_str=files("drgrade.model_card").joinpath("card.md.j2").read_text(encoding="utf-8"),
        run=run,
        notice=NOTICE,
        place=place,
        resamples=resamples,
        version=version("drgrade"),
        fmt=formatting,
        md=escape_markdown,
        model=_escaped(_model(run)),
        data=[_data_row(each) for each in run.data],
        split_facts=_split_facts(run),
        split_counts=_split_counts(run),
        training=_escaped(_training(run)),
        results=list(_results(run, figures)),
        groups=len(set(run.tested.groups.tolist())) if run.tested else 0,
        confusion=_confusion(run, figures),
        external=_external(run),
        thresholds=", ".join(f"{each:.2f}" for each in run.calibration.thresholds),
        calibrated=calibrated,
        points=list(_operating_points(run, calibrated)),
        limits=find_limits(run, figures),
        compute=list(_compute(run)),
        provenance=list(_provenance(run)),
        licence=weights.get("license_name", weights["license"]),
        licence_given=licence is not None,
        citations=cited_papers(run),
    )
    return f"{card.content}\n"


def _escaped(facts: Mapping[str, str]) -> list[list[str]]:
    return [[name, escape_markdown(text)] for name, text in facts.items()]


def _model(run: RunFiles) -> dict[str, str]:
    encoder = run.config["encoder"]
    backbones = ", ".join(str(encoder[key]) for key in ("name", "cnn", "vit") if encoder.get(key))
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


def _first_weights(run: RunFiles) -> str:
    init = run.config["init"]
    if init == "random":
        return "random"
    if init == "imagenet":
        return "ImageNet, as published by the authors of timm"
    pretext = run.encoder.get("pretext")
    name = pretext.get("name") if isinstance(pretext, Mapping) else None
    name = name or (run.config["pretext"]["name"] if init == "ssl" else None)
    return f"self-supervised pre-training by drgrade ({name})" if name else "a given encoder"


def _data_row(data: UsedDataSet) -> list[str]:
    about = data.about
    if about is None:
        return [escape_markdown(data.name), data.role, "not known to drgrade", "not known to drgrade"]
    title = f"[{escape_markdown(about.title)}]({about.url})" if about.url else escape_markdown(about.title)
    if data.name.lower() not in about.title.lower():
        title = f"{escape_markdown(data.name)}: {title}"
    return [title, data.role, escape_markdown(about.terms), escape_markdown(about.cameras)]


def _split_facts(run: RunFiles) -> list[list[str]]:
    record = run.record
    fold = f"{record['fold']} (of {record['folds']}, counted from 0)"
    return [
        ["data hash", f"`{record['data_hash']}`"],
        ["split hash", f"`{record['split_hash']}`"],
        ["fold", "the published test set" if record["fold"] == "published" else fold],
        ["labels used", f"{formatting.fraction(float(record['label_fraction']))} of the training labels"],
    ]


def _split_counts(run: RunFiles) -> list[list[str]]:
    if run.split is None:
        return []
    rows = []
    for subset in SUBSETS:
        own = run.split[run.split["subset"] == subset]
        if len(own):
            by_grade = own["grade"].value_counts()
            counts = [int(by_grade.get(grade, 0)) for grade in range(5)]
            cells = [*counts, len(own) - sum(counts), len(own), own["group"].nunique()]
            rows.append([subset, *map(str, cells)])
    return rows


def _training(run: RunFiles) -> dict[str, str]:
    config = run.config
    protocol, optimizer = config["protocol"], config["optimizer"]
    facts = {"protocol": str(protocol["name"]), "seed": str(config["seed"])}
    if protocol.get("probe") is not None:
        facts["fine-tuning"] = "none: the encoder is frozen, and a probe is fitted to its features"
    else:
        facts |= {
            "epochs": f"{protocol['epochs']}, of which {protocol['frozen_epochs']} with a frozen encoder",
            "steps": str(run.provenance.get("steps", formatting.DASH)),
            "batch": str(config["data"]["batch_size"]),
            "optimiser": f"{_class_name(optimizer)}, learning rate {optimizer.get('lr')}",
            "chosen checkpoint": "the highest QWK on the validation photographs"
            if run.record["checkpoint"] == "best.ckpt"
            else "the last epoch",
        }
    return facts | (_pretraining(run) if run.is_pretrained else {})


def _pretraining(run: RunFiles) -> dict[str, str]:
    facts, encoder = {"pre-training": _first_weights(run)}, run.encoder
    if encoder:
        photographs = {"train": "the training side only", "all": "all photographs"}
        photographs_seen = photographs.get(str(encoder.get("pretrain_on")), "photographs not known")
        steps, images = (encoder.get(name) or formatting.DASH for name in ("steps", "images"))
        facts["pre-training saw"] = f"{encoder.get('data') or UNNAMED}, {photographs_seen}"
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
        value = formatting.decimal(run.record[f"test/{name}"])
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


def _external(run: RunFiles) -> list[list[str]]:
    names = [each.name for each in run.data if each.role == "external"]
    return [
        [
            escape_markdown(name),
            *(
                formatting.decimal(float(run.record[f"external/{name}/{metric}"]))
                for metric in ("qwk", "accuracy", "referable_auroc")
            ),
        ]
        for name in names
        if f"external/{name}/qwk" in run.record
    ]


def _calibrated(run: RunFiles) -> Mapping[str, float]:
    """Compute the metrics of the calibrated predictions on the test photographs; empty without them."""
    if run.tested is None or not run.calibration.photographs:
        return {}
    probabilities, grades = (torch.from_numpy(each) for each in (run.tested.probabilities, run.tested.grades))
    return calibrated_metrics(probabilities, grades, run.calibration)


def _operating_points(run: RunFiles, calibrated: Mapping[str, float]) -> Iterator[list[str]]:
    for target in TARGET_SENSITIVITIES if run.calibration.points else ():
        point = run.calibration.point(target)
        shares = [point.sensitivity, point.specificity]
        if calibrated:
            shares += [calibrated[f"{name}_at_{target}"] for name in ("sensitivity", "specificity")]
        cells = [formatting.percent(share, 1) for share in shares]
        yield [formatting.percent(target), f"{point.threshold:.4f}", *cells]


def _compute(run: RunFiles) -> Iterator[list[str]]:
    for what, cost in (("training", run.provenance), ("pre-training", run.encoder_provenance)):
        if "seconds" in cost:
            memory = cost.get("peak_memory")
            peak = formatting.memory(None if memory is None else int(memory))
            yield [what, formatting.hours(float(cost["seconds"])), _hardware(cost), peak]


def _hardware(cost: Mapping[str, Any]) -> str:
    machine, devices = cost.get("machine"), cost.get("devices", 1)
    if not isinstance(machine, Mapping):
        return "not recorded"
    what = machine.get("gpu") or f"{machine.get('processor')} with {machine.get('cores')} cores"
    return escape_markdown(f"{what}, {devices} devices" if devices != 1 else str(what))


def _provenance(run: RunFiles) -> Iterator[list[str]]:
    provenance = run.provenance
    if "command" in provenance:
        yield ["command", f"`{public_command(provenance['command'])}`"]
    if provenance.get("commit"):
        changed = " (with uncommitted changes)" if str(provenance["commit"]).endswith("+") else ""
        yield ["commit", f"`{provenance['commit']}`{changed}"]
    if provenance.get("versions"):
        versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
        yield ["versions", escape_markdown(versions)]


def public_command(command: Sequence[str]) -> str:
    """Format a command line without paths and names of people.

    Args:
        command: Program and arguments.

    Returns:
        The command as typed; values that may be private are replaced by ``...``, and settings of places and
        logging are left out.
    """
    shown = [Path(command[0]).name]
    for argument in command[1:]:
        setting, _, value = argument.partition("=")
        if setting.lstrip("+~").replace("/", ".").split(".")[0] in _PRIVATE_GROUPS:
            continue
        if _is_private(setting, value):
            shown.append(f"{setting}=..." if value else "...")
        else:
            shown.append(shlex.quote(argument))
    return " ".join(shown).replace("`", "'")


def _is_private(setting: str, value: str) -> bool:
    """Return True if an argument may name a path, a file or a user's column."""
    if any(sign in (value or setting) for sign in "/\\~"):
        return True
    if setting == "init":
        return value not in ("random", "imagenet", "ssl")
    return setting == "split.file" or (setting.startswith("data.") and setting not in _PUBLIC_DATA)
