"""Detection of the disc of the fundus in a photograph.

A fundus camera records a bright disc on a dark surround. The frame or black bands may cut off the disc, its
rim may be dark, glow or carry a notch, a corner may hold text, and the file may have been squashed to a
square. ``docs/geometry.md`` describes the method and its evaluation.
"""

from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import (
    TOLERANCE,
    Circle,
    Disc,
    Mask,
    NoFundus,
    Pixels,
    black_surrounds,
    fit_circle,
    halve,
    has_bright_surround,
    has_second_disc,
    radial_distances,
    unexplained_share,
)

NO_RIM = "no rim was found: the disc is a guess"
SECOND_DISC = "two discs side by side: one of them was taken"
"""Doubts about a disc."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int_]

# Search
_WORKING_SIZE = 320  # approximate longer side at which the disc is searched, in about a millisecond
_SMALL_SHARE = 0.4  # a disc with less than this share of the longer side is searched again at a larger scale
_THRESHOLDS = (0.2, 0.35, 0.1, 0.5, 0.05)  # in order, as shares of the step from surround to retina
_APART = 0.04  # a threshold suggested by the rim is tried if it differs by this share from earlier ones
_GOOD_SCORE = 0.95  # score of a rim that ends the search
_FAIR_SCORE = 0.7  # score of a rim that ends the search if two thresholds agree
_POOR_SCORE = 0.3  # score of a rim that is rejected
_MARGIN = 2  # working pixels beside the frame that count as the frame
_LEAST_VISIBLE = 0.04  # share of a circle that must be in the frame
_LEAST_RECORDED = 0.3  # up to this distance from the centre, in radii, the disc counts as recorded
_DIRECTIONS = 120
_REACH = np.linspace(0.86, 1.14, 29)  # radii of the profile across the rim
_ENOUGH_EXPLAINED = 0.65
_BLACK, _BLANK = 16, 6  # brightest level of a black image, range of a blank one
_NOISE = 4.0
_SURROUND_SHARE = 0.45  # a surround brighter than this share of the retina is no surround


class _Light(NamedTuple):
    """Levels (0-255) of surround and retina, and the smallest step above the noise."""

    surround: float
    retina: float
    noise: float

    @property
    def step(self) -> float:
        return self.retina - self.surround


class _Frame(NamedTuple):
    """Rectangle in which a rim may be visible: the image without parts beyond flat cuts."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: Floats, y: Floats) -> Mask:
        """Return which points are inside and not beside the edge."""
        across = (x > self.left + _MARGIN) & (x < self.right - _MARGIN)
        return np.asarray(across & (y > self.top + _MARGIN) & (y < self.bottom - _MARGIN))


class _Outline(NamedTuple):
    """Outline of a bright region."""

    points: Floats  # (N, 2) of x, y
    frame: _Frame
    box: Circle | None  # circle around the region, if it is large enough for a disc


def find_disc(pixels: Pixels) -> Disc:
    """Find the disc of the fundus.

    Thresholds between surround and retina are tried until the outline of the largest component is a circle
    or an upright ellipse. Points on the frame or on a flat cut are excluded; a deterministic RANSAC rejects
    text, flares and notches. Without a visible rim the disc is the circle inscribed in the frame; if no
    circle fits the rim, it is the circle around the component.

    Args:
        pixels: RGB, uint8 (H, W, 3).

    Raises:
        NoFundus: If the photograph is black or has one colour.
    """
    if has_bright_surround(pixels):
        for black in black_surrounds(pixels):
            with suppress(NoFundus):
                disc = _find_at_scale(black)
                if disc.doubt != NO_RIM:
                    return replace(disc, framed=True)
    return _find_at_scale(pixels)


def _find_at_scale(pixels: Pixels) -> Disc:
    """Find the disc, again at a larger scale if it is small."""
    disc = _find(pixels)
    if _SMALL_SHARE * max(pixels.shape) < 2 * disc.radius or max(pixels.shape) <= _WORKING_SIZE:
        return disc
    return _find_again(pixels, disc)


def _find(pixels: Pixels) -> Disc:
    """Find the disc at working size."""
    height, width = pixels.shape[:2]
    level, scale_x, scale_y = _small_level(pixels)
    light = _measure(level)
    if light.surround > _SURROUND_SHARE * light.retina:
        # No surround is visible: the frame lies inside the disc.
        disc = Disc(*_inscribed(level.shape)[:3], *_whole(level), doubt=NO_RIM)
    else:
        circle, has_rim = _best_circle(level, light)
        disc = _with_recorded_bounds(circle, level, light)
        bright = level > light.surround + max(_THRESHOLDS[0] * light.step, light.noise)
        beside = SECOND_DISC if has_second_disc(bright, disc) else ""
        disc = replace(disc, doubt=beside if has_rim else NO_RIM)
    large = disc.scaled(scale_x, scale_y)
    return replace(
        large,
        right=float(width) if disc.right == level.shape[1] else large.right,
        bottom=float(height) if disc.bottom == level.shape[0] else large.bottom,
    )


def _small_level(pixels: Pixels) -> tuple[Pixels, float, float]:
    """Return the brightest channel at working size, and pixels per working pixel across and down."""
    small, halvings = pixels, 0
    while max(small.shape) >= 2 * _WORKING_SIZE and min(small.shape[:2]) >= 2:
        small = halve(small)
        halvings += 1
    height, width = small.shape[:2]
    factor = min(1.0, _WORKING_SIZE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if factor < 1:
        small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    red, green, blue = cv2.split(small)
    level = np.asarray(cv2.medianBlur(cv2.max(cv2.max(red, green), blue), 3), dtype=np.uint8)
    return level, 2**halvings * width / size[0], 2**halvings * height / size[1]


def _find_again(pixels: Pixels, rough: Disc) -> Disc:
    """Find a small disc again in the part around it, at a larger scale."""
    across, down = 1.3 * rough.radius * rough.stretch, 1.3 * rough.radius
    left, top = max(0, int(rough.x - across)), max(0, int(rough.y - down))
    part = pixels[top : int(rough.y + down), left : int(rough.x + across)]
    try:
        disc = _find(part)
    except NoFundus:  # the rough disc was only an inscribed circle
        return rough
    return replace(
        disc,
        doubt=rough.doubt or disc.doubt,
        x=disc.x + left,
        y=disc.y + top,
        left=disc.left + left if disc.left > 0 else rough.left,
        top=disc.top + top if disc.top > 0 else rough.top,
        right=disc.right + left if disc.right < part.shape[1] else rough.right,
        bottom=disc.bottom + top if disc.bottom < part.shape[0] else rough.bottom,
    )


def _histogram(level: Pixels) -> Floats:
    return np.asarray(cv2.calcHist([level], [0], None, [256], [0, 256]), dtype=np.float64).ravel()


def _percentile(histogram: Floats, share: float) -> float:
    """Return the lowest level that ``share`` % of the pixels do not exceed."""
    total = np.cumsum(histogram)
    return float(np.searchsorted(total, share / 100 * total[-1]))


def _measure(level: Pixels) -> _Light:
    """Measure the levels of surround and retina; raise NoFundus for a black or blank image."""
    histogram = _histogram(level)
    lowest, low, high = (_percentile(histogram, share) for share in (0.5, 1, 99.5))
    if high < _BLACK:
        raise NoFundus("all black: no fundus to be seen")
    if high - lowest < _BLANK:
        raise NoFundus("blank: one colour from edge to edge")
    height, width = level.shape
    y, x = max(1, height // 32), max(1, width // 32)
    corners = (level[:y, :x], level[:y, -x:], level[-y:, :x], level[-y:, -x:])
    darkest = min((_histogram(corner) for corner in corners), key=lambda corner: _percentile(corner, 50))
    surround = min(low, _percentile(darkest, 50))
    noise = _percentile(darkest, 95) - _percentile(darkest, 50)
    centre = _histogram(level[height // 4 : height - height // 4, width // 4 : width - width // 4])
    least = int(surround + 0.1 * (high - surround)) + 1
    bright = centre if centre[least:].any() else histogram
    bright[:least] = 0
    retina = _percentile(bright, 60)
    return _Light(surround, retina, min(max(_NOISE, 2 * noise), 0.4 * (retina - surround)))


def _best_circle(level: Pixels, light: _Light) -> tuple[Circle, bool]:
    """Fit the outlines at several thresholds.

    Returns:
        The fit with the most complete and steepest rim, and True; without one, the circle around the
        brightest region, or the inscribed one, and False.
    """
    best, best_score = None, _POOR_SCORE
    box: Circle | None = None
    tried: list[float] = []
    waiting = list(_THRESHOLDS)
    while waiting and best_score < _GOOD_SCORE:
        tried.append(waiting.pop(0))
        threshold = light.surround + max(tried[-1] * light.step, light.noise)
        outline = _outline(_largest_region(level, threshold), level, threshold)
        box = box or outline.box
        circle = fit_circle(outline.points, level.shape)
        if circle is None:
            continue
        score, steepest = _judge(circle, outline, level, light.surround)
        # A circle through one side of an ellipse leaves the other side unexplained.
        score *= min(1.0, (1 - unexplained_share(circle, outline.points)) / _ENOUGH_EXPLAINED)
        if best is not None and min(score, best_score) > _FAIR_SCORE and _alike(circle, best):
            return (circle if score > best_score else best), True
        if score > best_score:
            best, best_score = circle, score
        # On a slope (vignetting, glow) a threshold gives a contour; the rim is where the slope is steepest.
        share = (steepest - light.surround) / light.step
        if min(abs(share - other) for other in tried) > _APART and len(tried) < len(_THRESHOLDS):
            waiting.insert(0, share)
    return best or box or _inscribed(level.shape), best is not None


def _alike(one: Circle, other: Circle) -> bool:
    """Compare the fits at two thresholds; only a step of brightness gives equal circles."""
    gap = max(abs(one.x - other.x), abs(one.y - other.y), abs(one.radius - other.radius))
    return gap < 0.5 * TOLERANCE * one.radius and abs(one.stretch / other.stretch - 1) < TOLERANCE


def _largest_region(level: Pixels, threshold: float) -> Mask:
    """Return the largest region above a threshold, filled, without thin bridges to text and flares."""
    above = cv2.threshold(level, threshold, 1, cv2.THRESH_BINARY)[1]
    opened = cv2.morphologyEx(above, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(level.shape, np.uint8)
    if contours:
        cv2.drawContours(mask, [max(contours, key=cv2.contourArea)], 0, 1, cv2.FILLED)
    return mask.astype(bool)


def _outline(mask: Mask, level: Pixels, threshold: float) -> _Outline:
    """Return the outermost edges of a region along rows and columns, except on the frame or a flat cut."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return _Outline(np.zeros((0, 2)), _whole(level), None)
    first_x, last_x = _ends(mask[rows], level[rows], threshold)
    first_y, last_y = _ends(mask.T[columns], level.T[columns], threshold)
    left, top, right, bottom = _whole(level)
    frame = _Frame(
        max(left, _flat_cut(first_x, 1)),
        max(top, _flat_cut(first_y, 1)),
        min(right, _flat_cut(last_x, -1)),
        min(bottom, _flat_cut(last_y, -1)),
    )
    x = np.concatenate((first_x, last_x, columns + 0.5, columns + 0.5))
    y = np.concatenate((rows + 0.5, rows + 0.5, first_y, last_y))
    points = np.stack((x, y), axis=1)[frame.holds(x, y)]
    return _Outline(points, frame, _around(rows, columns, mask.shape))


def _ends(lines: Mask, level: Pixels, threshold: float) -> tuple[Floats, Floats]:
    """Return the subpixel start and end of a region on each line (L, N): (L,) each."""
    numbers, length = np.arange(len(lines)), lines.shape[1]
    first, last = lines.argmax(axis=1), length - 1 - lines[:, ::-1].argmax(axis=1)

    def share(inner: Ints, outer: Ints) -> Floats:
        above = level[numbers, inner] - threshold
        below = threshold - level[numbers, np.clip(outer, 0, length - 1)]
        return np.asarray(np.clip(above / np.maximum(above + below, 1e-6), 0, 1))

    return first + 0.5 - share(first, first - 1), last + 0.5 + share(last, last + 1)


def _flat_cut(edges: Floats, side: int) -> float:
    """Return the edge at which more lines start (or end: side -1) than at the end of an ellipse.

    Without such a flat cut the result is infinity on the far side.
    """
    places = np.maximum(edges, 0).astype(int)
    counts = np.bincount(places)
    counts = counts + np.append(counts[1:], 0)
    most = int(counts.argmax())
    # An ellipse with semi-axes a and b stays within 2 pixels of its end over 4 a / sqrt(b) pixels.
    if counts[most] <= 0.1 * len(edges) + 4.4 * np.sqrt(len(edges) / 2):
        return -np.inf * side
    return float(edges[(places == most) | (places == most + 1)].mean())


def _judge(circle: Circle, outline: _Outline, level: Pixels, surround: float) -> tuple[float, float]:
    """Return the score of a circle in [0, 1] and the level in the middle of the steepest fall.

    The score is the share of visible directions with a point of the outline, reduced if the level falls more
    steeply elsewhere or falls little.
    """
    angles = (np.arange(_DIRECTIONS) + 0.5) * 2 * np.pi / _DIRECTIONS
    across, down = circle.stretch * circle.radius * np.cos(angles), circle.radius * np.sin(angles)
    visible = outline.frame.holds(circle.x + across, circle.y + down)
    if visible.sum() < _LEAST_VISIBLE * _DIRECTIONS:
        return 0.0, surround
    near = outline.points[np.abs(radial_distances(circle, outline.points)) < TOLERANCE * circle.radius]
    turned = np.arctan2(near[:, 1] - circle.y, (near[:, 0] - circle.x) / circle.stretch) % (2 * np.pi)
    hit = np.zeros(_DIRECTIONS, bool)
    hit[np.minimum((turned * _DIRECTIONS / (2 * np.pi)).astype(int), _DIRECTIONS - 1)] = True
    support = (hit & visible).sum() / visible.sum()

    x = np.floor(circle.x + _REACH[:, None] * across[visible]).astype(int)
    y = np.floor(circle.y + _REACH[:, None] * down[visible]).astype(int)
    inside = (x >= 0) & (x < level.shape[1]) & (y >= 0) & (y < level.shape[0])
    levels = level[np.clip(y, 0, level.shape[0] - 1), np.clip(x, 0, level.shape[1] - 1)]
    profile = (levels * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    falls = np.where(inside.sum(axis=1)[4:] > 0, profile[:-4] - profile[4:], 0.0)
    here, steepest = float(falls[len(falls) // 2]), int(np.argmax(falls))
    inner = profile[len(profile) // 2 - 3] - surround
    step = min(1.0, here / max(0.9 * falls[steepest], 1e-6), here / max(0.35 * inner, 1e-6))
    return float(support * max(step, 0.0)), float(profile[steepest] + profile[steepest + 4]) / 2


def _around(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Circle | None:
    """Return the circle over the longer side of a bounding box; None if it is too small for a disc."""
    reach = max(np.ptp(rows), np.ptp(columns))
    if reach < 0.2 * min(shape):
        return None
    x, y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    return Circle(float(x), float(y), float(reach / 2 + 0.5))


def _inscribed(shape: tuple[int, int]) -> Circle:
    height, width = shape
    return Circle(width / 2, height / 2, min(height, width) / 2)


def _whole(level: Pixels) -> _Frame:
    return _Frame(0.0, 0.0, float(level.shape[1]), float(level.shape[0]))


def _with_recorded_bounds(circle: Circle, level: Pixels, light: _Light) -> Disc:
    """Add the recorded rectangle: rows and columns of the disc with content, not a black band."""
    height, width = level.shape
    y = (np.arange(height)[:, None] + 0.5 - circle.y) / circle.radius
    x = (np.arange(width) + 0.5 - circle.x) / (circle.stretch * circle.radius)
    outside = level[x**2 + y**2 > 1.04**2]
    surround = _percentile(_histogram(outside), 90) if len(outside) > 50 else light.surround
    # The surround beside a glowing rim is bright, a black band is not.
    threshold = min(surround + light.noise, light.surround + 0.3 * light.step)
    bright = np.asarray(cv2.integral(cv2.threshold(level, threshold, 1, cv2.THRESH_BINARY)[1]), np.int32)
    across = circle.stretch * circle.radius
    top, bottom = _extent(bright, (circle.y, circle.radius), (circle.x, across))
    left, right = _extent(bright.T, (circle.x, across), (circle.y, circle.radius))
    return Disc(circle.x, circle.y, circle.radius, left, top, right, bottom, circle.stretch)


def _extent(
    bright: npt.NDArray[np.int32], along: tuple[float, float], across: tuple[float, float]
) -> tuple[float, float]:
    """Return the first and last recorded line, given the integral image of bright pixels.

    A line is black if most of its part inside the disc is. ``along`` and ``across`` are centre and semi-axis
    of the disc, counted in lines and within a line.
    """
    lines, length = bright.shape[0] - 1, bright.shape[1] - 1
    numbers = np.arange(lines)
    offsets = (numbers + 0.5 - along[0]) / along[1]
    half = np.sqrt(np.maximum(0.97**2 - offsets**2, 0.0))
    start = np.clip(across[0] - half * across[1], 0, length).astype(int)
    stop = np.clip(across[0] + half * across[1] + 1, 0, length).astype(int)
    per_line = np.diff(bright, axis=0)
    filled = per_line[numbers, stop] - per_line[numbers, start]
    black = (half > 0.15) & (filled < 0.5 * (stop - start))
    # A dark line near the centre is a dark fundus, not a band.
    black &= np.abs(offsets) > _LEAST_RECORDED
    before, after = np.flatnonzero(black & (offsets < 0)), np.flatnonzero(black & (offsets > 0))
    # The line beside a band is a mixture and counts as black.
    first = before[-1] + 2 if len(before) else 0
    last = after[0] - 1 if len(after) else lines
    return float(first), float(last)
