"""Outlines of single lesions, in pixels."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from drgrade.data.fundus_art.view import Points

_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1)


def blot(
    rng: np.random.Generator, centre: npt.NDArray[np.float64], radius: float, roughness: float
) -> Points:
    """Outline a round spot with an uneven edge.

    Args:
        rng: Source of randomness.
        centre: (2,) its centre.
        radius: Its mean radius.
        roughness: Standard deviation of the edge as a share of the radius.

    Returns:
        (24, 2) points.
    """
    # Long waves are the strongest: a spot is stretched rather than jagged.
    waves = rng.normal(0, roughness / 1.3, (2, 3)) * (1, 0.55, 0.3)
    orders = np.arange(2, 5)[:, None] * _ANGLES
    edge = 1 + waves[0] @ np.cos(orders) + waves[1] @ np.sin(orders)
    return np.asarray(centre + radius * np.maximum(edge, 0.35)[:, None] * _CIRCLE)


def flame(rng: np.random.Generator, centre: npt.NDArray[np.float64], half: float, angle: float) -> Points:
    """Outline a flame: narrow, pointed at one end, frayed at the other.

    Args:
        rng: Source of randomness.
        centre: (2,) its centre.
        half: Half its length.
        angle: Direction of its length in radians.

    Returns:
        (N, 2) points.
    """
    along = np.linspace(-1, 1, 9)
    breadth = 0.36 * np.sqrt(np.clip(1 - along**2, 0, None)) * (1 + 0.25 * along)
    upper = np.stack((along, breadth * rng.uniform(0.7, 1.25, 9)), axis=1)
    lower = np.stack((along[::-1], -breadth[::-1] * rng.uniform(0.7, 1.25, 9)), axis=1)
    frayed = np.stack((rng.uniform(0.75, 1.35, 5), np.linspace(0.3, -0.3, 5)), axis=1)
    outline = half * np.concatenate((upper[:-1], frayed, lower[1:]))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(centre + outline @ np.array([[cos, sin], [-sin, cos]]))


def boat(rng: np.random.Generator, centre: npt.NDArray[np.float64], half: float) -> Points:
    """Outline a pre-retinal haemorrhage: the blood sinks and forms a level at the top, like a boat.

    Args:
        rng: Source of randomness.
        centre: (2,) the middle of the level.
        half: Half its length.

    Returns:
        (N, 2) points.
    """
    angles = np.linspace(0, np.pi, 25)
    depth = rng.uniform(0.45, 0.85) * np.abs(np.sin(angles)) ** rng.uniform(0.6, 1.0)
    wobble = 1 + 0.10 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angles + rng.uniform(0, 6))
    hull = np.stack((np.cos(angles), depth * wobble - 0.25), axis=1)
    turn = rng.normal(0, 0.08)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.asarray(centre + half * hull @ np.array([[cos, sin], [-sin, cos]]))


def frond(
    rng: np.random.Generator, base: npt.NDArray[np.float64], span: float, around: bool
) -> Iterator[Points]:
    """Draw the curling, looping paths of a tuft of new vessels.

    Args:
        rng: Source of randomness.
        base: (2,) where it springs from.
        span: How far it reaches.
        around: To all sides, as on the disc; else as a fan.

    Yields:
        (N, 2) points of one path.
    """
    stems = int(rng.integers(8, 13)) if around else int(rng.integers(6, 10))
    middle = rng.uniform(0, 2 * np.pi)
    spread = np.pi if around else 0.95
    for heading in middle + np.linspace(-spread, spread, stems) + rng.normal(0, 0.15, stems):
        stem = _curl(rng, base, float(heading), span, 16, 0.3)
        yield stem
        for _ in range(2):
            start = int(rng.integers(4, 13))
            side = float(rng.choice((-1.0, 1.0)))
            yield _curl(rng, stem[start], float(heading) + side * 0.9, 0.75 * span, 12, 0.3, side * 0.26)


def _curl(
    rng: np.random.Generator,
    start: npt.NDArray[np.float64],
    heading: float,
    span: float,
    steps: int,
    wander: float,
    drift: float = 0.0,
) -> Points:
    """Walk ``steps`` steps of ``span / 16`` from ``start``, turning by ``drift`` and at random."""
    turns = rng.normal(drift, wander, steps)
    headings = heading + np.cumsum(turns)
    path = np.cumsum(np.stack((np.cos(headings), np.sin(headings)), axis=1), axis=0) * span / 16
    return np.concatenate((start[None], start + path))
