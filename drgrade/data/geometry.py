"""Where the disc of the fundus lies in a photograph, and the square around it.

A fundus camera records a bright disc on a dark surround. The disc may be cut off by the frame, or by black
bands inside the file, its rim may be dark, glow, or carry a notch that marks the orientation; text may
stand in a corner. Coordinates are continuous, in pixels, from the upper left corner of the photograph:
pixel ``i`` covers ``[i, i + 1)``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_WORKING_SIZE = 512
"""The disc is looked for at this length of the longer side, where it costs milliseconds."""

_THRESHOLDS = (0.2, 0.35, 0.1, 0.5, 0.05)
"""Tried in this order, as shares of the way from the level of the surround to that of the retina."""

_TOLERANCE = 0.012
"""How far from the circle a point of the rim may lie, as a share of its radius."""

_GOOD_SCORE, _POOR_SCORE = 0.95, 0.3
_STEEP = 1.8  # so much brighter than the threshold is the retina just inside a rim
_TRIALS, _VOTERS = 256, 300
_MARGIN = 2  # working pixels beside the frame that are taken for the frame
_LEAST_VISIBLE = 0.08  # share of a circle that must be in the frame to be judged
_LEAST_RECORDED = 0.3  # distance from the centre, in radii, up to which the camera has recorded the disc

_BLACK, _BLANK = 16, 6  # brightest level of a black image, range of a blank one
_NOISE = 4.0
_SURROUND_SHARE = 0.45  # a surround brighter than this share of the retina is none


class NoFundus(DataError):
    """A photograph shows no disc: it is black or of one colour. The message is the reason."""


@dataclass(frozen=True)
class Disc:
    """The disc of the fundus in a photograph, and the rectangle that the camera recorded of it.

    Attributes:
        x: Centre from the left edge, in pixels.
        y: Centre from the top edge, in pixels.
        radius: In pixels. The disc may reach over the edges of the photograph.
        left: Edges of the recorded rectangle, in pixels: the photograph, less black bands that cut off the
            disc inside the file.
        top: See ``left``.
        right: See ``left``.
        bottom: See ``left``.
    """

    x: float
    y: float
    radius: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def clear_radius(self) -> float:
        """Radius of the largest circle around the centre inside the disc and the recorded rectangle."""
        edges = (self.x - self.left, self.y - self.top, self.right - self.x, self.bottom - self.y)
        return min(self.radius, *edges)

    def scaled(self, fx: float, fy: float) -> "Disc":
        """The same disc in a photograph ``fx`` times as wide and ``fy`` (about the same) as high."""
        return Disc(
            x=fx * self.x,
            y=fy * self.y,
            radius=(fx + fy) / 2 * self.radius,
            left=fx * self.left,
            top=fy * self.top,
            right=fx * self.right,
            bottom=fy * self.bottom,
        )


class _Light(NamedTuple):
    """Levels (0-255) of the dark surround and of the retina."""

    surround: float
    retina: float

    @property
    def step(self) -> float:
        return self.retina - self.surround

    @property
    def noise(self) -> float:
        """Least step above the surround that is not taken for JPEG noise."""
        return min(_NOISE, 0.4 * self.step)


class _Circle(NamedTuple):
    x: float
    y: float
    radius: float


def find_disc(pixels: Pixels) -> Disc:
    """Find the disc of the fundus.

    Thresholds between surround and retina are tried until one gives a component whose outline is a circle;
    points that lie on the frame do not count, and a consensus of three-point circles (RANSAC,
    deterministic) leaves out text, flares and flat cuts. If no rim is visible the disc is the circle
    inscribed in the frame; if the rim fits no circle, the one around the component.

    Args:
        pixels: RGB, uint8 of shape (H, W, 3).

    Raises:
        NoFundus: If the photograph is black, blank or of one colour.
    """
    height, width = pixels.shape[:2]
    factor = min(1.0, _WORKING_SIZE / max(height, width))
    small_size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(pixels, small_size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
    level = np.asarray(cv2.medianBlur(small.max(axis=2), 5), dtype=np.uint8)
    light = _measure(level)
    if light.surround > _SURROUND_SHARE * light.retina:
        # No surround in sight: the frame lies inside the disc.
        disc = _whole_frame(_inscribed(level.shape), level.shape)
    else:
        disc = _with_recorded_bounds(_best_circle(level, light), level, light)
    return disc.scaled(width / small_size[0], height / small_size[1])


def crop_disc(pixels: Pixels, disc: Disc, size: int) -> Pixels:
    """Cut out the square around the disc and bring it to ``size`` pixels, at one scale in both directions.

    Args:
        pixels: RGB, uint8 of shape (H, W, 3).
        disc: The disc in these pixels. Its centre becomes the centre of the square, its radius half the side.
        size: Side of the result in pixels.

    Returns:
        uint8 of shape (size, size, 3); black where the square reaches over the photograph.
    """
    side = max(1, round(2 * disc.radius))
    left, top = round(disc.x - side / 2), round(disc.y - side / 2)
    inside = pixels[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    square = np.zeros((side, side, 3), np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    square[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    method = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=method), dtype=np.uint8)


def _measure(level: Pixels) -> _Light:
    """Measure the brightness of surround and retina.

    Raises:
        NoFundus: If the image is black or of one colour.
    """
    low, high = np.percentile(level, (0.5, 99.5))
    if high < _BLACK:
        raise NoFundus("all black: no fundus to be seen")
    if high - low < _BLANK:
        raise NoFundus("blank: one colour from edge to edge")
    height, width = level.shape
    centre = level[height // 4 : height - height // 4, width // 4 : width - width // 4]
    y, x = max(1, height // 32), max(1, width // 32)
    corners = (level[:y, :x], level[:y, -x:], level[-y:, :x], level[-y:, -x:])
    surround = min(float(np.percentile(level, 1)), *(float(np.median(corner)) for corner in corners))
    least = surround + 0.1 * (float(high) - surround)
    retina = centre[centre > least]
    return _Light(surround, float(np.percentile(retina if len(retina) else level[level > least], 60)))


def _best_circle(level: Pixels, light: _Light) -> _Circle:
    """Fit circles to the outlines at several thresholds; take that with the most and the steepest rim."""
    best, best_score = None, _POOR_SCORE
    outline: _Circle | None = None
    for share in _THRESHOLDS:
        step = max(share * light.step, light.noise)
        mask = _largest_component(level > light.surround + step)
        points = _rim_points(mask)
        outline = outline or _around(mask)
        circle = _fit_circle(points, level.shape)
        if circle is None:
            continue
        support, inner_level = _rim(circle, points, level)
        # On a slope (vignetting, glow) a threshold gives a contour, not the rim: it is no brighter inside.
        score = support * min((inner_level - light.surround) / (_STEEP * step), 1.0)
        if score > best_score:
            best, best_score = circle, score
        if score >= _GOOD_SCORE:
            break
    return best or outline or _inscribed(level.shape)


def _largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest connected region, after thin bridges to text and flares have been cut."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros_like(mask)
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def _rim_points(mask: npt.NDArray[np.bool_]) -> Floats:
    """Outermost edges of a region along rows and columns, (N, 2) of x, y, but for those on the frame."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    first_x, last_x = mask[rows].argmax(axis=1), width - mask[rows, ::-1].argmax(axis=1)
    first_y, last_y = mask[:, columns].argmax(axis=0), height - mask[::-1, columns].argmax(axis=0)
    x = np.concatenate((first_x, last_x, columns + 0.5, columns + 0.5))
    y = np.concatenate((rows + 0.5, rows + 0.5, first_y, last_y))
    off_frame = (x > _MARGIN) & (x < width - _MARGIN) & (y > _MARGIN) & (y < height - _MARGIN)
    points: Floats = np.stack((x, y), axis=1)[off_frame].astype(np.float64)
    return points


def _fit_circle(points: Floats, shape: tuple[int, int]) -> _Circle | None:
    """The circle that most points agree on, then least squares on those that do; None if there is none."""
    if len(points) < 12:
        return None
    x, y, radius = _three_point_circles(points, np.random.default_rng(0))
    height, width = shape
    plausible = (radius > 0.15 * min(shape)) & (radius < 0.75 * np.hypot(height, width))
    plausible &= (np.abs(x - width / 2) < 0.35 * width) & (np.abs(y - height / 2) < 0.35 * height)
    if not plausible.any():
        return None
    x, y, radius = x[plausible], y[plausible], radius[plausible]
    voters = points[:: max(1, len(points) // _VOTERS)]
    errors = np.abs(np.hypot(voters[:, 0, None] - x, voters[:, 1, None] - y) - radius)
    best = int(np.argmax((errors < _TOLERANCE * radius).sum(axis=0)))
    circle = _Circle(float(x[best]), float(y[best]), float(radius[best]))
    for tolerance in (_TOLERANCE, 0.7 * _TOLERANCE, 0.5 * _TOLERANCE):
        near = points[_misses(circle, points) < tolerance * circle.radius]
        if len(near) < 12:
            return None
        circle = _least_squares_circle(near)
    return circle


def _three_point_circles(points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Circles through random triples of ``points`` (N, 2): centre x, centre y and radius, each (T,)."""
    a, b, c = points[rng.integers(len(points), size=(3, _TRIALS))]
    (bx, by), (cx, cy) = (b - a).T, (c - a).T
    twice_area = 2 * (bx * cy - by * cx)
    usable = np.abs(twice_area) > 1e-6
    a, bx, by, cx, cy, twice_area = (v[usable] for v in (a, bx, by, cx, cy, twice_area))
    b2, c2 = bx**2 + by**2, cx**2 + cy**2
    x, y = (cy * b2 - by * c2) / twice_area, (bx * c2 - cx * b2) / twice_area
    return a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)


def _least_squares_circle(points: Floats) -> _Circle:
    """Algebraic least squares (Kåsa 1976): x² + y² = 2ax + 2by + c is linear in a, b, c."""
    middle = points.mean(axis=0)
    x, y = (points - middle).T
    design = np.stack((2 * x, 2 * y, np.ones_like(x)), axis=1)
    (a, b, c), *_ = np.linalg.lstsq(design, x**2 + y**2, rcond=None)
    return _Circle(float(a + middle[0]), float(b + middle[1]), float(np.sqrt(max(c + a**2 + b**2, 0.0))))


def _misses(circle: _Circle, points: Floats) -> Floats:
    """Distance of every point from the circle, (N,)."""
    distance = np.hypot(points[:, 0] - circle.x, points[:, 1] - circle.y)
    return np.asarray(np.abs(distance - circle.radius))


def _rim(circle: _Circle, points: Floats, level: Pixels) -> tuple[float, float]:
    """Judge a circle.

    Returns:
        The share of its visible directions with a rim point on it, and the median level just inside there;
        (0, 0) if hardly any of it is visible.
    """
    bins = 120
    angles = (np.arange(bins) + 0.5) * 2 * np.pi / bins
    x, y = circle.x + circle.radius * np.cos(angles), circle.y + circle.radius * np.sin(angles)
    height, width = level.shape
    visible = (x > _MARGIN) & (x < width - _MARGIN) & (y > _MARGIN) & (y < height - _MARGIN)
    if visible.sum() < _LEAST_VISIBLE * bins:
        return 0.0, 0.0
    near = points[_misses(circle, points) < _TOLERANCE * circle.radius]
    direction = np.arctan2(near[:, 1] - circle.y, near[:, 0] - circle.x) % (2 * np.pi)
    hit = np.zeros(bins, bool)
    hit[np.minimum((direction * bins / (2 * np.pi)).astype(int), bins - 1)] = True
    inner_x, inner_y = circle.x + 0.97 * (x - circle.x), circle.y + 0.97 * (y - circle.y)
    inner = level[inner_y[visible].astype(int), inner_x[visible].astype(int)]
    return float((hit & visible).sum() / visible.sum()), float(np.median(inner))


def _around(mask: npt.NDArray[np.bool_]) -> _Circle | None:
    """Circle over the longer side of a region's bounding box; None if it is too small for a disc."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0 or max(np.ptp(rows), np.ptp(columns)) < 0.2 * min(mask.shape):
        return None
    radius = max(np.ptp(rows), np.ptp(columns)) / 2 + 0.5
    return _Circle((columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2, float(radius))


def _inscribed(shape: tuple[int, int]) -> _Circle:
    height, width = shape
    return _Circle(width / 2, height / 2, min(height, width) / 2)


def _whole_frame(circle: _Circle, shape: tuple[int, int]) -> Disc:
    return Disc(*circle, left=0.0, top=0.0, right=float(shape[1]), bottom=float(shape[0]))


def _with_recorded_bounds(circle: _Circle, level: Pixels, light: _Light) -> Disc:
    """Add the rectangle inside which rows and columns of the disc hold content, not a black band."""
    height, width = level.shape
    y, x = np.ogrid[:height, :width]
    outside = np.hypot(x + 0.5 - circle.x, y + 0.5 - circle.y) > 1.04 * circle.radius
    surround = float(np.percentile(level[outside], 90)) if outside.sum() > 50 else light.surround
    # Beside a glowing rim the surround is bright, but a black band is not.
    content = level > min(surround + light.noise, light.surround + 0.3 * light.step)
    top, bottom = _extent(content, circle.y, circle.x, circle.radius)
    left, right = _extent(content.T, circle.x, circle.y, circle.radius)
    return Disc(*circle, left=left, top=top, right=right, bottom=bottom)


def _extent(
    content: npt.NDArray[np.bool_], along: float, across: float, radius: float
) -> tuple[float, float]:
    """First and last line of ``content`` (lines, length) that the camera recorded.

    A line counts as black if most of what it shows of the disc is. Lines outside the disc tell nothing; up
    to them everything counts as recorded.

    Args:
        content: Whether a pixel is brighter than the surround.
        along: Centre of the disc, counted in lines.
        across: Centre of the disc within a line.
        radius: Of the disc.
    """
    lines, length = content.shape
    offsets = np.arange(lines) + 0.5 - along
    half = np.sqrt(np.maximum((0.97 * radius) ** 2 - offsets**2, 0.0))
    start = np.clip(across - half, 0, length).astype(int)
    stop = np.clip(across + half + 1, 0, length).astype(int)
    filled = np.pad(np.cumsum(content, axis=1), ((0, 0), (1, 0)))
    numbers = np.arange(lines)
    bright = filled[numbers, stop] - filled[numbers, start]
    black = (half > 0.15 * radius) & (bright < 0.5 * (stop - start))
    # Nearer to the centre no band is to be believed: it is a dark fundus.
    black &= np.abs(offsets) > _LEAST_RECORDED * radius
    before, after = np.flatnonzero(black & (offsets < 0)), np.flatnonzero(black & (offsets > 0))
    # One line more is given up at a band: the line beside it is a mixture.
    first = before[-1] + 2 if len(before) else 0
    last = after[0] - 1 if len(after) else lines
    return float(first), float(last)
