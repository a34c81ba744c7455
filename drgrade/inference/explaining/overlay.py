"""Heat on the original photograph."""

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Facts

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_MOST = 0.65
"""Share of the colour where the heat is 1: what the camera saw stays visible everywhere."""

_CONTOUR = 0.5
"""Heat at which a line is drawn, so that nothing hangs on the colour alone."""


def overlay(photograph: Pixels, facts: Facts, heat: Floats) -> Pixels:
    """Colour a photograph by heat; where there is none, it is left as it is.

    The colours are viridis, which is even in lightness and keeps its order for the colour-blind and in print
    without colour; a line surrounds what is above half of the highest heat.

    Args:
        photograph: RGB, uint8 of shape (H, W, 3), upright; as large as its facts say, or reduced.
        facts: Of the original, from its preparation.
        heat: (S, S) in [0, 1], on the prepared photograph.

    Returns:
        RGB, uint8 of shape (H, W, 3).
    """
    spread = on_photograph(photograph.shape[:2], facts, heat)
    share = (_MOST * np.clip(spread, 0, 1))[..., None]
    mixed = (1 - share) * photograph + share * _colours(spread)
    painted = np.ascontiguousarray(np.rint(mixed).astype(np.uint8))
    _draw_contour(painted, spread)
    return painted


def on_photograph(shape: tuple[int, ...], facts: Facts, heat: Floats) -> Floats:
    """Bring a map of the prepared photograph back to the original.

    Args:
        shape: (H, W) of the photograph.
        facts: Of the original.
        heat: (S, S).

    Returns:
        (H, W) float32; 0 outside the disc.
    """
    height, width = shape
    side = len(heat)
    fx, fy = width / facts.width, height / facts.height
    x, y = facts.circle_x * fx, facts.circle_y * fy
    across, down = facts.circle_r * facts.stretch * fx, facts.circle_r * fy  # semi-axes
    # Pixel centres: pixel i of the photograph is at i + 0.5, pixel k of the map at (k + 0.5) / side.
    ax, ay = side / (2 * across), side / (2 * down)
    to_heat = np.array(
        [[ax, 0, (0.5 - x + across) * ax - 0.5], [0, ay, (0.5 - y + down) * ay - 0.5]], dtype=np.float64
    )
    spread = cv2.warpAffine(
        np.ascontiguousarray(heat, dtype=np.float32),
        to_heat,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    along, upright = (np.arange(width) + 0.5 - x) / across, (np.arange(height) + 0.5 - y) / down
    inside = along[None, :] ** 2 + upright[:, None] ** 2 <= 1
    return np.where(inside, spread, 0).astype(np.float32)


def legend(width: int) -> Pixels:
    """A strip that says what the colours mean, to be put under an overlay.

    Args:
        width: In pixels, at least 1.

    Returns:
        RGB, uint8 of shape (h, width, 3).
    """
    scale = max(width / 640, 0.3)
    bar, text = max(4, round(14 * scale)), max(8, round(26 * scale))
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(bar, 0)
    share = (_MOST * ramp)[..., None]
    ground = np.array([150, 70, 30])  # as bright as a retina
    colours = np.rint((1 - share) * ground + share * _colours(ramp)).astype(np.uint8)
    words = np.full((text, width, 3), 255, np.uint8)
    for line, right in (("little heat", False), ("most heat", True)):
        (length, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, 1)
        start = width - length - round(6 * scale) if right else round(6 * scale)
        cv2.putText(
            words,
            line,
            (start, round(18 * scale)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5 * scale,
            (20, 20, 20),
            1,
            cv2.LINE_AA,
        )
    return np.concatenate((colours, words))


def _colours(heat: Floats) -> Pixels:
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB), dtype=np.uint8
    )


def _draw_contour(painted: Pixels, spread: Floats) -> None:
    """A white line with a dark rim: seen on every ground."""
    hot = (spread >= _CONTOUR).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(painted.shape) / 700))
    cv2.drawContours(painted, lines, -1, (0, 0, 0), 3 * thin, cv2.LINE_AA)
    cv2.drawContours(painted, lines, -1, (255, 255, 255), thin, cv2.LINE_AA)
