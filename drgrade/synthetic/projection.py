"""From anatomy to pixels.

Anatomical coordinates have their origin at the centre of the optic disc and the disc's radius as their unit;
x points to the temple (towards the macula), y points down. They are the same for both eyes; the view mirrors.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.synthetic.noise import FloatImage

Points = npt.NDArray[np.float64]
"""(N, 2) points, x before y."""

FOVEA = (5.0, 0.45)
"""Where the fovea lies: 2.5 disc diameters towards the temple, slightly below the disc."""


@dataclass(frozen=True)
class View:
    """How one photograph shows an eye.

    Attributes:
        shape: Height and width of the photograph in px.
        centre: Centre (x, y) of the camera's round field in px.
        radius: Radius of the field in px; the field may be cut by the frame.
        reach: Radius of the field in disc radii.
        aim: What lies at the field's centre, in anatomical coordinates.
        tilt: Angle by which the head was tilted, in radians.
        mirrored: True where the temple is on the left of the photograph, that is for a right eye.
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
        """One disc radius in px."""
        return self.radius / self.reach

    @property
    def supersampling(self) -> int:
        """How many times finer than the photograph hard-edged shapes are drawn."""
        return int(np.clip(round(1024 / self.shape[0]), 1, 4))

    def to_pixels(self, points: npt.ArrayLike) -> Points:
        """Map anatomical (N, 2) points to pixels."""
        return np.asarray((np.asarray(points) - self.aim) @ self._matrix.T + self.centre)

    def to_anatomy(self, points: npt.ArrayLike) -> Points:
        """Map (N, 2) pixels to anatomical points."""
        return np.asarray((np.asarray(points) - self.centre) @ np.linalg.inv(self._matrix).T + self.aim)

    @cached_property
    def anatomy(self) -> tuple[FloatImage, FloatImage]:
        """Anatomical x and y of every pixel, two (H, W) arrays."""
        height, width = self.shape
        inverse = np.linalg.inv(self._matrix).astype(np.float32)
        x = np.arange(width, dtype=np.float32)[None, :] - np.float32(self.centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(self.centre[1])
        return (
            inverse[0, 0] * x + inverse[0, 1] * y + np.float32(self.aim[0]),
            inverse[1, 0] * x + inverse[1, 1] * y + np.float32(self.aim[1]),
        )

    @cached_property
    def eccentricity(self) -> FloatImage:
        """Distance of every pixel from the field's centre, (H, W); 1 is the rim of the field."""
        height, width = self.shape
        x = np.arange(width, dtype=np.float32)[None, :] - np.float32(self.centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(self.centre[1])
        return np.asarray(np.sqrt(x * x + y * y) / np.float32(self.radius), np.float32)

    def distance(self, point: tuple[float, float], stretch: float = 1.0) -> FloatImage:
        """Distance of every pixel from an anatomical point, (H, W), in disc radii.

        Args:
            point: The anatomical point.
            stretch: Points above and below count as this much nearer, for upright ellipses.
        """
        x, y = self.anatomy
        return np.sqrt(
            (x - np.float32(point[0])) ** 2 + ((y - np.float32(point[1])) / np.float32(stretch)) ** 2
        )

    def window(self, point: tuple[float, float], reach: float) -> tuple[tuple[slice, slice], "View"]:
        """Cut out the surroundings of an anatomical point, to work on few pixels.

        Args:
            point: The anatomical point; it is in the frame.
            reach: How far the surroundings reach, in disc radii.

        Returns:
            The rows and columns, and the view of that part alone.
        """
        (x, y), half = self.to_pixels([point])[0], reach * self.unit
        rows = slice(max(0, int(y - half)), min(self.shape[0], int(y + half) + 2))
        columns = slice(max(0, int(x - half)), min(self.shape[1], int(x + half) + 2))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        centre = (self.centre[0] - columns.start, self.centre[1] - rows.start)
        return (rows, columns), replace(self, shape=shape, centre=centre)

    def shows(self, pixels: Points, margin: float) -> npt.NDArray[np.bool_]:
        """Tell which (N, 2) pixels are visible, at least ``margin`` field radii from field edge and frame."""
        height, width = self.shape
        edge = margin * self.radius
        inside = np.hypot(*(pixels - self.centre).T) < self.radius - edge
        x, y = pixels.T
        return np.asarray(inside & (x > edge) & (x < width - edge) & (y > edge) & (y < height - edge))


class Canvas:
    """A layer of hard-edged shapes, drawn finer than the photograph and then averaged down to coverage."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._scale = view.supersampling
        height, width = view.shape
        self._pixels = np.zeros((height * self._scale, width * self._scale), np.uint8)

    def _fixed_point(self, points: Points) -> npt.NDArray[np.int32]:
        """Turn pixels of the photograph into OpenCV's fixed-point numbers with 4 fractional bits."""
        fine = (points + 0.5) * self._scale - 0.5
        return np.round(fine * 16).astype(np.int32).reshape(-1, 1, 2)

    def polygon(self, points: Points, value: float = 1.0) -> None:
        """Fill the polygon through (N, 2) pixels with a coverage of ``value`` (0..1)."""
        cv2.fillPoly(self._pixels, [self._fixed_point(points)], round(255 * value), cv2.LINE_8, 4)

    def line(self, points: Points, widths: npt.NDArray[np.float64], value: float = 1.0) -> None:
        """Draw a line of changing width through (N, 2) pixels; ``widths`` (N,) are diameters in px."""
        fine = widths * self._scale
        thickness = np.maximum(1, np.round(fine)).astype(int)
        fixed = self._fixed_point(points)
        breaks = np.flatnonzero(np.diff(thickness[:-1])) + 1
        for start, end in zip([0, *breaks], [*breaks, len(points) - 1], strict=True):
            # A line thinner than a fine pixel is drawn one wide, and paler for it.
            shade = round(255 * value * min(1.0, float(fine[start])))
            width = int(thickness[start])
            cv2.polylines(self._pixels, [fixed[start : end + 1]], False, shade, width, cv2.LINE_8, 4)

    def coverage(self) -> FloatImage:
        """Return how much of every pixel of the photograph is covered, (H, W) 0..1."""
        height, width = self._view.shape
        if self._scale == 1:
            small = cv2.GaussianBlur(self._pixels, (3, 3), 0.6)
        elif self._scale == 4:
            # Halving twice is the same average, but OpenCV is several times faster at it.
            half = cv2.resize(self._pixels, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
            small = cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA)
        else:
            small = cv2.resize(self._pixels, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32) / np.float32(255)
