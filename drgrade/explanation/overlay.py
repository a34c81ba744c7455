"""Drawing of a heat map on the original photograph."""

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.crops import Facts

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

COLOURS = ((0, 90, 220), (0, 140, 255), (0, 245, 255))
"""RGB at heat 0, 0.5 and 1. Exudates, cotton-wool spots and the optic disc are yellow, white or orange,
haemorrhages and vessels red: a scale with such colours, as viridis or jet, would paint lesions."""

_MAX_OPACITY = 0.65  # opacity of the colour at heat 1; the photograph stays visible everywhere
_RETINA = np.array([150.0, 70.0, 30.0])  # mean colour of a retina, on which legends show the scale
_CONTOUR_LEVEL = 0.5  # heat at which a contour is drawn, so that colour is not the only cue


def draw_overlay(photograph: Pixels, facts: Facts, heat: Floats) -> Pixels:
    """Blend a heat map into a photograph.

    Colours go from blue to cyan (:data:`COLOURS`), which no retina and no lesion has; lighter is
    hotter, also for colour-blind readers and in grey. A contour surrounds the region above half of the
    maximum.

    Args:
        photograph: RGB, uint8 of shape (H, W, 3), upright, at original or reduced size.
        facts: Geometry of the original photograph, from its preparation.
        heat: (S, S) in [0, 1], on the prepared photograph.

    Returns:
        RGB, uint8 of shape (H, W, 3); unchanged where heat is 0.
    """
    spread = project_heat(photograph.shape[:2], facts, heat)
    overlay = np.ascontiguousarray(_blend(photograph, spread))
    _draw_contour(overlay, spread)
    return overlay


def project_heat(shape: tuple[int, ...], facts: Facts, heat: Floats) -> Floats:
    """Map heat on the prepared photograph back to the original photograph.

    Args:
        shape: (H, W) of the photograph, which may be reduced.
        facts: Geometry of the original photograph.
        heat: (S, S).

    Returns:
        (H, W) float32; 0 outside the disc.
    """
    height, width = shape
    side = len(heat)
    fx, fy = width / facts.width, height / facts.height
    x, y = facts.circle_x * fx, facts.circle_y * fy
    semi_x, semi_y = facts.circle_r * facts.stretch * fx, facts.circle_r * fy
    # Pixel centres: pixel i of the photograph is at i + 0.5, pixel k of the map at (k + 0.5) / side.
    ax, ay = side / (2 * semi_x), side / (2 * semi_y)
    to_heat = np.array(
        [[ax, 0, (0.5 - x + semi_x) * ax - 0.5], [0, ay, (0.5 - y + semi_y) * ay - 0.5]], dtype=np.float64
    )
    spread = cv2.warpAffine(
        np.ascontiguousarray(heat, dtype=np.float32),
        to_heat,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    across, down = (np.arange(width) + 0.5 - x) / semi_x, (np.arange(height) + 0.5 - y) / semi_y
    inside = across[None, :] ** 2 + down[:, None] ** 2 <= 1
    return np.where(inside, spread, 0).astype(np.float32)


def draw_legend(width: int) -> Pixels:
    """Draw a colour bar with labels, to be placed below an overlay: RGB, uint8 of shape (h, width, 3)."""
    scale = max(width / 640, 0.3)
    bar, text = max(4, round(14 * scale)), max(8, round(26 * scale))
    colours = _blend(_RETINA, np.linspace(0, 1, width, dtype=np.float32))[None].repeat(bar, 0)
    labels = np.full((text, width, 3), 255, np.uint8)
    font, size, margin = cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, round(6 * scale)
    for label, at_right in (("little heat", False), ("most heat", True)):
        (length, _), _ = cv2.getTextSize(label, font, size, 1)
        start = width - length - margin if at_right else margin
        cv2.putText(labels, label, (start, round(18 * scale)), font, size, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate((colours, labels))


def resize_to(pixels: Pixels, longest: int) -> Pixels:
    """Reduce a photograph, uint8 of shape (H, W, 3), to a longer side of at most ``longest`` pixels.

    ``longest=0`` keeps the size.
    """
    factor = longest / max(pixels.shape[:2]) if longest else 1.0
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def heat_gradient() -> str:
    """Return the scale of :func:`draw_legend` as a CSS gradient from left to right."""
    stops = _blend(_RETINA, np.linspace(0, 1, 9, dtype=np.float32)).tolist()
    return f"linear-gradient(to right, {', '.join(f'#{bytes(stop).hex()}' for stop in stops)})"


def _blend(pixels: Pixels | npt.NDArray[np.float64], heat: Floats) -> Pixels:
    """Blend the colours of heat (...) into pixels (..., 3), or into a single colour (3,)."""
    opacity = (_MAX_OPACITY * np.clip(heat, 0, 1))[..., None]
    mixed = (1 - opacity) * pixels + opacity * _colours(heat)
    return np.asarray(np.rint(mixed), np.uint8)


def _colours(heat: Floats) -> Floats:
    """Return the colour of heat (...) in RGB from 0 to 255: (..., 3)."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(heat, places, channel) for channel in zip(*COLOURS, strict=True)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _draw_contour(overlay: Pixels, spread: Floats) -> None:
    """Draw a white line with a dark rim, visible on any background."""
    hot = (spread >= _CONTOUR_LEVEL).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(overlay.shape) / 700))
    cv2.drawContours(overlay, lines, -1, (0, 0, 0), 3 * thin, cv2.LINE_AA)
    cv2.drawContours(overlay, lines, -1, (255, 255, 255), thin, cv2.LINE_AA)
