"""The page: Gradio components, and the HTML of results. Gradio is imported by :func:`build_page`."""

import base64
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
from omegaconf import OmegaConf

from drgrade.app.analysis import UploadAnalyzer, UploadResult
from drgrade.app.uploads import MAX_BYTES, MAX_FILES, Uploads
from drgrade.explanation.overlay import heat_gradient
from drgrade.html.templates import environment, resource
from drgrade.prediction.checkpoint import TrainedModel
from drgrade.prediction.grader import Grader
from drgrade.runs.settings import IMAGENET, SSL, describe_weights_files, first_weights, published_weights
from drgrade.stats.formatting import DASH, decimal, percent
from drgrade.synthetic.drawing import draw_photograph, plan_photographs

if TYPE_CHECKING:
    import gradio

TITLE = "drgrade"

GRADES = ("no DR", "mild", "moderate", "severe", "proliferative DR")
"""International clinical DR severity scale (Wilkinson et al., Ophthalmology 2003)."""

NOTICE = "For research only. This is not a medical device, and its output is not a diagnosis."

_QUEUE = 32  # waiting requests
_SYNTHETIC_SIDE = 512  # height of synthetic photographs in pixels
_SYNTHETIC_PATIENTS = 40
_FIRST_SEED = 1_000_000  # not used by the demo data

_FLAGS = {
    "good": "can be graded",
    "uncertain_disc": "the disc is uncertain",
    "tiny": "very small",
    "too_dark": "too dark",
    "over_exposed": "over-exposed",
    "out_of_focus": "out of focus",
    "blank": "no structure visible",
    "not_fundus": "not a fundus photograph",
    "unreadable": "unreadable",
}

_MAPS = {
    "auto": "default of the encoder",
    "combined": "mean of all",
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


def build_page(analyzer: UploadAnalyzer, uploads: Uploads, tta: str = "none") -> "gradio.Blocks":
    """Build the page; ``tta`` is the test-time augmentation of the grader, for display."""
    import gradio as gr

    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
    members = len(analyzer.grader.members)
    with page:
        gr.HTML(_render("head.html.j2", ensemble=members if members > 1 else 0))
        gr.HTML(
            _render("notice.html.j2", notice=NOTICE, warning=analyzer.grader.warning), elem_id="dg-notice"
        )
        drop = gr.File(
            file_count="multiple",
            label=f"Fundus photographs, up to {MAX_FILES} files of at most {MAX_BYTES // 1_000_000} MB",
            elem_id="dg-drop",
            height=160,
        )
        example = gr.Button("Grade a synthetic photograph", elem_id="dg-example", size="sm")
        results = gr.HTML("", elem_id="dg-results")
        gr.HTML(render_about(analyzer.grader, tta))
        common: dict[str, Any] = {
            "outputs": [drop, results],
            "concurrency_limit": 1,  # one photograph at a time on the model
            "concurrency_id": "grader",
            "api_visibility": "private",
            "show_progress_on": [results],
        }
        # Without preprocessing: Gradio would leave an empty copy of each file.
        drop.upload(_analyse_files(analyzer, uploads), inputs=[drop], preprocess=False, **common)
        example.click(_analyse_synthetic(analyzer, uploads), inputs=[], **common)
        page.queue(max_size=_QUEUE)
    return page


def theme() -> "gradio.Theme":
    """Return colours and fonts; none of them is downloaded."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def _analyse_files(analyzer: UploadAnalyzer, uploads: Uploads) -> Callable[[Any], Iterator[tuple[None, str]]]:
    def analyse(dropped: Any) -> Iterator[tuple[None, str]]:
        """Show each card as soon as its file is analysed."""
        paths = [Path(each["path"]) for each in dropped or ()]
        results: list[UploadResult] = []
        for path in paths:
            with uploads.take(path) as upload:
                if len(paths) > MAX_FILES:
                    continue
                results.append(analyzer.analyse(upload, path.name))
            yield None, render_cards(results, analyzer)
        if len(paths) > MAX_FILES:
            message = f"too many files: the limit is {MAX_FILES}"
            yield None, render_cards([UploadResult("", failure=message)], analyzer)

    return analyse


def _analyse_synthetic(analyzer: UploadAnalyzer, uploads: Uploads) -> Callable[[], tuple[None, str]]:
    def analyse() -> tuple[None, str]:
        name, content = draw_example(_FIRST_SEED + secrets.randbelow(_FIRST_SEED))
        upload = uploads.keep(name, BytesIO(content), len(content))
        with uploads.take(upload.path) as stored:
            return None, render_cards([analyzer.analyse(stored)], analyzer)

    return analyse


def draw_example(seed: int) -> tuple[str, bytes]:
    """Draw a synthetic photograph that no run has been trained on; returns its description and JPEG."""
    photographs = plan_photographs(_SYNTHETIC_PATIENTS, seed)
    photograph = photographs[seed % len(photographs)]
    drawing = draw_photograph(photograph, _SYNTHETIC_SIDE, seed)
    bgr = cv2.cvtColor(drawing.pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, drawing.jpeg_quality])
    name = f"synthetic photograph, drawn as grade {photograph.grade} ({GRADES[photograph.grade]})"
    return name, encoded.tobytes()


def render_cards(results: Sequence[UploadResult], analyzer: UploadAnalyzer) -> str:
    """Render the results of an analyzer as HTML; file names are escaped."""
    cards = [_card(each, analyzer) for each in results]
    # A random token makes each answer differ from the one before, so that the page notices it.
    return _render(
        "cards.html.j2",
        cards=cards,
        answer=secrets.token_hex(4),
        warning=analyzer.grader.warning,
        ramp=heat_gradient(),
    )


def render_about(grader: Grader, tta: str) -> str:
    """Render the section about the grader and its test-time augmentation."""
    return _render(
        "about.html.j2",
        runs=[(member.folder.resolve().name, _run_facts(member)) for member in grader.members],
        tta="" if tta == "none" else tta,
        most=f"{MAX_BYTES // 1_000_000} MB",
        files=MAX_FILES,
    )


def _run_facts(member: TrainedModel) -> dict[str, str]:
    record, cfg, calibration = member.record, member.config, member.calibration

    def entry(name: str) -> str:
        return str(record.get(name, DASH))

    fraction = percent(_number(record, "label_fraction"))
    return {
        "trained on": f"{entry('data')} (hash {entry('data_hash')[:12]})",
        "encoder": f"{_class_name(cfg.encoder)}, first weights: {_first_weights(member)}",
        "head": _class_name(cfg.head),
        "protocol": f"{entry('protocol')}, {fraction} of labels",
        "seed, fold": f"{entry('seed')}, {entry('fold')} of {entry('folds')}",
        "QWK on its test photographs": decimal(_number(record, "test/qwk")),
        "QWK on validation": decimal(_number(record, "val/qwk")),
        "calibration": calibration.worth(),
        "input": f"{member.preparation.image_size} px, illumination: {member.preparation.illumination}",
    }


def _first_weights(member: TrainedModel) -> str:
    config = cast(dict[str, Any], OmegaConf.to_container(member.config, resolve=True))
    name, files = first_weights(config, member.record), describe_weights_files(config, member.record)
    name = published_weights(config["encoder"]) if name == IMAGENET else name
    return "; ".join([*([name] if name == SSL or not files else []), *files])


def _card(result: UploadResult, analyzer: UploadAnalyzer) -> dict[str, Any]:
    """Return the template values of one result."""
    card: dict[str, Any] = {
        "name": Path(result.name).name,
        "failure": result.failure,
        "photograph": _data_uri(result.photograph),
        "maps": [(_map_title(name), _data_uri(jpeg)) for name, jpeg in result.maps.items()],
        "note": result.note,
        "grade": None,
    }
    if (verdict := result.verdict) is not None:
        measures = [
            f"{title} {decimal(verdict.measures[name], places)} {unit}".strip()
            for name, (title, unit, places) in _MEASURES.items()
            if name in verdict.measures
        ]
        card |= {
            "flag": _FLAGS.get(verdict.flag, verdict.flag.replace("_", " ")),
            "good": verdict.flag == "good",
            "reason": verdict.reason,
            "measures": measures,
        }
    return card if result.graded is None else card | _grade_values(result, analyzer)


def _grade_values(result: UploadResult, analyzer: UploadAnalyzer) -> dict[str, Any]:
    graded = result.graded
    assert graded is not None
    probabilities, grade = graded.probabilities[0].tolist(), int(graded.grades[0])
    several = len(analyzer.grader.members) > 1 or float(graded.disagreement[0]) > 0
    refers = bool(analyzer.rule.refers(graded.referable)[0])
    return {
        "grade": grade,
        "word": GRADES[grade],
        "bars": [(name, percent(p, 1), 100 * p) for name, p in zip(GRADES, probabilities, strict=True)],
        "expected": decimal(float(graded.expected[0]), 2),
        "uncertainty": percent(float(graded.uncertainty[0])),
        "disagreement": percent(float(graded.disagreement[0])) if several else "",
        "p_referable": percent(float(graded.referable[0]), 1),
        "refer": "yes" if refers else "no",
        "because": analyzer.rule.describe(),
    }


def _map_title(name: str) -> str:
    kind, level = {"c": "CNN", "p": "FPN"}.get(name[:1], ""), name[1:]
    return _MAPS.get(name) or (f"{kind} level {level}" if kind and level.isdigit() else name)


def _data_uri(jpeg: bytes | None) -> str:
    return "" if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _class_name(cfg: Mapping[str, Any]) -> str:
    name, inner = str(cfg["_target_"]).rpartition(".")[2], cfg.get("name")
    return f"{name} ({inner})" if inner else name


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


def _render(template: str, **values: Any) -> str:
    text = resource(__package__ or "", f"templates/{template}")
    return environment().from_string(text).render(**values)
