"""The disc of the fundus in a photograph: its crop and thumbnail, its surround, and the fit of its rim.

Coordinates are continuous, in pixels, from the upper left corner of the photograph: pixel ``i`` covers
``[i, i + 1)``. :mod:`drgrade.data.disc_detection` finds the disc; see ``docs/geometry.md``.
"""

from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.errors import DataError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

Thumbnail = npt.NDArray[np.uint8]
"""(T, T) uint8: 0 where the camera recorded nothing, 1-255 in the disc of the fundus."""

THUMBNAIL_SIZE = 128
"""Side T of a thumbnail in pixels. It does not depend on the image size, so that splits do not either.

A larger image size may decode photographs at a finer scale, which changes a thumbnail by less than JPEG
noise.
"""

_GREEN = 1  # channel with the most contrast of vessels and lesions and the least JPEG noise
_LAST_REDUCTION = 1.5  # the last resize of a crop reduces at least by this, which hides artefacts of halving

_INNER = 0.9  # share of the radius in which noise is looked for: the rim is structure
_FEWEST_PAIRS = 200
_ONE_COLOUR = 0.5  # standard deviation in levels
_RELATED = 0.5  # least correlation of neighbouring pixels; real photographs have 0.8 and more


class NoFundus(DataError):
    """An image is no fundus photograph: black, of one colour, noise or a strip. The message is the reason."""


@dataclass(frozen=True)
class Disc:
    """The disc of the fundus in a photograph and the rectangle in which the camera recorded it.

    All lengths are pixels of the file. In a squashed file the disc is an ellipse with upright axes:
    ``radius`` is its vertical semi-axis, ``stretch * radius`` its horizontal one.

    Attributes:
        x: Centre from the left edge.
        y: Centre from the top edge.
        radius: Vertical radius. The disc may extend beyond the photograph.
        left: Left edge of the recorded rectangle: the photograph without black bands that cut off the disc.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
        stretch: Horizontal over vertical semi-axis; exactly 1 unless the rim shows that the file was
            squashed.
        doubt: Why the disc may be wrong; empty if its rim was found.
        framed: True if a bright surround, such as paper or a window, was removed to find it.
    """

    x: float
    y: float
    radius: float
    left: float
    top: float
    right: float
    bottom: float
    stretch: float = 1.0
    doubt: str = field(default="", compare=False)
    framed: bool = field(default=False, compare=False)

    @property
    def clear_radius(self) -> float:
        """Radius of the largest circle around the centre inside the disc and the recorded rectangle.

        It is vertical and squashed like ``radius``; ``clear_radius / radius`` is its share of the disc.
        """
        across = min(self.x - self.left, self.right - self.x) / self.stretch
        return min(self.radius, self.y - self.top, self.bottom - self.y, across)

    def scaled(self, fx: float, fy: float) -> "Disc":
        """Return the disc after the photograph was resized by ``fx`` horizontally and ``fy`` vertically."""
        return replace(
            self,
            x=fx * self.x,
            y=fy * self.y,
            radius=(fx + fy) / 2 * self.radius,
            left=fx * self.left,
            top=fy * self.top,
            right=fx * self.right,
            bottom=fy * self.bottom,
        )


def halve(pixels: Pixels) -> Pixels:
    """Average two by two pixels, much faster than other reductions; an odd last row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def crop_disc(pixels: Pixels, disc: Disc, size: int) -> Pixels:
    """Crop the square around the disc and resize it.

    The centre of the disc becomes the centre of the square and its radius half the side; a squashed disc
    becomes round.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        disc: The disc in these pixels.
        size: Side of the result in pixels.

    Returns:
        uint8 (size, size, 3), black outside the photograph.
    """
    across, down = 2 * disc.radius * disc.stretch, 2 * disc.radius
    reduction = min(across, down) / size
    halvings = int(np.log2(max(reduction / _LAST_REDUCTION, 1)))
    unit = 2**halvings
    width, height = max(1, round(across / unit)) * unit, max(1, round(down / unit)) * unit
    left, top = round(disc.x - width / 2), round(disc.y - height / 2)
    square = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if square.shape[:2] != (height, width):
        y, x, inside = max(-top, 0), max(-left, 0), square
        square = np.zeros((height, width, 3), np.uint8)
        square[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    for _ in range(halvings):
        square = halve(square)
    method = cv2.INTER_AREA if reduction >= 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=method), dtype=np.uint8)


def recorded_mask(disc: Disc, size: int) -> Mask:
    """Return the pixels of a crop that show the recorded disc, not surround, black bands or padding.

    Args:
        disc: The disc in the pixels that were cropped.
        size: Side of the crop in pixels.

    Returns:
        (size, size), True where the centre of a pixel is inside the disc and the whole pixel is inside the
        recorded rectangle, less half a pixel of the photograph for the rounding in :func:`crop_disc`.
    """
    place = (np.arange(size) + 0.5) / (size / 2) - 1  # in radii
    inside = place[:, None] ** 2 + place**2 <= 1
    for axis, middle, semi_axis, first, last in (
        (0, disc.y, disc.radius, disc.top, disc.bottom),
        (1, disc.x, disc.radius * disc.stretch, disc.left, disc.right),
    ):
        offset, reach = middle + semi_axis * place, semi_axis / size + 0.5
        recorded = (offset - reach >= first) & (offset + reach <= last)
        inside &= np.expand_dims(recorded, 1 - axis)
    return np.asarray(inside)


def make_thumbnail(pixels: Pixels, disc: Disc) -> Thumbnail:
    """Compute the thumbnail of a photograph: the green channel of the square around its disc.

    Args:
        pixels: RGB, uint8 (H, W, 3), decoded at any size.
        disc: The disc in these pixels.
    """
    green = crop_disc(pixels, disc, THUMBNAIL_SIZE)[..., _GREEN]
    offsets = np.linspace(-1, 1, 2 * THUMBNAIL_SIZE + 1)[1::2]  # pixel centres, in units of the radius
    x, y = disc.x + disc.radius * disc.stretch * offsets, disc.y + disc.radius * offsets
    in_disc = np.square(offsets)[:, None] + np.square(offsets) < 1
    recorded = in_disc & _between(disc.top, y, disc.bottom)[:, None] & _between(disc.left, x, disc.right)
    return np.where(recorded, np.maximum(green, 1), 0).astype(np.uint8)


def refuse_noise(thumbnail: Thumbnail, diameter: float) -> None:
    """Refuse an image whose neighbouring pixels have nothing in common, or that has one colour in its disc.

    Args:
        thumbnail: Its thumbnail.
        diameter: Diameter of the disc in the pixels of which it was made; fewer than T were enlarged.

    Raises:
        NoFundus: If it is one.
    """
    step = ceil(max(1, len(thumbnail) / diameter))
    y, x = np.mgrid[: len(thumbnail), : len(thumbnail)] + 0.5 - len(thumbnail) / 2
    inside = (thumbnail > 0) & (np.hypot(x, y) < _INNER * len(thumbnail) / 2)
    pairs = inside[:, step:] & inside[:, :-step]
    if pairs.sum() < _FEWEST_PAIRS:
        return
    left, right = thumbnail[:, :-step][pairs].astype(float), thumbnail[:, step:][pairs].astype(float)
    spread = left.std() * right.std()
    if spread < _ONE_COLOUR**2:
        raise NoFundus("no fundus photograph: one colour in the disc")
    if ((left - left.mean()) * (right - right.mean())).mean() < _RELATED * spread:
        raise NoFundus("no fundus photograph: noise without structure")


def _between(low: float, values: npt.NDArray[np.floating], high: float) -> Mask:
    return np.asarray((low < values) & (values < high))


_LONGEST = 1024  # longer side in pixels at which the surround is filled
_BRIGHT = 60  # level from which a surround is not taken for the black one of a camera
_FILL_TOLERANCE = 24  # levels between a pixel of the surround and the one where filling begins
_SHARE = 0.5  # share of the edge of the file that must have one colour
_RETINA = 40  # levels of red above blue at the edge of a file that shows retina up to there
_LAYERS = 3  # frames within frames
_SECOND = 0.35  # area of a second disc as a share of that of the first
_SURROUND = 0.99  # share of the radius beyond which a bright surround is made black


def has_bright_surround(pixels: Pixels) -> bool:
    """Return True if most of the edge of a photograph, (H, W, 3), has one bright colour, not a retina's."""
    edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])).astype(int)
    red, green, blue = colour = np.median(edge, axis=0)
    alike = (np.abs(edge - colour) <= _FILL_TOLERANCE).all(axis=1).mean()
    return bool(colour.max() >= _BRIGHT and alike >= _SHARE and not (red - blue > _RETINA and red > green))


def black_surrounds(pixels: Pixels) -> list[Pixels]:
    """Return copies of a photograph with a black surround: without one, two and three frames.

    Args:
        pixels: RGB, uint8 (H, W, 3).
    """
    height, width = pixels.shape[:2]
    factor = min(1.0, _LONGEST / max(height, width))
    size = (max(3, round(width * factor)), max(3, round(height * factor)))
    small = np.asarray(cv2.medianBlur(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), 3), np.uint8)
    filled = np.ones((size[1] + 2, size[0] + 2), np.uint8)  # floodFill needs a border of 1
    filled[1:-1, 1:-1] = 0
    results = []
    for _ in range(_LAYERS):
        before = int(filled.sum())
        _fill(small, filled)
        if int(filled.sum()) == before:
            break
        # Pixels beside the surround are mixtures with it.
        mask = cv2.dilate(filled, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        results.append(np.where(large[..., None] > 0, 0, pixels).astype(np.uint8))
        filled = np.pad(mask, 1, constant_values=1)
    return results


def _fill(pixels: Pixels, filled: npt.NDArray[np.uint8]) -> None:
    """Fill the areas of the most frequent colour beside what is filled already (1), in place."""
    near = (cv2.dilate(filled, np.ones((3, 3), np.uint8)) - filled)[1:-1, 1:-1] > 0
    if not near.any():
        return
    colour = np.median(pixels[near], axis=0)
    near &= (np.abs(pixels - colour) <= _FILL_TOLERANCE).all(axis=2)
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
    tolerance = (_FILL_TOLERANCE,) * 3
    for y, x in np.argwhere(near):
        if not filled[y + 1, x + 1]:
            cv2.floodFill(pixels, filled, (int(x), int(y)), 0, tolerance, tolerance, flags)


def only_disc(pixels: Pixels, disc: Disc) -> Pixels:
    """Return a copy of a photograph, uint8 (H, W, 3), that is black outside the disc."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    axes = (max(1, round(_SURROUND * disc.radius * disc.stretch)), max(1, round(_SURROUND * disc.radius)))
    cv2.ellipse(mask, (round(disc.x - 0.5), round(disc.y - 0.5)), axes, 0, 0, 360, 1, cv2.FILLED)
    return np.asarray(cv2.bitwise_and(pixels, pixels, mask=mask), np.uint8)


def has_second_disc(bright: Mask, disc: Disc) -> bool:
    """Return True if a region as large as a disc lies outside the disc.

    Args:
        bright: (H, W), True where the photograph is brighter than its surround.
        disc: The disc in these pixels.
    """
    rest = bright.astype(np.uint8)
    axes = (round(1.06 * disc.radius * disc.stretch + 1), round(1.06 * disc.radius + 1))
    cv2.ellipse(rest, (round(disc.x), round(disc.y)), axes, 0, 0, 360, 0, cv2.FILLED)
    side = max(5, round(disc.radius / 2))  # bars and text are thinner than half a radius
    rest = np.asarray(cv2.morphologyEx(rest, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)), np.uint8)
    areas = cv2.connectedComponentsWithStats(rest, connectivity=4)[2][1:, cv2.CC_STAT_AREA]
    return bool((areas > _SECOND * np.pi * disc.radius**2 * disc.stretch).any())


TOLERANCE = 0.012
"""Largest distance of a point of the rim from the circle, as a share of the radius."""

_TRIALS, _VOTERS, _FEWEST = 160, 128, 12  # RANSAC: candidates, points that vote, fewest points of a rim
_LEAST_RADIUS = 0.08  # share of the shorter side
_LEAST_STRETCH, _MOST_STRETCH = 0.03, 0.9  # logarithms of the stretch of a squashed file
_BETTER = 0.6  # an ellipse must leave less than this share of what the circle leaves unexplained
_UNCERTAIN = 0.01  # largest standard error of the logarithm of the stretch
_NEIGHBOURS = 8  # number of neighbouring rim points with the same error
_WELL_EXPLAINED = 0.25


class Circle(NamedTuple):
    """A circle, or an upright ellipse; fields as in :class:`~drgrade.data.geometry.Disc`."""

    x: float
    y: float
    radius: float
    stretch: float = 1.0


def fit_circle(points: Floats, shape: tuple[int, int]) -> Circle | None:
    """Fit a circle to points with outliers, or an upright ellipse if it explains them clearly better.

    RANSAC, then least squares; None if too few points lie on a circle.
    """
    circle = _agreed(points, _circles_through(points), shape)
    rest = 1.0 if circle is None else unexplained_share(circle, points)
    if circle is not None and rest < _WELL_EXPLAINED:
        ellipse = _refined(circle, points, with_stretch=True)
    else:
        ellipse = _agreed(points, _ellipses_through(points), shape, with_stretch=True)
    if ellipse is None or not _LEAST_STRETCH < abs(np.log(ellipse.stretch)) < _MOST_STRETCH:
        return circle
    if unexplained_share(ellipse, points) > min(_BETTER * rest, _WELL_EXPLAINED + 0.15):
        return circle
    return ellipse if _uncertainty(ellipse, points) < _UNCERTAIN else circle


def _agreed(
    points: Floats, candidates: Floats, shape: tuple[int, int], with_stretch: bool = False
) -> Circle | None:
    """Choose the candidate (T, 4) with the most points on it and refine it on those points."""
    height, width = shape
    x, y, radius, stretch = candidates.T
    plausible = (radius > _LEAST_RADIUS * min(shape)) & (radius < 0.75 * np.hypot(height, width))
    plausible &= (x > 0) & (x < width) & (y > 0) & (y < height)
    plausible &= np.abs(np.log(stretch)) < _MOST_STRETCH
    if not plausible.any():
        return None
    candidates = candidates[plausible]
    x, y, radius, stretch = candidates.T.astype(np.float32)
    voters = points[:: max(1, len(points) // _VOTERS)].astype(np.float32)
    across, down = (voters[:, :1] - x) / stretch, voters[:, 1:] - y
    near = np.abs(np.sqrt(across * across + down * down) - radius) < TOLERANCE * radius
    circle = Circle(*candidates[int(np.argmax(near.sum(axis=0)))].tolist())
    return _refined(circle, points, with_stretch)


def _circles_through(points: Floats) -> Floats:
    """Return circles through random triples of points: (T, 4) of centre x and y, radius, and 1."""
    if len(points) < _FEWEST:
        return np.zeros((0, 4))
    a, b, c = points[np.random.default_rng(0).integers(len(points), size=(3, _TRIALS))]
    (bx, by), (cx, cy) = (b - a).T, (c - a).T
    twice_area = 2 * (bx * cy - by * cx)
    usable = np.abs(twice_area) > 1e-6
    a, bx, by, cx, cy, twice_area = (v[usable] for v in (a, bx, by, cx, cy, twice_area))
    b2, c2 = bx**2 + by**2, cx**2 + cy**2
    x, y = (cy * b2 - by * c2) / twice_area, (bx * c2 - cx * b2) / twice_area
    return np.stack((a[:, 0] + x, a[:, 1] + y, np.hypot(x, y), np.ones_like(x)), axis=1)


def _ellipses_through(points: Floats) -> Floats:
    """Return upright ellipses through random quadruples of points: (T, 4) of x, y, radius, stretch.

    x² + s² y² = a x + b y + c is linear in a, b, c and the square of the stretch s.
    """
    if len(points) < _FEWEST:
        return np.zeros((0, 4))
    middle = points.mean(axis=0)
    unit = float(np.abs(points - middle).max()) or 1.0
    chosen = np.random.default_rng(0).integers(len(points), size=(_TRIALS, 4))
    x, y = np.moveaxis((points[chosen] - middle) / unit, 2, 0)
    system = np.stack((x, y, np.ones_like(x), -(y**2)), axis=2)
    usable = np.abs(np.linalg.det(system)) > 1e-6
    a, b, c, s2 = np.linalg.solve(system[usable], (x[usable] ** 2)[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.sqrt(s2)
        radius = np.sqrt(c + a**2 / 4 + b**2 / (4 * s2)) / stretch
        x, y = unit * a / 2 + middle[0], unit * b / (2 * s2) + middle[1]
    ellipses = np.stack((x, y, unit * radius, stretch))
    return np.asarray(ellipses.T[np.isfinite(ellipses).all(axis=0) & (s2 > 0)])


def _refined(circle: Circle, points: Floats, with_stretch: bool) -> Circle | None:
    """Minimise the squared distances of nearby points (Gauss-Newton); return None if there are too few."""
    for tolerance in (1.5, 0.8, 0.5):
        misses = radial_distances(circle, points)
        near = np.abs(misses) < tolerance * TOLERANCE * circle.radius
        if near.sum() < _FEWEST:
            return None
        slopes = _slopes(circle, points[near])[:, : 4 if with_stretch else 3]
        # A small ridge term, so that collinear points have a solution.
        normal = slopes.T @ slopes + 1e-9 * len(slopes) * np.eye(slopes.shape[1])
        change = np.linalg.solve(normal, slopes.T @ misses[near])
        x, y, radius = (float(value + step) for value, step in zip(circle[:3], change[:3], strict=True))
        if not 0 < radius < np.inf:
            return None
        factor = float(np.exp(np.clip(change[3], -0.2, 0.2))) if with_stretch else 1.0
        circle = Circle(x, y, radius, circle.stretch * factor)
    return circle


def radial_distances(circle: Circle, points: Floats) -> Floats:
    """Return the signed distance of each point from the unsquashed circle: (N,), positive outside."""
    across, down = (points[:, 0] - circle.x) / circle.stretch, points[:, 1] - circle.y
    return np.asarray(np.sqrt(across**2 + down**2) - circle.radius)


def _slopes(circle: Circle, points: Floats) -> Floats:
    """Return the negative derivatives of `radial_distances` by x, y, radius and log stretch: (N, 4)."""
    across, down = (points[:, 0] - circle.x) / circle.stretch, points[:, 1] - circle.y
    distance = np.maximum(np.sqrt(across**2 + down**2), 1e-6)
    by_x, by_y = across / distance / circle.stretch, down / distance
    return np.stack((by_x, by_y, np.ones_like(distance), across**2 / distance), axis=1)


def unexplained_share(circle: Circle, points: Floats) -> float:
    """Return the mean distance of the points in units of the tolerance, each clipped at 1: in [0, 1]."""
    misses = np.abs(radial_distances(circle, points)) / (TOLERANCE * circle.radius)
    return float(np.minimum(misses, 1).mean())


def _uncertainty(ellipse: Circle, points: Floats) -> float:
    """Return the standard error of the log stretch, with correlated errors of neighbouring points."""
    misses = radial_distances(ellipse, points)
    near = np.abs(misses) < TOLERANCE * ellipse.radius
    slopes = _slopes(ellipse, points[near])
    covariance = np.linalg.pinv(slopes.T @ slopes) * np.mean(misses[near] ** 2) * _NEIGHBOURS
    return float(np.sqrt(covariance[3, 3]))
