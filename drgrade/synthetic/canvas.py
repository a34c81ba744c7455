"""Random streams, smooth noise, projection from anatomy to pixels, canvas for shapes, and cameras.

Anatomical coordinates have their origin at the centre of the optic disc and the radius of the disc as unit; x
points to the temple (towards the macula), y points down. They are equal for both eyes; the view mirrors them.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
"""Image (H, W) or (H, W, 3), values in [0, 1] unless stated otherwise."""

Points = npt.NDArray[np.float64]
"""(N, 2) points, x before y."""

FOVEA = (5.0, 0.45)
"""Position of the fovea: 2.5 disc diameters towards the temple, slightly below the disc."""


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


Notch = Literal["none", "tab", "teeth", "triangle", "bite"]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Camera model with its settings in one clinic."""

    name: str
    aspect: float = 4 / 3  # width over height of the frame, at least 1
    fill: float  # diameter of the field over the height of the frame; above 1 the frame cuts the field
    degrees: float = 45  # angle of the field
    gains: tuple[float, float, float]  # white balance: factors of red, green and blue
    gamma: float = 0.95  # exponent of the tone curve; below 1 is brighter
    vignetting: float = 0.35  # loss of light at the rim, in [0, 1]
    blur: float = 0.004  # standard deviation of the optical blur in radii of the field
    noise: float = 0.008  # standard deviation of the sensor noise, in [0, 1]
    quality: int = 90  # JPEG quality
    notch: Notch = "none"  # mark at the rim of the field
    notch_angle: float = 0  # position of the mark in degrees, clockwise from the right
    haze: float = 0.0  # bluish-grey veil at the rim, in [0, 1]
    backdrop: tuple[float, float, float] = (0.004, 0.004, 0.004)  # RGB outside the field, in [0, 1]
    offset: tuple[float, float] = (0.0, 0.0)  # of the field from the centre of the frame, in frame heights


CAMERAS = (
    Camera(
        name="cut-50",
        aspect=1.5,
        fill=1.18,
        degrees=50,
        notch="teeth",
        notch_angle=-27,
        gains=(1.0, 0.98, 0.80),
        gamma=1.05,
        vignetting=0.45,
        backdrop=(0.012, 0.008, 0.006),
        blur=0.0035,
        quality=92,
        offset=(-0.07, 0.0),
    ),
    Camera(
        name="whole-45",
        fill=0.96,
        notch="tab",
        notch_angle=-45,
        gains=(1.0, 1.02, 1.15),
        vignetting=0.30,
        haze=0.05,
        blur=0.003,
        noise=0.006,
        quality=95,
    ),
    Camera(
        name="square-45",
        aspect=1.0,
        fill=0.99,
        gains=(1.0, 1.05, 0.70),
        gamma=1.0,
        noise=0.010,
        quality=88,
    ),
    Camera(
        name="pink-45",
        aspect=1.5,
        fill=0.94,
        notch="triangle",
        notch_angle=42,
        gains=(0.92, 1.0, 1.35),
        gamma=0.85,
        vignetting=0.20,
        haze=0.10,
        backdrop=(0.02, 0.016, 0.024),
        noise=0.007,
    ),
    Camera(
        name="dim-45",
        fill=1.0,
        notch="bite",
        gains=(0.85, 0.75, 0.55),
        gamma=1.15,
        vignetting=0.50,
        blur=0.006,
        noise=0.014,
        quality=82,
    ),
    Camera(
        name="veiled-40",
        aspect=1.5,
        fill=1.02,
        degrees=40,
        notch="tab",
        notch_angle=-45,
        gains=(0.98, 1.0, 0.95),
        vignetting=0.15,
        haze=0.42,
        backdrop=(0.008, 0.010, 0.012),
    ),
    Camera(
        name="handheld-40",
        aspect=1.25,
        fill=1.22,
        degrees=40,
        gains=(1.08, 0.95, 0.75),
        vignetting=0.50,
        haze=0.08,
        backdrop=(0.03, 0.018, 0.012),
        blur=0.008,
        noise=0.020,
        quality=72,
    ),
    Camera(
        name="narrow-35",
        fill=0.9,
        degrees=35,
        gains=(1.0, 1.0, 0.85),
        gamma=0.9,
        backdrop=(0.016, 0.016, 0.016),
        blur=0.005,
        noise=0.010,
        quality=85,
        offset=(0.03, 0.0),
    ),
)
"""Cameras of the data set, equally frequent."""

DISC_DEGREES = 3.2
"""Half the angle of the field over this is approximately the radius of the field in disc radii."""


def aim_camera(rng: np.random.Generator, camera: Camera, size: int, mirrored: bool) -> View:
    """Return a random view of an eye with disc and fovea, in a frame ``size`` pixels high."""
    width = round(size * camera.aspect)
    radius = 0.5 * size * camera.fill * rng.uniform(0.985, 1.015)
    reach = camera.degrees / 2 / DISC_DEGREES
    centre = (
        (width - 1) / 2 + (camera.offset[0] + rng.normal(0, 0.004)) * size,
        (size - 1) / 2 + (camera.offset[1] + rng.normal(0, 0.004)) * size,
    )
    aim = (
        min(reach * rng.uniform(0.36, 0.62), reach - 1.9),
        float(np.clip(rng.normal(0.2, 0.45), -0.9, 1.1)),
    )
    return View((size, width), centre, float(radius), reach, aim, float(rng.normal(0, 0.06)), mirrored)


def take_photograph(
    rng: np.random.Generator, camera: Camera, view: View, scene: FloatImage, exposure: float
) -> npt.NDArray[np.uint8]:
    """Photograph a painted retina.

    Args:
        rng: Random generator.
        camera: The camera.
        view: Result of :func:`aim_camera`.
        scene: (H, W, 3) RGB of the evenly lit retina, in [0, 1].
        exposure: Factor of the light, about 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    backdrop = np.array(camera.backdrop, np.float32)
    field = _field(camera, view)
    image = field[..., None] * (_expose(rng, camera, view, scene, exposure) - backdrop) + backdrop
    image = soften(np.asarray(image, np.float32), max(0.3, camera.blur * view.radius))
    grain = rng.standard_normal(view.shape, dtype=np.float32) * (0.2 + 0.8 * field)
    # Demosaicing makes colour noise coarser than brightness noise.
    coarse = rng.standard_normal((view.shape[0] // 2, view.shape[1] // 2, 3), dtype=np.float32)
    speckles = np.asarray(cv2.resize(coarse, view.shape[::-1]), np.float32)
    image += np.float32(camera.noise) * (grain[..., None] + np.float32(0.7) * speckles)
    np.clip(image * np.float32(255) + np.float32(0.5), 0, 255, out=image)
    return image.astype(np.uint8)


def _expose(
    rng: np.random.Generator, camera: Camera, view: View, scene: FloatImage, exposure: float
) -> FloatImage:
    """Light the retina, add the veil, apply white balance and tone curve; (H, W, 3) in [0, 1]."""
    lit = scene * (_light(rng, camera, view) * np.float32(exposure))[..., None]
    lit *= np.array(camera.gains, np.float32)
    veil = np.float32(camera.haze) * np.clip(view.eccentricity, 0, 1) ** 7
    lit += veil[..., None] * (np.array((0.62, 0.66, 0.62), np.float32) - lit)
    # Highlights saturate softly; clipping would remove the structure of the disc.
    bright = lit > 0.75
    lit[bright] = 0.75 + 0.25 * np.tanh((lit[bright] - 0.75) / 0.25)
    return np.asarray(cv2.pow(np.maximum(lit, 0), camera.gamma), np.float32)


def _light(rng: np.random.Generator, camera: Camera, view: View) -> FloatImage:
    """Return the illumination of every pixel, (H, W) about 1."""
    x, y = view.offsets
    x = x / view.radius - float(rng.normal(0, 0.14))
    y = y / view.radius - float(rng.normal(0, 0.14))
    fall = np.float32(camera.vignetting) * (x * x + y * y) ** 1.3
    return np.asarray((1.08 - fall + 0.04 * cloud(rng, view.shape, 3)).clip(0.25), np.float32)


def _field(camera: Camera, view: View) -> FloatImage:
    """Return the aperture with its notch, (H, W): 0 outside, 1 inside."""
    edge = (1 - view.eccentricity) * view.radius
    softness = max(1.0, 0.006 * view.radius)
    field = np.clip(edge / softness + 0.5, 0, 1)
    if camera.notch == "none":
        return np.asarray(field, np.float32)
    x, y = (offset / view.radius for offset in view.offsets)
    turn = np.deg2rad(camera.notch_angle)
    outward = np.cos(turn) * x + np.sin(turn) * y
    across = np.cos(turn) * y - np.sin(turn) * x
    if camera.notch == "tab":
        mark = (outward > 0.9) & (outward < 1.045) & (np.abs(across) < 0.055)
    elif camera.notch == "teeth":
        mark = (outward > 0.9) & (outward < 1.035) & (np.abs(np.abs(across) - 0.05) < 0.022)
    elif camera.notch == "triangle":
        mark = (outward > 0.9) & (np.abs(across) < 0.075 - 0.9 * (outward - 0.985)) & (outward < 1.065)
    else:
        mark = (outward > 0.94 + 0.9 * np.abs(across)) & (np.abs(across) < 0.07)
        return np.asarray(field * ~mark, np.float32)
    return np.asarray(np.maximum(field, mark), np.float32)
