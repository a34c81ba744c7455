"""Fit of a circle or an upright ellipse to the points of a rim: RANSAC, then least squares."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

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
