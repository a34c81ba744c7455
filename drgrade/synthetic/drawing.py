"""Drawing of one synthetic photograph."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrade.synthetic.camera import CAMERAS, aim_camera, take_photograph
from drgrade.synthetic.canvas import Stream, stream
from drgrade.synthetic.cohort import PlannedPhotograph
from drgrade.synthetic.lesions import LesionPainter, draw_burden
from drgrade.synthetic.retina import Pigmentation, paint_background, paint_disc, paint_drusen
from drgrade.synthetic.vessels import grow_vessels, paint_vessels

DRUSEN_SHARE = 0.06
"""Share of eyes with faint drusen, independent of the grade."""


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
    """Draw one photograph.

    Args:
        photograph: Patient, eye, grade and camera.
        size: Height of the frame in pixels.
        seed: Seed of the data set.

    Returns:
        The drawing, determined by the arguments.
    """
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


ART_VERSION = 1
"""Goes into the name of the drawn folder. Raise it with any change that alters a pixel or a grade."""
