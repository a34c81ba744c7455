"""Plan of a synthetic data set (patients, eyes, grades, cameras), and drawing of its photographs."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from drgrade.synthetic.canvas import CAMERAS, aim_camera, take_photograph
from drgrade.synthetic.lesions import LesionPainter, draw_burden
from drgrade.synthetic.retina import (
    Pigmentation,
    grow_vessels,
    paint_background,
    paint_disc,
    paint_drusen,
    paint_vessels,
)

APTOS_COUNTS = (1805, 370, 999, 193, 295)
"""Photographs of grade 0-4 among the 3662 of the APTOS 2019 training set."""

SINGLE_EYE_SHARE = 0.12
"""Share of patients with a photograph of one eye only."""

DRUSEN_SHARE = 0.06
"""Share of eyes with faint drusen, independent of the grade."""

ART_VERSION = 1
"""Goes into the name of the drawn folder. Raise it with any change that alters a pixel or a grade."""

Eye = Literal["left", "right"]


class Stream(IntEnum):
    """Purpose of a random generator; separates streams with the same seed and indices."""

    PLAN = 1
    PATIENT = 2
    EYE = 3


def stream(purpose: Stream, seed: int, *indices: int) -> np.random.Generator:
    """Return the random generator of a purpose.

    Args:
        purpose: Purpose of the generator.
        seed: Seed of the data set, at least 0.
        *indices: Numbers of the patient and the eye, if they matter; at least 0.
    """
    # SeedSequence pads with zeros, so [1, 2] and [1, 2, 0] would be equal: hence + 1.
    return np.random.default_rng([int(purpose), seed, *(index + 1 for index in indices)])


@dataclass(frozen=True)
class PlannedPhotograph:
    """Specification of one photograph to draw.

    Attributes:
        patient: Number of the patient, from 0.
        eye: "left" or "right".
        grade: 0-4.
        camera: Index into :data:`CAMERAS`; the same for both eyes of a patient.
    """

    patient: int
    eye: Eye
    grade: int
    camera: int

    @property
    def patient_id(self) -> str:
        """Id of the patient, such as ``p0001``."""
        return f"p{self.patient + 1:04d}"

    @property
    def image_id(self) -> str:
        """Id of the photograph, such as ``p0001_left``."""
        return f"{self.patient_id}_{self.eye}"


def grade_counts(count: int) -> tuple[int, ...]:
    """Distribute photographs over the grades as in APTOS 2019, by largest remainder.

    Each number is within 1 of its exact share; the sum is ``count``.

    Example:
        >>> grade_counts(40)
        (20, 4, 11, 2, 3)
    """
    exact = count * np.array(APTOS_COUNTS) / sum(APTOS_COUNTS)
    counts = np.floor(exact).astype(int)
    missing = count - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return tuple(int(n) for n in counts)


def plan_photographs(count: int, seed: int) -> list[PlannedPhotograph]:
    """Plan a data set with similar grades of both eyes and cameras independent of the grade.

    Photographs are sorted by grade with some noise, and neighbours become the two eyes of a patient: most
    pairs agree, the others differ by one grade. Cameras are assigned in the same order in random rounds of
    all cameras, so that no camera has mostly severe eyes.

    Args:
        count: Number of photographs, at least 1.
        seed: Seed of the data set, at least 0.

    Returns:
        ``count`` photographs, sorted by image id.
    """
    rng = stream(Stream.PLAN, seed)
    grades = np.repeat(np.arange(len(APTOS_COUNTS)), grade_counts(count))
    grades = grades[np.argsort(grades + rng.uniform(-0.8, 0.8, count), kind="stable")]
    patients = _split_into_patients(grades, rng)
    rounds = [rng.permutation(len(CAMERAS)) for _ in range(len(patients) // len(CAMERAS) + 1)]
    cameras = np.concatenate(rounds)
    numbers = rng.permutation(len(patients))
    photographs = [
        PlannedPhotograph(int(number), eye, grade, int(camera))
        for eyes, camera, number in zip(patients, cameras, numbers, strict=False)
        for eye, grade in eyes.items()
    ]
    return sorted(photographs, key=lambda photograph: photograph.image_id)


def _split_into_patients(grades: np.ndarray, rng: np.random.Generator) -> list[dict[Eye, int]]:
    """Divide a sequence of grades into patients of two neighbouring eyes, sometimes of one."""
    patients: list[dict[Eye, int]] = []
    start = 0
    while start < len(grades):
        eyes: list[Eye] = ["left", "right"] if rng.random() < 0.5 else ["right", "left"]
        alone = rng.random() < SINGLE_EYE_SHARE
        chunk = grades[start : start + (1 if alone else 2)]
        patients.append({eye: int(grade) for eye, grade in zip(eyes, chunk, strict=False)})
        start += len(chunk)
    return patients


@dataclass(frozen=True)
class Drawing:
    """A drawn photograph.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        lesions: (H, W) uint8, labels of :class:`~drgrade.synthetic.lesions.Lesion`.
        jpeg_quality: JPEG quality of its camera.
    """

    pixels: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.uint8]
    jpeg_quality: int


def draw_photograph(photograph: PlannedPhotograph, size: int, seed: int) -> Drawing:
    """Draw a photograph ``size`` pixels high; plan, size and seed of the data set determine it."""
    patient_rng = stream(Stream.PATIENT, seed, photograph.patient)
    eye = Pigmentation.draw(patient_rng)
    exposure = patient_rng.uniform(0.85, 1.12)
    rng = stream(Stream.EYE, seed, photograph.patient, int(photograph.eye == "right"))

    camera = CAMERAS[photograph.camera]
    view = aim_camera(rng, camera, size, mirrored=photograph.eye == "right")
    painter = LesionPainter(rng, view, draw_burden(rng, photograph.grade), grow_vessels(rng))

    retina = paint_background(rng, view, eye)
    if rng.random() < DRUSEN_SHARE:
        paint_drusen(rng, retina, view)
    paint_disc(rng, retina, view, eye)
    painter.paint_deep(retina)
    paint_vessels(retina, view, painter.vessels, eye.redness)
    painter.paint_shallow(retina)
    pixels = take_photograph(rng, camera, view, retina, float(exposure * rng.uniform(0.95, 1.05)))
    return Drawing(pixels, painter.mask(), camera.quality)
