"""Retinal vessels: two pairs of arcades that branch and taper, grown for every eye."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.synthetic.canvas import FOVEA, Canvas, FloatImage, Points, View, cloud

PALE = np.array((0.93, 0.50, 0.22), np.float32)
"""RGB of a lightly pigmented fundus."""

DARK = np.array((0.58, 0.27, 0.09), np.float32)
"""RGB of a heavily pigmented fundus."""


@dataclass(frozen=True)
class Pigmentation:
    """Appearance shared by both eyes of a patient."""

    melanin: float  # 0 (pale orange) to 1 (dark brown)
    tessellation: float  # visibility of the choroidal vessels, in [0, 1]
    macula: float  # depth of the dark spot around the fovea, in [0, 1]
    sheen: float  # brightness of the nerve fibres along the arcades, in [0, 1], as in young eyes
    cup: float  # radius of the cup as a share of the radius of the disc
    crescent: float  # strength of the ring at the temporal edge of the disc, in [0, 1]
    redness: float  # contrast of the blood vessels, about 1
    disc_warmth: float  # 0 (pale, whitish disc) to 1 (orange disc)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pigmentation":
        """Draw the appearance of a patient."""
        return cls(
            melanin=float(rng.uniform(0, 1)),
            tessellation=float(rng.beta(1.2, 2.2)),
            macula=float(rng.uniform(0.28, 0.55)),
            sheen=float(max(0.0, rng.uniform(-0.6, 1.0))),
            cup=float(np.clip(rng.normal(0.45, 0.09), 0.28, 0.68)),
            crescent=float(max(0.0, rng.uniform(-0.8, 1.0))),
            redness=float(rng.uniform(0.85, 1.2)),
            disc_warmth=float(rng.uniform(0, 1)),
        )


def _choroid(rng: np.random.Generator, shape: tuple[int, int]) -> FloatImage:
    """Draw choroidal vessels as a net of ridges, (H, W) in about [-1, 1]."""
    # Ridges lie where smooth noise crosses zero and form a net.
    coarse = np.abs(cloud(rng, shape, 15))
    fine = np.abs(cloud(rng, shape, 27))
    return np.asarray(1.1 - 2.2 * np.minimum(coarse, 1.2 * fine) ** 0.6, np.float32)


def paint_background(rng: np.random.Generator, view: View, eye: Pigmentation) -> FloatImage:
    """Paint the retina without disc, vessels or lesions, (H, W, 3) RGB in [0, 1]."""
    to_disc = view.distance((0.0, 0.0))
    to_fovea = view.distance(FOVEA)
    light = 1 + 0.16 * cloud(rng, view.shape, 4) + 0.07 * cloud(rng, view.shape, 18)
    light += 0.035 * cloud(rng, view.shape, 70)
    light += (0.03 + 0.13 * eye.tessellation) * _choroid(rng, view.shape) * (1 - np.exp(-to_fovea / 3))
    light *= 1 + 0.28 * np.exp(-to_disc / 2.4)
    light *= 1 - eye.macula * np.exp(-((to_fovea / 1.15) ** 2)) - 0.22 * np.exp(-((to_fovea / 2.7) ** 2))
    light *= 1 + 0.22 * np.exp(-((to_fovea / 0.14) ** 2))  # the foveal reflex
    light += eye.sheen * _sheen(rng, view)
    light = np.maximum(light, 0.15)
    base = PALE + np.float32(eye.melanin) * (DARK - PALE)
    # Dark areas are redder: blue and green are absorbed first.
    logarithm = cv2.log(light)
    shades = [base[c] * cv2.exp(power * logarithm) for c, power in enumerate((0.75, 1.1, 1.25))]
    return np.stack(shades, axis=-1)


def _sheen(rng: np.random.Generator, view: View) -> FloatImage:
    """Draw the reflex of the nerve fibres towards the arcades, (H, W) in [0, 0.2]."""
    x, y = view.anatomy
    angle = np.arctan2(np.abs(y), x + 0.4)
    along = np.hypot(x, y)
    streaks = rng.normal(0, 1, 96).astype(np.float32)
    wedge = np.exp(-(((angle - 1.0) / 0.4) ** 2)) * np.exp(-(((along - 2.6) / 1.7) ** 2))
    index = (np.arctan2(y, x + 0.4) / (2 * np.pi) + 0.5) * 95
    comb = np.interp(index, np.arange(96), streaks).astype(np.float32)
    return np.asarray(wedge * np.clip(0.11 + 0.05 * comb, 0, None), np.float32)


def paint_disc(rng: np.random.Generator, retina: FloatImage, view: View, eye: Pigmentation) -> None:
    """Paint the optic disc onto the retina in place: rim, cup with shaded wall, and surrounding ring."""
    cut, view = view.window((0.0, 0.0), 1.6)
    retina = retina[cut]
    x, _ = view.anatomy
    tall = float(rng.uniform(1.02, 1.14))
    distance = view.distance((0.0, 0.0), tall)
    soft = max(0.06, 0.6 / view.unit)
    disc = _edge(distance, 1.0, soft)
    ring = _edge(distance, 1.13, 0.08) * np.clip(0.35 + 0.65 * x, 0, 1)
    retina *= 1 - (0.35 * eye.crescent * ring * (1 - disc))[..., None]

    pale, warm = np.array((1.0, 0.86, 0.56), np.float32), np.array((1.0, 0.75, 0.42), np.float32)
    rim = pale + np.float32(eye.disc_warmth) * (warm - pale)
    # The nasal rim is thicker and pinker; the whole rim darkens towards its edge.
    tint = np.clip(0.5 - 0.5 * x, 0, 1)[..., None] * np.array((0.02, 0.12, 0.10), np.float32)
    colour = rim - tint - (0.10 * np.clip(distance, 0, 1) ** 3)[..., None]
    colour *= (1 + 0.05 * cloud(rng, view.shape, 9))[..., None]

    cup_centre = (float(rng.uniform(0.08, 0.18)), float(rng.normal(0, 0.04)))
    to_cup = view.distance(cup_centre, 1.08)
    cup = _edge(to_cup, eye.cup, 0.13)
    # Light comes from the temporal side: the nasal wall of the cup is dark, its floor bright.
    wall = np.exp(-(((to_cup - eye.cup) / 0.12) ** 2)) * np.clip(0.35 - (x - cup_centre[0]), 0, 1)
    floor = np.array((1.05, 0.96, 0.70), np.float32)
    colour += (0.9 * cup)[..., None] * (floor - colour)
    colour *= 1 - (0.28 * wall)[..., None]
    brightness = np.float32(1.0 - 0.22 * eye.melanin)
    retina += disc[..., None] * (colour * brightness - retina)


def _edge(distance: FloatImage, radius: float, softness: float) -> FloatImage:
    """Return a disc with a soft edge from distances, (H, W) in [0, 1]."""
    return np.asarray(0.5 - 0.5 * np.tanh((distance - radius) / softness), np.float32)


def paint_drusen(rng: np.random.Generator, retina: FloatImage, view: View) -> None:
    """Paint faint drusen around the macula in place; they are not a sign of diabetes."""
    faint = np.zeros(view.shape, np.float32)
    x, y = view.anatomy
    for _ in range(int(rng.integers(4, 10))):
        spot = rng.normal(FOVEA, (1.6, 1.3))
        size = rng.uniform(0.10, 0.2)
        faint += np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / np.float32(size**2))
    retina *= 1 + 0.13 * np.minimum(faint, 1)[..., None]


VesselKind = Literal["artery", "vein"]

STEP = 0.22
"""Length of one growth step in disc radii."""

THINNEST = 0.028
"""Smallest diameter of a vessel in disc radii."""

GENERATIONS = 2
"""Number of generations of branches."""

VEIN_WIDTH = 0.19
"""Diameter of the temporal veins at the disc in disc radii."""

# Upper trunks from the disc outwards; the lower ones are mirror images. The first points lie inside the disc,
# because vessels emerge at the nasal side of the cup and bend over the rim.
TEMPORAL = ((-0.22, -0.02), (-0.16, -0.38), (0.1, -1.0), (0.75, -2.1), (1.9, -3.45), (3.7, -4.4), (6.0, -4.6),
            (8.2, -3.9), (10.4, -2.7))  # fmt: skip
NASAL = (
    (-0.25, -0.02),
    (-0.32, -0.35),
    (-0.62, -0.95),
    (-1.3, -1.9),
    (-2.4, -3.0),
    (-3.8, -4.0),
    (-5.4, -4.9),
)


@dataclass(frozen=True)
class Vessel:
    """One vessel from its origin to its end."""

    points: Points  # (N, 2) anatomical points, about STEP apart
    widths: npt.NDArray[np.float64]  # (N,) diameters in disc radii
    kind: VesselKind
    order: int  # 0 for a trunk, 1 for its branches, and so on
    arcade: bool  # true for the temporal trunks and their branches


@lru_cache(maxsize=8)
def _spline(knots: int, samples: int) -> npt.NDArray[np.float64]:
    """Return the matrix (samples, knots) that turns control points into a smooth curve through them."""
    position = np.linspace(0, knots - 1, samples)
    piece = np.minimum(position.astype(int), knots - 2)
    t = position - piece
    # Catmull-Rom; beyond both ends the curve's chord is continued.
    weights = 0.5 * np.stack(
        (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    )
    padded = np.zeros((samples, knots + 2))
    for offset, weight in enumerate(weights):
        padded[np.arange(samples), piece + offset] = weight
    matrix = padded[:, 1:-1]
    matrix[:, :2] += padded[:, :1] * (2, -1)
    matrix[:, -2:] += padded[:, -1:] * (-1, 2)
    return matrix


def _trunk(rng: np.random.Generator, shape: Points, width: float, kind: VesselKind, arcade: bool) -> Vessel:
    """Lay one trunk through jittered control points."""
    distance = np.hypot(*shape.T)[:, None]
    jitter = rng.normal(0, 0.055, shape.shape) * np.clip(distance, 0.25, 4)
    points = _spline(len(shape), 64) @ (shape + jitter)
    travelled = np.linspace(0, 1, len(points))
    phases = rng.uniform(0, 2 * np.pi, (2, 1)) + 2 * np.pi * rng.uniform(3, 6, (2, 1)) * travelled
    points += rng.uniform(0.02, 0.07) * (np.sin(phases) * np.minimum(1, 4 * travelled)).T
    return Vessel(points, width * (1 - 0.6 * travelled), kind, 0, arcade)


def _trunks(rng: np.random.Generator) -> Iterator[Vessel]:
    """Lay the trunks: artery and vein in four directions, and small vessels straight from the disc."""
    kinds: tuple[VesselKind, VesselKind] = ("vein", "artery")
    for template, strength, arcade in ((TEMPORAL, 1.0, True), (NASAL, 0.72, False)):
        for side in (1.0, -1.0):
            tightness = rng.uniform(0.88, 1.08)
            for kind in kinds:
                shape = np.array(template) * (1.0, side * tightness)
                shape[:, 1] += FOVEA[1] * np.clip(shape[:, 0] / FOVEA[0], 0, 1.2)
                width = VEIN_WIDTH * strength * rng.uniform(0.88, 1.12) * (0.76 if kind == "artery" else 1.0)
                shape[:, 0] += 0.06 if kind == "artery" else -0.06
                yield _trunk(rng, shape, width, kind, arcade)
    for angle in (170, 205, 140, 230, 24, -20):
        turn = np.deg2rad(angle + rng.normal(0, 10))
        start = rng.uniform(0.3, 0.8) * np.array((np.cos(turn), np.sin(turn)))
        length = int(rng.integers(9, 16))
        kind = kinds[int(rng.integers(2))]
        yield _grow(rng, start, turn, rng.uniform(0.045, 0.08), length, kind, order=1, arcade=abs(angle) < 90)


def _grow(
    rng: np.random.Generator,
    start: npt.NDArray[np.float64],
    heading: float,
    width: float,
    steps: int,
    kind: VesselKind,
    order: int,
    arcade: bool,
) -> Vessel:
    """Grow one winding branch towards the part of the retina that it supplies, but not into the fovea."""
    x, y = float(start[0]), float(start[1])
    # Inside the arcades branches run to the fovea, outside they run away from the posterior pole.
    inside = abs(y - FOVEA[1]) < 4.3 and x > 0.3
    outward = np.cos(heading) * (x - 2.5) + np.sin(heading) * (y - 0.3) > 0
    to_fovea = inside and arcade and not (outward and abs(y) > 3.2)
    wander = rng.normal(0, 0.105, steps)
    bend = 0.0
    path = [(x, y)]
    for turn in wander:
        target = np.arctan2(FOVEA[1] - y, FOVEA[0] - x) if to_fovea else np.arctan2(y - 0.3, x - 2.5)
        off = (target - heading + np.pi) % (2 * np.pi) - np.pi
        bend = 0.6 * bend + turn
        heading += bend + 0.05 * off
        x, y = x + STEP * float(np.cos(heading)), y + STEP * float(np.sin(heading))
        if (x - FOVEA[0]) ** 2 + (y - FOVEA[1]) ** 2 < 0.75:
            break
        path.append((x, y))
    taper = np.linspace(1, 0.5, steps + 1)[: len(path)]
    return Vessel(np.array(path), np.maximum(width * taper, 0.7 * THINNEST), kind, order, arcade)


def _travelled(vessel: Vessel) -> npt.NDArray[np.float64]:
    """Return the length of the vessel up to each point in disc radii, (N,)."""
    steps = vessel.points[1:] - vessel.points[:-1]
    return np.concatenate(([0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))))


def _branches(rng: np.random.Generator, parent: Vessel) -> Iterator[Vessel]:
    """Grow branches of a vessel, alternating sides, until they would be too thin."""
    travelled = _travelled(parent)
    position = rng.uniform(1.5, 2.6) if parent.order == 0 else rng.uniform(0.7, 1.6)
    side = float(rng.choice((-1.0, 1.0)))
    while position < travelled[-1]:
        index = min(int(np.searchsorted(travelled, position)), len(parent.points) - 2)
        width = float(parent.widths[index]) * rng.uniform(0.36, 0.62)
        if width < THINNEST:
            break
        along = parent.points[index + 1] - parent.points[index]
        heading = float(np.arctan2(along[1], along[0])) + side * rng.uniform(0.6, 1.15)
        steps = int(np.clip(width * rng.uniform(220, 420), 7, 32))
        yield _grow(
            rng, parent.points[index], heading, width, steps, parent.kind, parent.order + 1, parent.arcade
        )
        side = -side if rng.random() < 0.75 else side
        position += rng.uniform(0.9, 2.1) if parent.order == 0 else rng.uniform(0.8, 1.9)


def grow_vessels(rng: np.random.Generator) -> list[Vessel]:
    """Grow the vessel tree of one eye, trunks first."""
    vessels: list[Vessel] = []
    generation = list(_trunks(rng))
    for _ in range(GENERATIONS):
        vessels += generation
        generation = [branch for parent in generation for branch in _branches(rng, parent)]
    return vessels + generation


def bead(rng: np.random.Generator, vessels: list[Vessel], veins: int) -> tuple[list[Vessel], list[Vessel]]:
    """Add venous beading to ``veins`` trunks; return the changed tree and the beaded segments."""
    trunks = [i for i, v in enumerate(vessels) if v.order == 0 and v.kind == "vein"]
    # The temporal veins come first among the trunks and are always visible.
    chosen = [trunks[i] for i in rng.permutation(2 if veins <= 2 else len(trunks))[:veins]]
    changed, segments = list(vessels), []
    for index in chosen:
        vein = vessels[index]
        travelled = _travelled(vein)
        start = rng.uniform(1.4, 2.4)
        within = (travelled > start) & (travelled < start + rng.uniform(3.0, 4.5))
        swing = np.sin(2 * np.pi * travelled / rng.uniform(0.75, 0.95))
        widths = np.where(within, vein.widths * (1.35 + 0.65 * swing), vein.widths)
        changed[index] = replace(vein, widths=widths)
        segments.append(replace(vein, points=vein.points[within], widths=widths[within]))
    return changed, segments


def _coverage(view: View, vessels: list[Vessel], widening: float = 1.0) -> FloatImage:
    """Return the share of every pixel covered by vessels, (H, W); ``widening`` scales their diameters."""
    canvas = Canvas(view)
    # Thick vessels last, so that paler thin ones do not cut them.
    for vessel in sorted(vessels, key=lambda v: -v.order):
        canvas.line(view.to_pixels(vessel.points), vessel.widths * view.unit * widening)
    return canvas.coverage()


def paint_vessels(retina: FloatImage, view: View, vessels: list[Vessel], redness: float) -> None:
    """Paint vessels onto the retina (H, W, 3) in place; ``redness`` is the contrast of the blood, about 1."""
    veins = _coverage(view, [v for v in vessels if v.kind == "vein"])
    arteries = _coverage(view, [v for v in vessels if v.kind == "artery"])
    reflex = _coverage(view, [v for v in vessels if v.kind == "artery" and v.order == 0], widening=0.3)
    veins *= 1 - arteries
    # Blood absorbs green and blue; the absorptions of layers multiply.
    vein_ink = np.float32(redness) * np.array((-0.36, -1.0, -0.85), np.float32)
    artery_ink = np.float32(redness) * np.array((-0.12, -0.66, -0.62), np.float32)
    blood = (veins > 0) | (arteries > 0)
    retina[blood] *= np.exp(veins[blood, None] * vein_ink + arteries[blood, None] * artery_ink)
    retina[blood] += (0.10 * reflex[blood, None]) * np.array((1.0, 0.75, 0.55), np.float32)
