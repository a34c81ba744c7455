"""Retina below the vessels: pigment, choroid, macula and optic disc."""

from dataclasses import dataclass

import cv2
import numpy as np

from drgrade.synthetic.canvas import FOVEA, FloatImage, View, cloud

PALE = np.array((0.93, 0.50, 0.22), np.float32)
"""RGB of a lightly pigmented fundus."""

DARK = np.array((0.58, 0.27, 0.09), np.float32)
"""RGB of a heavily pigmented fundus."""


@dataclass(frozen=True)
class Pigmentation:
    """Appearance shared by both eyes of a patient.

    Attributes:
        melanin: 0 (pale orange) to 1 (dark brown).
        tessellation: Visibility of the choroidal vessels, in [0, 1].
        macula: Depth of the dark spot around the fovea, 0..1.
        sheen: Brightness of the nerve fibres along the arcades, in [0, 1], as in young eyes.
        cup: Radius of the cup as a share of the radius of the disc.
        crescent: Strength of the ring at the temporal edge of the disc, 0..1.
        redness: Contrast of the blood vessels, about 1.
        disc_warmth: 0 (pale, whitish disc) to 1 (orange disc).
    """

    melanin: float
    tessellation: float
    macula: float
    sheen: float
    cup: float
    crescent: float
    redness: float
    disc_warmth: float

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
    """Paint the retina without disc, vessels or lesions.

    Args:
        rng: Random generator.
        view: View of the photograph.
        eye: Appearance of the patient.

    Returns:
        (H, W, 3) RGB, 0..1.
    """
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
    """Paint the optic disc in place: rim, cup with shaded wall, and surrounding ring.

    Args:
        rng: Random generator.
        retina: (H, W, 3) RGB.
        view: View of the photograph.
        eye: Appearance of the patient.
    """
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
