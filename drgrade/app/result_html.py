"""What the page says of files, as HTML."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drgrade.app.analysis import Examined, Examiner, Picture, Referral
from drgrade.app.uploads import MAX_BYTES, MAX_FILES
from drgrade.html.templates import environment, resource
from drgrade.prediction.checkpoint import Trained
from drgrade.prediction.grader import Grader
from drgrade.stats.formatting import DASH, decimal, percent

GRADES = ("no DR", "mild", "moderate", "severe", "proliferative DR")
"""The international clinical DR severity scale (Wilkinson et al., Ophthalmology 2003)."""

NOTICE = "For research only. This is no medical device: nothing on this page is a diagnosis."

_FLAGS = {
    "good": "can be graded",
    "tiny": "very small",
    "too_dark": "too dark",
    "over_exposed": "over-exposed",
    "out_of_focus": "out of focus",
    "blank": "nothing to be seen",
    "not_fundus": "no fundus photograph",
    "unreadable": "unreadable",
}

_MAPS = {
    "auto": "the encoder's own choice",
    "combined": "mean of all",
    "refined": "refined",
    "fused": "fused",
    "attention": "attention",
    "attention_grad": "attention, weighted",
    "vit": "ViT map",
    "tokens": "ViT tokens",
    "last": "last layer",
}

_MEASURES = {
    "diameter": ("diameter of the disc", "px", 0),
    "level": ("brightness", "of 255", 0),
    "over_exposed": ("over-exposed share", "", 3),
    "contrast": ("contrast", "", 3),
    "focus": ("focus", "", 2),
}


class Fact(NamedTuple):
    """A line of a small table."""

    name: str
    value: str


def render_cards(examined: Sequence[Examined], examiner: Examiner) -> str:
    """Write what there is to say of files.

    Args:
        examined: The files.
        examiner: That looked at them.

    Returns:
        HTML; what comes from outside is escaped.
    """
    return _render_cards([_card(each, examiner) for each in examined])


def render_message(message: str) -> str:
    """Write a line in place of cards.

    Args:
        message: Plain text.
    """
    return _render_cards([{"failure": message, "name": "", "grade": None}])


def render_head(grader: Grader) -> str:
    """Write what stands above: what this is.

    Args:
        grader: That is tried.
    """
    count = len(grader.members)
    return _render("head.html.j2", ensemble=count if count > 1 else 0)


def render_notice() -> str:
    """Write what always stays in sight."""
    return _render("notice.html.j2", notice=NOTICE)


def render_about(grader: Grader, tta: str) -> str:
    """Write what stands below: which run says all this, and what to think of it.

    Args:
        grader: That is tried.
        tta: Its test-time augmentation.
    """
    return _render(
        "about.html.j2",
        runs=[(member.folder.resolve().name, run_facts(member)) for member in grader.members],
        tta="" if tta == "none" else tta,
        most=f"{MAX_BYTES // 1_000_000} MB",
        files=MAX_FILES,
    )


def run_facts(member: Trained) -> list[Fact]:
    """What a run is, from its artefacts.

    Args:
        member: The run.
    """
    record, cfg = member.record, member.config
    calibration = member.calibration
    of_validation = f"on {calibration.photographs} validation photographs"
    return [
        Fact("trained on", f"{record.get('data', DASH)} (hash {str(record.get('data_hash', DASH))[:12]})"),
        Fact("encoder", f"{_class(cfg.encoder)}, weights: {record.get('init', DASH)}"),
        Fact("head", _class(cfg.head)),
        Fact(
            "protocol",
            f"{record.get('protocol', DASH)}, {percent(_number(record, 'label_fraction'))} of labels",
        ),
        Fact(
            "seed, fold",
            f"{record.get('seed', DASH)}, {record.get('fold', DASH)} of {record.get('folds', DASH)}",
        ),
        Fact("QWK on its test photographs", decimal(_number(record, "test/qwk"))),
        Fact("QWK on validation", decimal(_number(record, "val/qwk"))),
        Fact(
            "calibration",
            f"temperature {decimal(calibration.temperature, 2)}, {of_validation}"
            if calibration.photographs
            else f"none: {calibration.note}",
        ),
        Fact(
            "sees photographs as",
            f"{member.preparation.image_size} px squares, light: {member.preparation.illumination}",
        ),
    ]


def stylesheet() -> str:
    """The look of the page."""
    return resource(__package__ or "", "templates/page.css")


def _render_cards(cards: Sequence[Mapping[str, Any]]) -> str:
    """Each answer differs from the one before, or the page would not see that it is a new one."""
    return _render("cards.html.j2", cards=cards, answer=secrets.token_hex(4))


def _card(examined: Examined, examiner: Examiner) -> Mapping[str, Any]:
    verdict, graded = examined.verdict, examined.graded
    card: dict[str, Any] = {
        "name": Path(examined.name).name,
        "failure": examined.failure,
        "photograph": _data_uri(examined.photograph),
        "maps": [(_map_title(each.title), _data_uri(each)) for each in examined.maps],
        "note": examined.note,
        "grade": None,
    }
    if verdict is not None:
        card |= {
            "flag": _FLAGS.get(verdict.flag, verdict.flag.replace("_", " ")),
            "good": verdict.flag == "good",
            "reason": verdict.reason,
            "measures": [
                Fact(_MEASURES[name][0], f"{decimal(value, _MEASURES[name][2])} {_MEASURES[name][1]}".strip())
                for name, value in verdict.measures.items()
                if name in _MEASURES
            ],
        }
    if graded is not None:
        probabilities = graded.probabilities[0].tolist()
        grade = int(graded.grades[0])
        several = len(examiner.grader.members) > 1 or float(graded.disagreement[0]) > 0
        card |= {
            "grade": grade,
            "word": GRADES[grade],
            "bars": [(name, percent(p, 1), 100 * p) for name, p in zip(GRADES, probabilities, strict=True)],
            "expected": decimal(float(graded.expected[0]), 2),
            "uncertainty": percent(float(graded.uncertainty[0])),
            "disagreement": percent(float(graded.disagreement[0])) if several else "",
            "p_referable": percent(float(graded.referable[0]), 1),
            **_referral(float(graded.referable[0]), examiner),
        }
    return card


def _referral(probability: float, examiner: Examiner) -> Mapping[str, str]:
    referral = examiner.referral
    if referral is None:
        return {"refer": "", "because": f"no threshold was fitted: {examiner.no_referral}"}
    return {
        "refer": "yes" if probability >= referral.threshold else "no",
        "because": f"threshold {percent(referral.threshold, 1)}, {_point(referral)}",
    }


def _point(referral: Referral) -> str:
    each = zip(referral.sensitivity, referral.specificity, referral.photographs, strict=True)
    points = [
        f"sensitivity {percent(sensitivity, 1)} and specificity {percent(specificity, 1)} on {count}"
        for sensitivity, specificity, count in each
    ]
    if len(points) == 1:
        return f"chosen for a sensitivity of {percent(referral.wanted)}: {points[0]} validation photographs"
    return (
        f"the mean of its members', each chosen for a sensitivity of {percent(referral.wanted)} on "
        f"validation photographs of its own ({'; '.join(points)})"
    )


def _map_title(name: str) -> str:
    if name in _MAPS:
        return _MAPS[name]
    kind, level = name[:1], name[1:]
    known = {"c": "CNN", "p": "FPN"}
    return f"{known[kind]} level {level}" if kind in known and level.isdigit() else name


def _data_uri(picture: Picture | None) -> str:
    if picture is None:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode('ascii')}"


def _class(cfg: Mapping[str, Any]) -> str:
    name = str(cfg["_target_"]).rpartition(".")[2]
    inner = cfg.get("name")
    return f"{name} ({inner})" if inner else name


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


def _render(template: str, **values: Any) -> str:
    text = resource(__package__ or "", f"templates/{template}")
    return environment().from_string(text).render(**values)
