"""The model card of a run: what it is, what it was trained and tested on, and what it must not be used for.

Everything in it comes from the run's artefacts, and from what drgrade knows of its data sets. It names no
photograph, no patient and no place on a disk, so that it can be handed on.
"""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from drgrade import __version__
from drgrade.data.splits.spec import SUBSETS
from drgrade.errors import DrgradeError
from drgrade.files import write_text
from drgrade.model_card.citations import DRGRADE, papers_of
from drgrade.model_card.facts import UNNAMED, Artefacts, DataSet, read_artefacts
from drgrade.model_card.limits import limits
from drgrade.model_card.metadata import licence_of, metadata
from drgrade.model_card.results import RESAMPLES, TITLES, estimates
from drgrade.models.calibration import TARGET_SENSITIVITIES, calibrated_metrics
from drgrade.stats import formatting as words
from drgrade.stats.bootstrap import confusions
from drgrade.stats.estimates import Estimate
from drgrade.stats.formatting import escape_markdown

log = logging.getLogger(__name__)

MODEL_CARD = "model_card.md"
"""In a run's folder; in a published one it is ``README.md``."""

NOTICE = (
    "**For research only. This is no medical device.** It has not been examined for any use on patients. Do "
    "not diagnose, refer or treat anybody by what it says, and do not let it decide who is seen by a doctor."
)

_DRAWN = (
    "**The photographs are drawn.** It was trained and tested on pictures that drgrade draws by itself. Its "
    "figures say that the software works. They mean nothing for patients; it cannot grade a real photograph."
)

FOLDER = "FOLDER"
"""Stands in the examples for the folder that a card lies in."""

_UNSAID = ("paths", "logger", "hydra", "callbacks", "resume", "sweep", "name")
"""Settings of the command line that change nothing in the model, and may name places and people."""

_SAID_OF_DATA = ("data.image_size", "data.batch_size", "data.balanced", "data.illumination", "data.fold")
"""Settings of the data that are shown; the others may name files and columns of somebody's own."""

_OTHERS = {"macro_f1": "F1, mean over the grades"}
"""Metrics without an interval."""


def write_card(run: Path, resamples: int = RESAMPLES, licence: str | None = None) -> Path:
    """Write the model card into a run's folder.

    Args:
        run: Folder of a finished grading run.
        resamples: Of the bootstrap.
        licence: Of the weights; see :func:`drgrade.model_card.metadata.metadata`.

    Returns:
        The card.

    Raises:
        DrgradeError: If there is no such run, or its files are damaged.
    """
    target = run / MODEL_CARD
    write_text(target, model_card(read_artefacts(run), resamples=resamples, licence=licence))
    return target


def leave_card(run: Path, record: Mapping[str, object]) -> None:
    """Write the card of a run that has just ended, if it is a finished grading run.

    What is wrong with a card is said, and takes nothing from the run.

    Args:
        run: Its folder.
        record: What its ``metrics.json`` holds.
    """
    if record.get("status") != "finished" or "checkpoint" not in record:
        return
    try:
        write_card(run)
    except DrgradeError as error:
        log.warning("no %s of this run: %s", MODEL_CARD, error)


def model_card(
    artefacts: Artefacts, place: str = FOLDER, resamples: int = RESAMPLES, licence: str | None = None
) -> str:
    """Write a model card.

    Args:
        artefacts: Of a finished grading run.
        place: Where it can be loaded from, for the examples: :data:`FOLDER`, or ``user/name`` on the hub.
        resamples: Of the bootstrap.
        licence: Of the weights.

    Returns:
        Markdown with a head of YAML, as a ``README.md`` of the Hugging Face hub.
    """
    figures = estimates(artefacts.run, resamples) if artefacts.run is not None else {}
    head = metadata(artefacts, figures, artefacts.name, licence)
    return f"---\n{head}\n---\n\n{_body(artefacts, figures, place, resamples, licence)}"


def _body(
    artefacts: Artefacts, figures: dict[str, Estimate], place: str, resamples: int, licence: str | None
) -> str:
    sections = {
        "What it is": _what(artefacts),
        "Intended use": _use(artefacts),
        "Training data": _data(artefacts),
        "Training": _training(artefacts),
        "Results": _results(artefacts, figures, resamples),
        "Calibration and operating points": _calibration(artefacts),
        "Limits": [_bullets(map(escape_markdown, limits(artefacts, figures)))],
        "How to use it": _how(place),
        "Compute": _compute(artefacts),
        "How it was made": _provenance(artefacts),
        "Licence and citation": _licence(artefacts, licence),
        "Not known": [
            _bullets(f"`{name}` is missing: the card goes without it" for name in artefacts.missing)
        ],
    }
    title = f"{artefacts.name}: diabetic-retinopathy grading, trained on {artefacts.data[0].name}"
    notices = [f"> {NOTICE}", *([f"> {_DRAWN}"] if artefacts.is_drawn else [])]
    parts = [f"# {escape_markdown(title)}", "\n>\n".join(notices)]
    for section, content in sections.items():
        if any(content):
            parts += [f"## {section}", *filter(None, content)]
    return "\n\n".join(parts) + "\n"


def _what(artefacts: Artefacts) -> list[str]:
    config = artefacts.config
    head = config["protocol"].get("probe") or config["grading"]["task"]["head"]
    encoder = config["encoder"]
    backbones = [str(encoder[key]) for key in ("name", "cnn", "vit") if encoder.get(key)]
    size, light = config["photographs"]["image_size"], config["photographs"]["illumination"]
    facts = {
        "grades": "diabetic retinopathy, international clinical severity scale: "
        + ", ".join(f"{grade} {name}" for grade, name in enumerate(words.GRADE_NAMES)),
        "encoder": f"{_class(encoder)} ({', '.join(backbones)})" if backbones else _class(encoder),
        "head": _class(head),
        "first weights": _begin(artefacts),
        "input": f"a colour fundus photograph, cropped to its disc, {size} x {size} px"
        + ("" if light == "none" else f", light: {light}"),
        "output": "a probability for each grade, the grade, P(grade >= 2) (referable DR)",
    }
    return [_facts(facts)]


def _class(node: Mapping[str, object]) -> str:
    return str(node["_target_"]).rsplit(".", 1)[-1]


def _begin(artefacts: Artefacts) -> str:
    init = artefacts.config["init"]
    if init == "random":
        return "random"
    if init == "imagenet":
        return "ImageNet, as timm's authors published them"
    pretext = artefacts.encoder.get("pretext")
    name = pretext.get("name") if isinstance(pretext, Mapping) else None
    name = name or (artefacts.config["pretext"]["name"] if init == "ssl" else None)
    return f"self-supervised pre-training by drgrade ({name})" if name else "a given encoder"


def _use(artefacts: Artefacts) -> list[str]:
    intended = (
        "to look at how the software behaves, and to test what is built on it"
        if artefacts.is_drawn
        else "research on grading with few labels: comparison of methods, of label fractions, of data sets"
    )
    return [
        f"Intended: {intended}.",
        "Not intended: any decision about a person; photographs that are no colour fundus photographs; "
        "other eye diseases, of which it knows nothing.",
    ]


def _data(artefacts: Artefacts) -> list[str]:
    record, split = artefacts.record, artefacts.split
    parts = [_table(["data set", "used as", "terms", "cameras"], map(_data_row, artefacts.data))]
    facts = {
        "data hash": f"`{record['data_hash']}`",
        "split hash": f"`{record['split_hash']}`",
        "fold": "the published test set"
        if record["fold"] == "published"
        else f"{record['fold']} (of {record['folds']}, counted from 0)",
        "labels used": words.fraction(float(record["label_fraction"])) + " of those of the training side",
    }
    parts.append(_facts(facts, escaped=False))
    if split is not None:
        parts += ["Photographs by use and grade:", _split_table(artefacts)]
    return parts


def _data_row(data: DataSet) -> list[str]:
    about = data.about
    if about is None:
        return [escape_markdown(data.name), data.role, "not known to drgrade", "not known to drgrade"]
    title = f"[{escape_markdown(about.title)}]({about.url})" if about.url else escape_markdown(about.title)
    named = title if data.name.lower() in about.title.lower() else f"{escape_markdown(data.name)}: {title}"
    return [named, data.role, escape_markdown(about.terms), escape_markdown(about.cameras)]


def _split_table(artefacts: Artefacts) -> str:
    assert artefacts.split is not None
    rows = []
    for subset in SUBSETS:
        own = artefacts.split[artefacts.split["subset"] == subset]
        if len(own):
            by_grade = own["grade"].value_counts()
            counts = [int(by_grade.get(grade, 0)) for grade in range(5)]
            rest = len(own) - sum(counts)
            cells = [subset, *map(str, counts), str(rest), str(len(own)), str(own["group"].nunique())]
            rows.append(cells)
    table = _table(["", "0", "1", "2", "3", "4", "no grade", "all", "groups"], rows, numbers=True)
    return f"{table}\n\nA group is one patient's photographs, or copies: it stands on one side of the split."


def _training(artefacts: Artefacts) -> list[str]:
    config, provenance = artefacts.config, artefacts.provenance
    protocol, optimizer = config["protocol"], config["optimizer"]
    probed = protocol.get("probe") is not None
    facts = {"protocol": str(protocol["name"]), "seed": str(config["seed"])}
    if probed:
        facts["fine-tuning"] = "none: the encoder is frozen, a probe is fitted to its features"
    else:
        facts |= {
            "epochs": f"{protocol['epochs']}, of which {protocol['frozen_epochs']} with a frozen encoder",
            "steps": str(provenance.get("steps", words.DASH)),
            "batch": str(config["data"]["batch_size"]),
            "optimiser": f"{_class(optimizer)}, learning rate {optimizer.get('lr')}",
            "chosen checkpoint": "the highest QWK on the validation photographs"
            if artefacts.record["checkpoint"] == "best.ckpt"
            else "the last epoch",
        }
    return [_facts(facts | _pretraining(artefacts))]


def _pretraining(artefacts: Artefacts) -> dict[str, str]:
    if not artefacts.is_pretrained:
        return {}
    encoder = artefacts.encoder
    answers: Mapping[object, str] = {True: "yes, without their grades", False: "no"}
    saw = answers.get(artefacts.record.get("pretraining_saw_test"), "not known")
    said = {"pre-training": _begin(artefacts)}
    if encoder:
        steps, images = encoder.get("steps"), encoder.get("images")
        where = {"train": "the training side only", "all": "all photographs"}
        said |= {
            "pre-training saw": f"{encoder.get('data') or UNNAMED}, "
            + where.get(str(encoder.get("pretrain_on")), "not known which photographs"),
            "pre-training length": f"{steps or words.DASH} steps, {images or words.DASH} photographs shown",
        }
    encoder_hash = artefacts.record.get("encoder_hash")
    return {
        **said,
        "pre-training saw test photographs": saw,
        **({"hash of the encoder": str(encoder_hash)[:12]} if encoder_hash else {}),
    }


def _results(artefacts: Artefacts, figures: dict[str, Estimate], resamples: int) -> list[str]:
    if not artefacts.is_tested:
        return ["Not tested (`test=false`)."]
    record, run = artefacts.record, artefacts.run
    if run is None:
        known = [
            [text, words.decimal(record[f"test/{name}"])] for name, text in {**TITLES, **_OTHERS}.items()
        ]
        return [_table(["test photographs", "value"], known, numbers=True)]
    rows = [_row(title, figures[name]) for name, title in TITLES.items()]
    rows += [[_OTHERS[name], words.decimal(record[f"test/{name}"]), ""] for name in _OTHERS]
    tested, groups = len(run.grades), len(set(run.groups.tolist()))
    return [
        _table([f"{tested} test photographs, {groups} groups", "value", "95 % interval"], rows, numbers=True),
        f"Intervals: percentile bootstrap of groups, {resamples} resamples. They say how far a figure may "
        "move with other test photographs of this kind, not with another training or another clinic; there "
        "is none where all resamples agree. Referable DR is grade 2 and above; sensitivity and specificity "
        "are those of the predicted grade.",
        "Confusion matrix, rows the true grade:",
        _confusion(artefacts, figures),
        *_external(artefacts),
    ]


def _row(title: str, figure: Estimate) -> list[str]:
    return [title, words.decimal(figure.value), words.interval(figure.interval)]


def _confusion(artefacts: Artefacts, figures: dict[str, Estimate]) -> str:
    assert artefacts.run is not None
    counts = confusions(artefacts.run.predicted, artefacts.run.grades)
    rows = [
        [
            f"**{grade}** {words.GRADE_NAMES[grade]}",
            *map(str, counts[grade].tolist()),
            words.estimate(recall, 2),
        ]
        for grade in range(5)
        for recall in [figures[f"recall_{grade}"]]
    ]
    return _table(["true", "0", "1", "2", "3", "4", "recall (95 % interval)"], rows, numbers=True)


def _external(artefacts: Artefacts) -> list[str]:
    names = [each.name for each in artefacts.data if each.role == "external"]
    rows = [
        [
            escape_markdown(name),
            *(words.decimal(float(artefacts.record[f"external/{name}/{metric}"])) for metric in shown),
        ]
        for shown in [("qwk", "accuracy", "referable_auroc")]
        for name in names
        if f"external/{name}/qwk" in artefacts.record
    ]
    if not rows:
        return []
    head = ["tested also on", "QWK", "accuracy", "AUROC of referable DR"]
    return ["Other data sets, none of whose photographs were learnt from:", _table(head, rows, numbers=True)]


def _calibration(artefacts: Artefacts) -> list[str]:
    fitted = artefacts.calibration
    if not fitted.photographs:
        return [f"None: {escape_markdown(fitted.note)}."]
    tested = _calibrated(artefacts)
    after = (
        f" On the test photographs the expected calibration error goes from "
        f"{words.decimal(artefacts.record['test/ece'])} to {words.decimal(tested['ece_calibrated'])}; read "
        f"by these thresholds QWK is {words.decimal(tested['qwk_thresholds'])}."
        if tested
        else ""
    )
    parts = [
        f"Fitted on {fitted.photographs} validation photographs: temperature {fitted.temperature:.3g} of the "
        "probabilities (Guo et al., ICML 2017); thresholds on the expected grade "
        f"{', '.join(f'{each:.2f}' for each in fitted.thresholds)}.{after}",
    ]
    if not fitted.points:
        return [*parts, f"No operating points: {escape_markdown(fitted.note)}."]
    head = ["wanted", "refer from P(grade >= 2)", "sensitivity", "specificity"]
    head += ["sensitivity, test", "specificity, test"] if tested else []
    rows = [_point(artefacts, wanted, tested) for wanted in TARGET_SENSITIVITIES]
    return [
        *parts,
        "Operating points for referable DR by the sensitivity that is wanted: what they do on the validation "
        "photographs, which they were chosen on" + (", and on the test photographs:" if tested else ":"),
        _table(head, rows, numbers=True),
    ]


def _calibrated(artefacts: Artefacts) -> Mapping[str, float]:
    """What the calibration does on the test photographs; empty if they were not tested."""
    if artefacts.run is None:
        return {}
    run = artefacts.run
    return calibrated_metrics(
        torch.from_numpy(run.probabilities), torch.from_numpy(run.grades), artefacts.calibration
    )


def _point(artefacts: Artefacts, wanted: float, tested: Mapping[str, float]) -> list[str]:
    point = artefacts.calibration.point(wanted)
    shares = [point.sensitivity, point.specificity]
    if tested:
        shares += [tested[f"{name}_at_{wanted}"] for name in ("sensitivity", "specificity")]
    return [words.percent(wanted), f"{point.threshold:.4f}", *(words.percent(share, 1) for share in shares)]


def _how(place: str) -> list[str]:
    fetch, folder = (
        ("", place) if place == FOLDER else (f"hf download {place} --local-dir GRADER\n", "GRADER")
    )
    return [
        f"With drgrade {__version__} installed:",
        f"```\n{fetch}drgrade predict checkpoint={folder} input=PHOTOGRAPHS\n```",
        f"""```python
from pathlib import Path

from drgrade.prediction.grader import Grader
from drgrade.publishing.hub import from_pretrained

trained = from_pretrained("{place}")
photograph = trained.preparation.prepare(Path("photograph.jpg"))
print(photograph.verdict)  # whether it can be graded at all
if photograph.crop.pixels is not None:  # cropped to its disc, as in training
    graded = Grader([trained]).grade(photograph.crop.pixels[None])
    print(graded.grades, graded.probabilities, graded.referable)
```""",
    ]


def _compute(artefacts: Artefacts) -> list[str]:
    rows = []
    for what, cost in (("training", artefacts.provenance), ("pre-training", artefacts.encoder_provenance)):
        if "seconds" in cost:
            memory = cost.get("peak_memory")
            cells = [what, words.hours(float(cost["seconds"])), _hardware(cost)]
            rows.append([*cells, words.memory(None if memory is None else int(memory))])
    if not rows:
        return ["Not recorded."]
    return [
        _table(["", "time", "hardware", "peak memory"], rows),
        "Energy and carbon were not measured; runs that were tried before this one are not counted.",
    ]


def _hardware(provenance: Mapping[str, object]) -> str:
    machine, devices = provenance.get("machine"), provenance.get("devices", 1)
    if not isinstance(machine, Mapping):
        return "not recorded"
    what = machine.get("gpu") or f"{machine.get('processor')} with {machine.get('cores')} cores"
    return escape_markdown(f"{what}, {devices} devices" if devices != 1 else str(what))


def _provenance(artefacts: Artefacts) -> list[str]:
    provenance = artefacts.provenance
    facts = {}
    if "command" in provenance:
        facts["command"] = f"`{without_places(provenance['command'])}`"
    if provenance.get("commit"):
        facts["commit"] = f"`{provenance['commit']}`" + (
            " (with changes that were not committed)" if str(provenance["commit"]).endswith("+") else ""
        )
    versions = provenance.get("versions") or {}
    if versions:
        facts["versions"] = escape_markdown(
            ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    return [_facts(facts, escaped=False)] if facts else []


def without_places(command: Sequence[str]) -> str:
    """A command line without places on a disk and names of people.

    Args:
        command: Program and arguments.

    Returns:
        As one would type it; the value of a setting that is a place is an ellipsis, and settings that only
        say where a run goes or who watches it are left out.
    """
    shown = [Path(command[0]).name]
    for argument in command[1:]:
        setting, _, value = argument.partition("=")
        if setting.lstrip("+~").replace("/", ".").split(".")[0] in _UNSAID:
            continue
        if _is_private(setting, value):
            shown.append(f"{setting}=..." if value else "...")
        else:
            shown.append(shlex.quote(argument))
    return " ".join(shown).replace("`", "'")


def _is_private(setting: str, value: str) -> bool:
    """Whether an argument may name a place, a file, or what is somebody's own."""
    if any(sign in (value or setting) for sign in "/\\~"):
        return True
    if setting == "init":
        return value not in ("random", "imagenet", "ssl")
    return setting == "split.file" or (setting.startswith("data.") and setting not in _SAID_OF_DATA)


def _licence(artefacts: Artefacts, licence: str | None) -> list[str]:
    config = artefacts.config
    said = licence_of(artefacts.data[0], licence)
    named = said.get("license_name", said["license"])
    pretext = config["pretext"] if config["init"] == "ssl" else artefacts.encoder.get("pretext")
    head = config["protocol"].get("probe") or config["grading"]["task"]["head"]
    method = papers_of(config["encoder"], pretext if artefacts.is_pretrained else None, head)
    sets = [each for each in artefacts.data if each.about is not None and each.about.citations]
    return [
        f"drgrade has the MIT licence. Weights: {escape_markdown(named)}"
        + (
            ", as whoever published them decided."
            if licence is not None
            else ", after the terms of the data set. Whoever hands them on has to see whether these allow it."
        ),
        "Please cite:",
        _bullets(
            escape_markdown(text)
            for text in [
                DRGRADE,
                *method,
                *(text for each in sets if each.about for text in each.about.citations),
            ]
        ),
    ]


def _facts(facts: Mapping[str, str], escaped: bool = True) -> str:
    rows = [[name, escape_markdown(text) if escaped else text] for name, text in facts.items()]
    return _table(["", ""], rows)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table; with numbers all columns but the first are set to the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
