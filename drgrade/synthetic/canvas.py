"""Random streams, smooth noise, projection from anatomy to pixels, and a canvas for hard-edged shapes.

Anatomical coordinates have their origin at the centre of the optic disc and the radius of the disc as unit; x
points to the temple (towards the macula), y points down. They are equal for both eyes; the view mirrors them.
"""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
"""Image (H, W) or (H, W, 3), values in [0, 1] unless stated otherwise."""

Points = npt.NDArray[np.float64]
"""(N, 2) points, x before y."""

FOVEA = (5.0, 0.45)
"""Position of the fovea: 2.5 disc diameters towards the temple, slightly below the disc."""


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


def cloud(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> FloatImage:
    """Draw smooth noise (H, W) of mean about 0 and standard deviation about 1/2.

    White noise of ``cells`` rows is enlarged to the height and width ``shape``.
    """
    height, width = shape
    across = max(2, round(cells * width / height))
    small = rng.standard_normal((cells, across), dtype=np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32) * 0.7


def soften(image: FloatImage, sigma: float) -> FloatImage:
    """Blur with a Gaussian of ``sigma`` pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32) if sigma > 0.05 else image


@dataclass(frozen=True)
class View:
    """Projection of an eye to one photograph.

    Attributes:
        shape: Height and width of the photograph in pixels.
        centre: Centre (x, y) of the round field of the camera in pixels.
        radius: Radius of the field in pixels; the frame may cut the field.
        reach: Radius of the field in disc radii.
        aim: Anatomical coordinates of the centre of the field.
        tilt: Tilt of the head in radians.
        mirrored: True for a right eye, whose temple is on the left of the photograph.
    """

    shape: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    reach: float
    aim: tuple[float, float]
    tilt: float
    mirrored: bool
    _matrix: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        flip = np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        object.__setattr__(self, "_matrix", self.unit * (flip @ np.array([[cos, -sin], [sin, cos]])))

    @property
    def unit(self) -> float:
        """One disc radius in pixels."""
        return self.radius / self.reach

    @property
    def supersampling(self) -> int:
        """Supersampling factor of hard-edged shapes."""
        return int(np.clip(round(1024 / self.shape[0]), 1, 4))

    def to_pixels(self, points: npt.ArrayLike) -> Points:
        """Map anatomical (N, 2) points to pixels."""
        return np.asarray((np.asarray(points) - self.aim) @ self._matrix.T + self.centre)

    def to_anatomy(self, points: npt.ArrayLike) -> Points:
        """Map (N, 2) pixels to anatomical points."""
        return np.asarray((np.asarray(points) - self.centre) @ np.linalg.inv(self._matrix).T + self.aim)

    @property
    def offsets(self) -> tuple[FloatImage, FloatImage]:
        """Horizontal (1, W) and vertical (H, 1) distance of pixels from the centre of the field in pixels."""
        height, width = self.shape
        x = np.arange(width, dtype=np.float32)[None, :] - np.float32(self.centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(self.centre[1])
        return x, y

    @cached_property
    def anatomy(self) -> tuple[FloatImage, FloatImage]:
        """Anatomical x and y of every pixel, two (H, W) arrays."""
        inverse = np.linalg.inv(self._matrix).astype(np.float32)
        x, y = self.offsets
        return (
            inverse[0, 0] * x + inverse[0, 1] * y + np.float32(self.aim[0]),
            inverse[1, 0] * x + inverse[1, 1] * y + np.float32(self.aim[1]),
        )

    @cached_property
    def eccentricity(self) -> FloatImage:
        """Distance of every pixel from the centre of the field, (H, W); 1 at its rim."""
        x, y = self.offsets
        return np.asarray(np.sqrt(x * x + y * y) / np.float32(self.radius), np.float32)

    def distance(self, point: tuple[float, float], stretch: float = 1.0) -> FloatImage:
        """Return the distance of every pixel from an anatomical point in disc radii, (H, W).

        Vertical distances are divided by ``stretch``, for upright ellipses.
        """
        x, y = self.anatomy
        return np.sqrt(
            (x - np.float32(point[0])) ** 2 + ((y - np.float32(point[1])) / np.float32(stretch)) ** 2
        )

    def window(self, point: tuple[float, float], reach: float) -> tuple[tuple[slice, slice], "View"]:
        """Return rows and columns of the window within ``reach`` disc radii of a point, and its view."""
        (x, y), half = self.to_pixels([point])[0], reach * self.unit
        rows = slice(max(0, int(y - half)), min(self.shape[0], int(y + half) + 2))
        columns = slice(max(0, int(x - half)), min(self.shape[1], int(x + half) + 2))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        centre = (self.centre[0] - columns.start, self.centre[1] - rows.start)
        return (rows, columns), replace(self, shape=shape, centre=centre)

    def shows(self, pixels: Points, margin: float) -> npt.NDArray[np.bool_]:
        """Return which (N, 2) pixels are at least ``margin`` field radii inside the field and the frame."""
        height, width = self.shape
        edge = margin * self.radius
        inside = np.hypot(*(pixels - self.centre).T) < self.radius - edge
        x, y = pixels.T
        return np.asarray(inside & (x > edge) & (x < width - edge) & (y > edge) & (y < height - edge))


class Canvas:
    """Layer of hard-edged shapes, drawn with supersampling and averaged to coverage."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._scale = view.supersampling
        height, width = view.shape
        self._pixels = np.zeros((height * self._scale, width * self._scale), np.uint8)

    def _fixed_point(self, points: Points) -> npt.NDArray[np.int32]:
        """Convert pixels of the photograph to fixed-point coordinates with 4 fractional bits."""
        fine = (points + 0.5) * self._scale - 0.5
        return np.round(fine * 16).astype(np.int32).reshape(-1, 1, 2)

    def polygon(self, points: Points, value: float = 1.0) -> None:
        """Fill the polygon through (N, 2) pixels with coverage ``value`` in [0, 1]."""
        cv2.fillPoly(self._pixels, [self._fixed_point(points)], round(255 * value), cv2.LINE_8, 4)

    def line(self, points: Points, widths: npt.NDArray[np.float64], value: float = 1.0) -> None:
        """Draw a line through (N, 2) pixels with diameters ``widths`` (N,) in pixels."""
        fine = widths * self._scale
        thickness = np.maximum(1, np.round(fine)).astype(int)
        fixed = self._fixed_point(points)
        breaks = np.flatnonzero(np.diff(thickness[:-1])) + 1
        for start, end in zip([0, *breaks], [*breaks, len(points) - 1], strict=True):
            # A line thinner than one supersampled pixel is drawn one pixel wide and paler.
            shade = round(255 * value * min(1.0, float(fine[start])))
            width = int(thickness[start])
            cv2.polylines(self._pixels, [fixed[start : end + 1]], False, shade, width, cv2.LINE_8, 4)

    def coverage(self) -> FloatImage:
        """Return the covered share of every pixel, (H, W) in [0, 1]."""
        height, width = self._view.shape
        if self._scale == 1:
            small = cv2.GaussianBlur(self._pixels, (3, 3), 0.6)
        elif self._scale == 4:
            # Halving twice gives the same average several times faster in OpenCV.
            half = cv2.resize(self._pixels, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
            small = cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA)
        else:
            small = cv2.resize(self._pixels, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32) / np.float32(255)
