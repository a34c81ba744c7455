"""Lesions of diabetic retinopathy by grade of the international clinical severity scale."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from drgrade.synthetic.canvas import FOVEA, Canvas, FloatImage, Points, View, cloud, soften
from drgrade.synthetic.retina import Vessel, bead

_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1)


def blot(
    rng: np.random.Generator, centre: npt.NDArray[np.float64], radius: float, roughness: float
) -> Points:
    """Return the outline (24, 2) of a spot whose radius varies by ``roughness`` times its mean."""
    # Long waves are strongest, so that a spot is stretched rather than jagged.
    waves = rng.normal(0, roughness / 1.3, (2, 3)) * (1, 0.55, 0.3)
    orders = np.arange(2, 5)[:, None] * _ANGLES
    edge = 1 + waves[0] @ np.cos(orders) + waves[1] @ np.sin(orders)
    return np.asarray(centre + radius * np.maximum(edge, 0.35)[:, None] * _CIRCLE)


def flame(rng: np.random.Generator, centre: npt.NDArray[np.float64], half: float, angle: float) -> Points:
    """Return the outline (N, 2) of a flame, pointed at one end and frayed at the other."""
    along = np.linspace(-1, 1, 9)
    breadth = 0.36 * np.sqrt(np.clip(1 - along**2, 0, None)) * (1 + 0.25 * along)
    upper = np.stack((along, breadth * rng.uniform(0.7, 1.25, 9)), axis=1)
    lower = np.stack((along[::-1], -breadth[::-1] * rng.uniform(0.7, 1.25, 9)), axis=1)
    frayed = np.stack((rng.uniform(0.75, 1.35, 5), np.linspace(0.3, -0.3, 5)), axis=1)
    outline = half * np.concatenate((upper[:-1], frayed, lower[1:]))
    return np.asarray(centre + outline @ _rotation(angle))


def boat(rng: np.random.Generator, centre: npt.NDArray[np.float64], half: float) -> Points:
    """Return the outline (N, 2) of a pre-retinal haemorrhage, which is level at the top."""
    angles = np.linspace(0, np.pi, 25)
    depth = rng.uniform(0.45, 0.85) * np.abs(np.sin(angles)) ** rng.uniform(0.6, 1.0)
    wobble = 1 + 0.10 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angles + rng.uniform(0, 6))
    hull = np.stack((np.cos(angles), depth * wobble - 0.25), axis=1)
    return np.asarray(centre + half * hull @ _rotation(rng.normal(0, 0.08)))


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    """Return the matrix that rotates (N, 2) points by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def frond(
    rng: np.random.Generator, base: npt.NDArray[np.float64], span: float, around: bool
) -> Iterator[Points]:
    """Yield the curling paths (N, 2) of a tuft of new vessels, to all sides (as on the disc) or as a fan."""
    stems = int(rng.integers(8, 13)) if around else int(rng.integers(6, 10))
    middle = rng.uniform(0, 2 * np.pi)
    spread = np.pi if around else 0.95
    for heading in middle + np.linspace(-spread, spread, stems) + rng.normal(0, 0.15, stems):
        stem = _curl(rng, base, float(heading), span, 16)
        yield stem
        for _ in range(2):
            start = int(rng.integers(4, 13))
            side = float(rng.choice((-1.0, 1.0)))
            yield _curl(rng, stem[start], float(heading) + side * 0.9, 0.75 * span, 12, side * 0.26)


def _curl(
    rng: np.random.Generator,
    start: npt.NDArray[np.float64],
    heading: float,
    span: float,
    steps: int,
    drift: float = 0.0,
) -> Points:
    """Return a random walk of ``steps`` steps of ``span / 16`` with mean turn ``drift``."""
    turns = rng.normal(drift, 0.3, steps)
    headings = heading + np.cumsum(turns)
    path = np.cumsum(np.stack((np.cos(headings), np.sin(headings)), axis=1), axis=0) * span / 16
    return np.concatenate((start[None], start + path))


class Lesion(IntEnum):
    """Labels of a lesion mask."""

    NONE = 0
    MICROANEURYSM = 1
    HAEMORRHAGE = 2
    HARD_EXUDATE = 3
    COTTON_WOOL_SPOT = 4
    NEW_VESSELS = 5
    PRERETINAL_HAEMORRHAGE = 6
    VENOUS_BEADING = 7


_PAINTING_ORDER = (
    Lesion.VENOUS_BEADING,
    Lesion.HARD_EXUDATE,
    Lesion.COTTON_WOOL_SPOT,
    Lesion.MICROANEURYSM,
    Lesion.HAEMORRHAGE,
    Lesion.NEW_VESSELS,
    Lesion.PRERETINAL_HAEMORRHAGE,
)
"""Lesions from the lowest to the uppermost."""


@dataclass(frozen=True)
class Burden:
    """Number of lesions of an eye."""

    microaneurysms: int = 0
    haemorrhages: tuple[int, int, int, int] = (0, 0, 0, 0)  # in each quadrant
    exudates: int = 0  # clusters of hard exudates
    cotton_wool: int = 0
    beaded: int = 0  # veins with beading
    disc_vessels: bool = False  # new vessels on the disc
    fronds: int = 0  # new vessels elsewhere
    boats: int = 0  # pre-retinal haemorrhages


def draw_burden(rng: np.random.Generator, grade: int) -> Burden:
    """Draw the number of lesions of an eye of one grade.

    Grade 0 has none, grade 1 microaneurysms only, grade 2 also haemorrhages, exudates and cotton-wool spots,
    grade 3 many haemorrhages in all quadrants and venous beading, grade 4 also new vessels or pre-retinal
    haemorrhages.
    """

    def between(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def quadrants(low: int, high: int) -> tuple[int, int, int, int]:
        return between(low, high), between(low, high), between(low, high), between(low, high)

    if grade == 0:
        return Burden()
    if grade == 1:
        return Burden(microaneurysms=between(9, 16))
    if grade == 2:
        return Burden(between(14, 24), quadrants(1, 4), between(2, 4), between(0, 2))
    if grade == 3:
        return Burden(between(18, 30), quadrants(9, 14), between(1, 4), between(2, 5), between(2, 3))
    on_disc = rng.random() < 0.6
    return Burden(
        microaneurysms=between(12, 24),
        haemorrhages=quadrants(2, 7),
        exudates=between(0, 4),
        cotton_wool=between(0, 3),
        beaded=between(0, 2),
        disc_vessels=on_disc,
        fronds=between(1, 3) if not on_disc else between(0, 2),
        boats=int(rng.random() < 0.7) + int(rng.random() < 0.25),
    )


class LesionPainter:
    """Place and draw the lesions of one eye, and paint them below and above the vessels.

    Attributes:
        vessels: The given vessel tree with beaded veins.
    """

    def __init__(self, rng: np.random.Generator, view: View, burden: Burden, vessels: list[Vessel]) -> None:
        self._rng, self._view = rng, view
        self._canvases: dict[Lesion, Canvas] = {}
        self.vessels, self._beaded = bead(rng, vessels, burden.beaded) if burden.beaded else (vessels, [])
        self._sketch(burden)
        self._layers = {lesion: canvas.coverage() for lesion, canvas in self._canvases.items()}
        for blood in {Lesion.HAEMORRHAGE, Lesion.PRERETINAL_HAEMORRHAGE} & self._layers.keys():
            # Blood has no sharp edge.
            self._layers[blood] = soften(self._layers[blood], 0.006 * view.radius)
        if burden.cotton_wool:
            self._layers[Lesion.COTTON_WOOL_SPOT] = self._cotton_wool(burden.cotton_wool)

    def _canvas(self, lesion: Lesion) -> Canvas:
        if lesion not in self._canvases:
            self._canvases[lesion] = Canvas(self._view)
        return self._canvases[lesion]

    def _sketch(self, burden: Burden) -> None:
        """Draw all lesions except cotton-wool spots on their layers."""
        rng, radius = self._rng, self._view.radius
        for spot in self._sites(burden.microaneurysms):
            self._canvas(Lesion.MICROANEURYSM).polygon(
                blot(rng, spot, rng.uniform(0.017, 0.025) * radius, 0.1)
            )
        for quadrant, count in enumerate(burden.haemorrhages):
            for spot in self._sites(count, self._in_quadrant(quadrant)):
                self._canvas(Lesion.HAEMORRHAGE).polygon(self._haemorrhage(spot), rng.uniform(0.7, 1))
        for _ in range(burden.exudates):
            self._exudates()
        if burden.disc_vessels:
            base = self._view.to_pixels([(float(rng.normal(0, 0.4)), float(rng.normal(0, 0.4)))])[0]
            self._frond(base, rng.uniform(1.2, 1.9), around=True)
        for base in self._sites(burden.fronds, margin=0.2):
            self._frond(base, rng.uniform(1.1, 1.9), around=False)
        for spot in self._sites(burden.boats, margin=0.26):
            outline = boat(rng, spot, rng.uniform(0.15, 0.25) * radius)
            self._canvas(Lesion.PRERETINAL_HAEMORRHAGE).polygon(outline)
        for vein in self._beaded:
            widths = vein.widths * self._view.unit
            self._canvas(Lesion.VENOUS_BEADING).line(self._view.to_pixels(vein.points), widths)

    def _sites(
        self,
        count: int,
        allowed: Callable[[Points], npt.NDArray[np.bool_]] | None = None,
        margin: float = 0.07,
    ) -> Points:
        """Choose (count, 2) pixels on the visible retina outside disc and fovea."""
        view, sites = self._view, np.empty((0, 2))
        while len(sites) < count:
            pixels = np.array(view.centre) + self._rng.uniform(-1, 1, (64, 2)) * view.radius
            anatomy = view.to_anatomy(pixels)
            good = view.shows(pixels, margin) & (np.hypot(*anatomy.T) > 1.4)
            good &= np.hypot(*(anatomy - FOVEA).T) > 0.5
            good &= True if allowed is None else allowed(pixels)
            sites = np.concatenate((sites, pixels[good]))
        return sites[:count]

    def _in_quadrant(self, quadrant: int) -> Callable[[Points], npt.NDArray[np.bool_]]:
        """Return a test for pixels in a quadrant of the field: upper left and right, lower left and right."""
        right, lower = bool(quadrant % 2), quadrant >= 2
        centre = self._view.centre
        return lambda pixels: ((pixels[:, 0] > centre[0]) == right) & ((pixels[:, 1] > centre[1]) == lower)

    def _haemorrhage(self, spot: npt.NDArray[np.float64]) -> Points:
        """Return the outline of a dot, blot or flame."""
        rng, radius = self._rng, self._view.radius
        if rng.random() < 0.3:
            # Flames follow the nerve fibres, which run away from the disc.
            away = spot - self._view.to_pixels([(0.0, 0.0)])[0]
            return flame(rng, spot, rng.uniform(0.035, 0.075) * radius, float(np.arctan2(away[1], away[0])))
        return blot(rng, spot, float(min(rng.gamma(3, 0.006) + 0.018, 0.065)) * radius, 0.17)

    def _exudates(self) -> None:
        """Draw one cluster of hard exudates, as a patch or a ring."""
        rng, view = self._rng, self._view
        canvas = self._canvas(Lesion.HARD_EXUDATE)
        for _ in range(20):
            heart = rng.normal(FOVEA, (2.0, 1.7))
            heart_px = view.to_pixels([heart])
            if view.shows(heart_px, 0.15)[0] and np.hypot(*heart) > 2:
                break
        crumbs, ring = int(rng.integers(10, 30)), rng.random() < 0.35
        angle = rng.uniform(0, 2 * np.pi, crumbs)
        away = rng.normal(0.95, 0.14, crumbs) if ring else np.abs(rng.normal(0, 0.5, crumbs))
        squeeze = rng.uniform(0.55, 1)
        spots = (
            heart_px[0] + view.radius * 0.13 * (away * np.stack((np.cos(angle), squeeze * np.sin(angle)))).T
        )
        for spot in spots:
            canvas.polygon(
                blot(rng, spot, float(min(rng.gamma(2, 0.0035) + 0.005, 0.026)) * view.radius, 0.2)
            )

    def _frond(self, base: npt.NDArray[np.float64], span: float, around: bool) -> None:
        """Draw a tuft of new vessels of ``span`` disc radii, to all sides or as a fan."""
        rng, view = self._rng, self._view
        canvas = self._canvas(Lesion.NEW_VESSELS)
        for path in frond(rng, base, span * view.unit, around):
            widths = np.linspace(1, 0.6, len(path)) * max(rng.uniform(0.055, 0.085) * view.unit, 0.8)
            canvas.line(path, widths)

    def _cotton_wool(self, count: int) -> FloatImage:
        """Return a layer of cotton-wool spots with soft edges, (H, W) in [0, 1]."""
        rng, view = self._rng, self._view
        layer = np.zeros(view.shape, np.float32)
        feather = 1 + 0.35 * cloud(rng, view.shape, 40)
        height, width = view.shape
        x = np.arange(width, dtype=np.float32)[None, :]
        y = np.arange(height, dtype=np.float32)[:, None]
        for spot in self._sites(count, margin=0.14):
            size, turn = rng.uniform(0.04, 0.065) * view.radius, rng.uniform(0, np.pi)
            cos, sin = np.float32(np.cos(turn) / size), np.float32(np.sin(turn) / size)
            u, v = cos * (x - spot[0]) + sin * (y - spot[1]), cos * (y - spot[1]) - sin * (x - spot[0])
            distance = u * u + (v * np.float32(rng.uniform(1.2, 1.7))) ** 2
            np.maximum(layer, np.exp(-((distance * feather) ** 2)), out=layer)
        return layer

    def paint_deep(self, retina: FloatImage) -> None:
        """Paint lesions below the vessels (hard exudates) onto ``retina`` (H, W, 3) in place."""
        self._blend(retina, Lesion.HARD_EXUDATE, (1.0, 0.90, 0.45), 0.92)

    def paint_shallow(self, retina: FloatImage) -> None:
        """Paint lesions among and above the vessels onto ``retina`` (H, W, 3) in place."""
        self._blend(retina, Lesion.COTTON_WOOL_SPOT, (0.98, 0.90, 0.72), 0.72)
        self._stain(retina, Lesion.MICROANEURYSM, (-0.55, -1.35, -1.1))
        self._stain(retina, Lesion.HAEMORRHAGE, (-0.62, -1.55, -1.2))
        self._stain(retina, Lesion.NEW_VESSELS, (-0.30, -1.15, -0.9))
        if Lesion.PRERETINAL_HAEMORRHAGE in self._layers:
            mottle = np.float32(1) + np.float32(0.22) * cloud(self._rng, self._view.shape, 14)
            self._blend(retina, Lesion.PRERETINAL_HAEMORRHAGE, (0.43, 0.075, 0.045), 0.92, mottle)

    def _blend(
        self,
        retina: FloatImage,
        lesion: Lesion,
        colour: tuple[float, float, float],
        opacity: float,
        mottle: FloatImage | None = None,
    ) -> None:
        """Blend an opaque colour over the retina, with brightness factors ``mottle`` (H, W)."""
        if lesion in self._layers:
            hit = self._layers[lesion] > 1e-3
            cover = np.float32(opacity) * self._layers[lesion][hit, None]
            shades = np.array(colour, np.float32) * (1 if mottle is None else mottle[hit, None])
            retina[hit] += cover * (shades - retina[hit])

    def _stain(self, retina: FloatImage, lesion: Lesion, ink: tuple[float, float, float]) -> None:
        """Absorb light by transparent blood."""
        if lesion in self._layers:
            layer = self._layers[lesion]
            retina[layer > 0] *= np.exp(layer[layer > 0, None] * np.array(ink, np.float32))

    def mask(self) -> npt.NDArray[np.uint8]:
        """Return the uppermost lesion of every pixel, (H, W) uint8 of :class:`Lesion`."""
        labels = np.zeros(self._view.shape, np.uint8)
        for lesion in _PAINTING_ORDER:
            if lesion in self._layers:
                labels[self._layers[lesion] > 0.35] = lesion
        return labels
