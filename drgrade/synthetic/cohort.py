"""Patients, eyes, grades and cameras of a synthetic data set."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from drgrade.synthetic.camera import CAMERAS
from drgrade.synthetic.canvas import Stream, stream

APTOS_COUNTS = (1805, 370, 999, 193, 295)
"""Photographs of grade 0-4 among the 3662 of the APTOS 2019 training set."""

SINGLE_EYE_SHARE = 0.12
"""Share of patients with a photograph of one eye only."""

Eye = Literal["left", "right"]


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

    Args:
        count: Number of photographs, at least 1.

    Returns:
        Number of photographs of grade 0-4 with sum ``count``, each within 1 of its exact share.

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
        seed: Seed of the data set.

    Returns:
        ``count`` photographs, sorted by image id.
    """
    rng = stream(Stream.PLAN, seed)
    grades = np.repeat(np.arange(len(APTOS_COUNTS)), grade_counts(count))
    grades = grades[np.argsort(grades + rng.uniform(-0.8, 0.8, count), kind="stable")]
    patients = _split_into_patients(grades, rng)
    deals = [rng.permutation(len(CAMERAS)) for _ in range(len(patients) // len(CAMERAS) + 1)]
    cameras = np.concatenate(deals)
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
