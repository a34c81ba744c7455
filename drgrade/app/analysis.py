"""What there is to say of one file: whether it can be graded, its grade, and where the run looked."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from drgrade.app.uploads import MAX_BYTES, Upload
from drgrade.data.crops import Facts
from drgrade.data.fundus_check import Verdict
from drgrade.data.image_reader import UnreadablePhotograph, read_photograph
from drgrade.errors import ConfigError
from drgrade.explanation.explainer import AUTO, COMBINED, Explainer, available
from drgrade.explanation.overlay import overlay
from drgrade.prediction.grader import Graded, Grader

Pixels = npt.NDArray[np.uint8]
Heat = Mapping[str, npt.NDArray[np.float32]]
"""Name of the map: (S, S) in [0, 1], on the prepared photograph."""

SENSITIVITY = 0.9
"""For referable DR, where none is asked for."""

MAPS = (AUTO, COMBINED, "c5", "p4", "attention_grad")
"""What is shown of where the run looked, as far as its encoder has it: its own choice, the mean of all, and
one of each kind. Others can be asked for; each costs time."""

MOST_MAPS = 8
"""As many as ``page.css`` can switch between."""

_SHOWN = 1024
"""Longer side in px of the pictures on the page."""

_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Referral:
    """From where on a photograph is referred.

    Attributes:
        threshold: Refer where P(grade >= 2) is at least this.
        wanted: The sensitivity that was asked for.
        sensitivity: On the validation photographs, of each member.
        specificity: Likewise.
        photographs: Validation photographs of each member.
    """

    threshold: float
    wanted: float
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]
    photographs: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        title: What it shows; "" for the photograph itself.
        jpeg: The file.
    """

    title: str
    jpeg: bytes


@dataclass(frozen=True, eq=False)
class Examined:
    """What there is to say of one file.

    Attributes:
        name: As its owner calls it.
        verdict: Whether it can be graded; None if the file was not looked at.
        graded: Of the one photograph; None if it was not graded.
        photograph: As it was recorded, upright; None if it cannot be shown.
        maps: Where the run looked, the main one first; none if it was not graded.
        failure: Why the file was not looked at; "" if it was.
        note: Why there are no maps; "" if there are, or need not be.
    """

    name: str
    verdict: Verdict | None = None
    graded: Graded | None = None
    photograph: Picture | None = None
    maps: tuple[Picture, ...] = ()
    failure: str = ""
    note: str = ""


class Examiner:
    """Looks at files with a grader.

    Attributes:
        grader: Grades.
        referral: From where on a photograph is referred; None where no operating points were fitted.
        no_referral: Why, in that case.
    """

    def __init__(
        self,
        grader: Grader,
        sensitivity: float | None = None,
        abstain: bool = True,
        maps: Sequence[str] = (),
    ) -> None:
        """Take a grader.

        Args:
            grader: Grades.
            sensitivity: For referable DR on the validation photographs, in (0, 1]; None for
                :data:`SENSITIVITY`, as far as the run has operating points.
            abstain: Do not grade what cannot be graded, as its verdict says.
            maps: Of :func:`~drgrade.explanation.explainer.available`; none: those of :data:`MAPS`
                that the run has.

        Raises:
            ConfigError: If a sensitivity is asked for that the run has no operating point for, or a map that
                it does not have.
        """
        self.grader, self._abstain = grader, abstain
        self.referral: Referral | None = None
        self.no_referral = ""
        try:
            self.referral = _referral(grader, SENSITIVITY if sensitivity is None else sensitivity)
        except ConfigError:
            if sensitivity is not None:
                raise
            notes = [member.calibration.note for member in grader.members if not member.calibration.points]
            self.no_referral = notes[0] if notes else ""
        self._explainer, self._no_maps = _explainer(grader, maps)

    def examine(self, upload: Upload | None, name: str = "") -> Examined:
        """Look at a file.

        Args:
            upload: The file; None if it is not there any more.
            name: What to call it in that case.

        Returns:
            What there is to say. Nothing that can be wrong with a file raises an error.
        """
        if upload is None:
            return Examined(name, failure="the file is not there any more: choose it again")
        if upload.is_too_large:
            return Examined(
                upload.name,
                failure=f"{megabytes(upload.size)} are too many: {megabytes(MAX_BYTES)} at most",
            )
        return self._look(upload)

    def _look(self, upload: Upload) -> Examined:
        prepared = self.grader.preparation.prepare(upload.path)
        crop, verdict = prepared.crop, prepared.verdict
        shown = _read(upload.path, self.grader.preparation.max_pixels)
        photograph = None if shown is None else Picture("", _jpeg(_shrunk(shown)))
        if crop.pixels is None or (verdict.abstains and self._abstain):
            return Examined(upload.name, verdict, photograph=photograph)
        graded, heat, note = self._explained(crop.pixels)
        maps = () if shown is None or crop.facts is None else _painted(_shrunk(shown), crop.facts, heat)
        return Examined(upload.name, verdict, graded, photograph, maps, note=note)

    def _explained(self, pixels: Pixels) -> tuple[Graded, Heat, str]:
        """What is said of a prepared photograph, the maps with the main one first, and why there are none."""
        note = self._no_maps
        if self._explainer is not None:
            try:
                found = self._explainer.explain(pixels[None])
                return found.graded, {name: heat[0] for name, heat in found.heat.items()}, ""
            except ConfigError as error:  # captum is missing, or the head has no gradient
                note = str(error)
        return self.grader.grade(pixels[None]), {}, note


def _explainer(grader: Grader, maps: Sequence[str]) -> tuple[Explainer | None, str]:
    """An explainer, or why there is none."""
    if len(maps) > MOST_MAPS:
        raise ConfigError(f"maps names {len(maps)} maps; the page has room for {MOST_MAPS}")
    if maps:
        return Explainer(grader, maps), ""
    has = available(grader)
    try:
        return Explainer(grader, [name for name in MAPS if name in has]), ""
    except ConfigError as error:  # an encoder without maps can be tried all the same
        return None, str(error)


def _painted(photograph: Pixels, facts: Facts, heat: Heat) -> tuple[Picture, ...]:
    return tuple(Picture(name, _jpeg(overlay(photograph, facts, each))) for name, each in heat.items())


def _referral(grader: Grader, sensitivity: float) -> Referral:
    points = [member.calibration.point(sensitivity) for member in grader.members]
    return Referral(
        grader.threshold(sensitivity),
        sensitivity,
        tuple(each.sensitivity for each in points),
        tuple(each.specificity for each in points),
        tuple(member.calibration.photographs for member in grader.members),
    )


def megabytes(size: int) -> str:
    """Write a number of bytes.

    Args:
        size: In bytes.
    """
    return f"{size / 1e6:,.1f} MB".replace(".0 MB", " MB")


def _read(path: Path, max_pixels: int) -> Pixels | None:
    try:
        return read_photograph(path, max_pixels=max_pixels, at_least=_SHOWN).pixels
    except UnreadablePhotograph:
        return None  # the verdict says why


def _shrunk(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = _SHOWN / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
