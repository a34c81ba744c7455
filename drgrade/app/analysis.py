"""Analysis of one uploaded file: quality, grade and heat maps."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from drgrade.app.uploads import MAX_BYTES, Upload
from drgrade.data.fundus_check import Verdict
from drgrade.data.image_reader import UnreadablePhotograph
from drgrade.errors import ConfigError
from drgrade.explanation.explainer import AUTO, COMBINED, Explainer, available_maps
from drgrade.explanation.overlay import draw_overlay
from drgrade.prediction.grader import GradedBatch, Grader
from drgrade.prediction.overlay_pages import read_reduced

MAPS = (AUTO, COMBINED, "c5", "p4", "attention_grad")
"""Default maps, if the encoder has them: its default map, the mean, and one of each kind. Each costs time."""

MAX_MAPS = 8
"""Number of maps that ``page.css`` can switch between."""

_SIDE = 1024  # longer side of the images on the page in pixels
_JPEG_QUALITY = 88


@dataclass(frozen=True, eq=False)
class UploadResult:
    """Result for one file.

    Attributes:
        name: Original file name.
        verdict: Quality verdict; None if the file was not analysed.
        graded: Output of the grader for one photograph; None if it was not graded.
        photograph: JPEG of the upright photograph; None if it cannot be shown.
        maps: JPEG of each overlay by the name of its map, main map first; empty if it was not graded.
        failure: Why the file was not analysed; empty if it was.
        note: Why there are no maps; empty if there are, or none are needed.
    """

    name: str
    verdict: Verdict | None = None
    graded: GradedBatch | None = None
    photograph: bytes | None = None
    maps: Mapping[str, bytes] = field(default_factory=dict)
    failure: str = ""
    note: str = ""


class UploadAnalyzer:
    """Analyses uploaded files with a grader.

    Attributes:
        grader: The grader.
        rule: The referral decision.
    """

    def __init__(
        self, grader: Grader, sensitivity: float | None = None, abstain: bool = True, maps: Sequence[str] = ()
    ) -> None:
        """Choose the referral decision and prepare the maps.

        Args:
            grader: One model or an ensemble.
            sensitivity: Required sensitivity for referable DR on the validation photographs, in (0, 1]; None
                for the default of the run (:func:`drgrade.models.calibration.referral_rule`).
            abstain: Do not grade photographs of insufficient quality.
            maps: Names of heat maps; empty for those of :data:`MAPS` that the encoder has.

        Raises:
            ConfigError: If a sensitivity is requested and there are no operating points, or a map does not
                exist.
        """
        self.grader, self._abstain = grader, abstain
        self.rule = grader.referral(sensitivity)
        self._explainer, self._no_maps = _build_explainer(grader, maps)

    def analyse(self, upload: Upload | None, name: str = "") -> UploadResult:
        """Analyse a file; its defects are part of the result and never raise an error.

        Args:
            upload: The file; None if it has been deleted.
            name: File name in that case.
        """
        if upload is None:
            return UploadResult(name, failure="the file has been deleted: choose it again")
        if upload.is_too_large:
            size, limit = _megabytes(upload.size), _megabytes(MAX_BYTES)
            return UploadResult(upload.name, failure=f"the file has {size}, the limit is {limit}")
        prepared = self.grader.preparation.prepare(upload.path)
        crop, verdict = prepared.crop, prepared.verdict
        # A file that exceeded the limit of time or memory is not decoded again.
        original = None if verdict.flag == "unreadable" else self._read(upload.path)
        photograph = None if original is None else _jpeg(original)
        if crop.pixels is None or (verdict.abstains and self._abstain):
            return UploadResult(upload.name, verdict, photograph=photograph)
        graded = self.grader.grade(crop.pixels[None])
        heat, note = self._heat(crop.pixels, graded)
        maps: dict[str, bytes] = {}
        if original is not None and crop.facts is not None:
            maps = {each: _jpeg(draw_overlay(original, crop.facts, values)) for each, values in heat.items()}
        return UploadResult(upload.name, verdict, graded, photograph, maps, note=note)

    def _read(self, path: Path) -> npt.NDArray[np.uint8] | None:
        try:
            return read_reduced(path, _SIDE, self.grader.preparation.max_pixels)
        except UnreadablePhotograph:
            return None  # the verdict gives the reason

    def _heat(
        self, pixels: npt.NDArray[np.uint8], graded: GradedBatch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
        """Compute the heat maps, (S, S) each, or the reason why there are none."""
        if self._explainer is None:
            return {}, self._no_maps
        try:
            heat = self._explainer.heat(pixels[None], graded.grades.tolist())
        except ConfigError as error:  # captum is missing, or the head has no gradient
            return {}, str(error)
        return {name: each[0] for name, each in heat.items()}, ""


def _build_explainer(grader: Grader, maps: Sequence[str]) -> tuple[Explainer | None, str]:
    """Build an explainer, or return the reason why there is none."""
    if len(maps) > MAX_MAPS:
        raise ConfigError(f"maps names {len(maps)} maps, but the page can show at most {MAX_MAPS}")
    models = [member.model for member in grader.members]
    size = grader.preparation.image_size
    if maps:
        return Explainer(models, size, maps), ""
    known = available_maps(models, size)
    try:
        return Explainer(models, size, [name for name in MAPS if name in known]), ""
    except ConfigError as error:  # an encoder without maps can be used nevertheless
        return None, str(error)


def _megabytes(size: int) -> str:
    """Format a number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB".replace(".0 MB", " MB")


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
