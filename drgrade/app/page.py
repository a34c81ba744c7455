"""The page, made of Gradio's parts. Gradio is imported when the page is made: it takes seconds."""

import secrets
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from drgrade.app.analysis import Examined, Examiner
from drgrade.app.result_html import (
    GRADES,
    render_about,
    render_cards,
    render_head,
    render_message,
    render_notice,
)
from drgrade.app.uploads import MAX_BYTES, MAX_FILES, Uploads
from drgrade.synthetic.cohort import plan_photographs
from drgrade.synthetic.drawing import draw_photograph

if TYPE_CHECKING:
    import gradio

TITLE = "drgrade"

_QUEUE = 32  # who comes later is told so

_DRAWN_SIDE = 512  # px, the height of drawn photographs
_DRAWN_PATIENTS = 40
_FIRST_SEED = 1_000_000  # nobody trains on these


def make_page(examiner: Examiner, uploads: Uploads, tta: str = "none") -> "gradio.Blocks":
    """Make the page.

    Args:
        examiner: Looks at the files.
        uploads: Has them.
        tta: Test-time augmentation of the grader, to be named.

    Returns:
        The page; it is not served yet.
    """
    import gradio as gr

    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
    with page:
        gr.HTML(render_head(examiner.grader))
        gr.HTML(render_notice(), elem_id="dg-notice")
        drop = gr.File(
            file_count="multiple",
            label=f"Fundus photographs, up to {MAX_FILES} at a time of {MAX_BYTES // 1_000_000} MB at most",
            elem_id="dg-drop",
            height=160,
        )
        example = gr.Button("No photograph at hand? Draw one and grade it", elem_id="dg-example", size="sm")
        results = gr.HTML("", elem_id="dg-results")
        gr.HTML(render_about(examiner.grader, tta))
        # One at a time on the model, whoever asks.
        common: dict[str, Any] = {
            "outputs": [drop, results],
            "concurrency_limit": 1,
            "concurrency_id": "grader",
            "api_visibility": "private",
            "show_progress_on": [results],
        }
        # Unprocessed: Gradio would leave an empty file behind for each one that it hands on.
        drop.upload(_looking(examiner, uploads), inputs=[drop], preprocess=False, **common)
        example.click(_drawing(examiner, uploads), inputs=[], **common)
        page.queue(max_size=_QUEUE)
    return page


def look_and_feel() -> "gradio.Theme":
    """Colours and letters, none of which has to be fetched."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def _looking(examiner: Examiner, uploads: Uploads) -> Callable[[Any], Iterator[tuple[None, str]]]:
    def look(dropped: Any) -> Iterator[tuple[None, str]]:
        """One card after the other: the first photograph need not wait for the last."""
        paths = [Path(each["path"]) for each in dropped or ()]
        examined: list[Examined] = []
        for path in paths:
            with uploads.taken(path) as upload:
                if len(paths) > MAX_FILES:
                    continue
                examined.append(examiner.examine(upload, path.name))
            yield None, render_cards(examined, examiner)
        if len(paths) > MAX_FILES:
            yield None, render_message(f"{len(paths)} files are too many: {MAX_FILES} at a time")

    return look


def _drawing(examiner: Examiner, uploads: Uploads) -> Callable[[], tuple[None, str]]:
    def draw() -> tuple[None, str]:
        name, content = draw_example(_FIRST_SEED + secrets.randbelow(_FIRST_SEED))
        upload = uploads.keep(name, BytesIO(content), len(content))
        with uploads.taken(upload.path) as kept:
            return None, render_cards([examiner.examine(kept)], examiner)

    return draw


def draw_example(seed: int) -> tuple[str, bytes]:
    """Draw a photograph that no run has seen.

    Args:
        seed: Of the drawing; the same one draws the same.

    Returns:
        What it is, in words, and the JPEG.
    """
    photographs = plan_photographs(_DRAWN_PATIENTS, seed)
    photograph = photographs[seed % len(photographs)]
    drawing = draw_photograph(photograph, _DRAWN_SIDE, seed)
    bgr = cv2.cvtColor(drawing.pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, drawing.jpeg_quality])
    name = f"drawn, not photographed, as grade {photograph.grade} ({GRADES[photograph.grade]})"
    return name, encoded.tobytes()
