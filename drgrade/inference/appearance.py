"""Whether a picture looks like a fundus photograph: measures inside the disc, and a rule fitted to them.

A fundus is red before it is green before it is blue, and shaded slowly from the middle to the rim. Its detail
is vessels: dark, thin, sparse, and the same in the red and the green channel, where it is weaker in red
because blood lets red light through. Fur, leaves, text, tissue under a microscope have other detail, other
colours, or stronger edges. ``docs/quality.md`` says what the rule catches and what it does not.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, crop_disc, recorded_mask

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

SIDE = 128
"""Side in pixels of the crop that is looked at, whatever a grader takes: the measures depend on it."""

_WITHIN = 0.9  # share of the radius: rims glow
_FEWEST = 200  # pixels
_DARK = 8.0  # grey levels; added before the logarithm, which would magnify noise in the dark
_FINE, _COARSE, _SHADE = 1.0, 6.0, 10.0  # standard deviations in pixels of the Gaussians
_HUE, _VESSEL = 2.0, 1.5
_EDGE = 7  # pixels beside the mask whose slopes see the mask


class Appearance(NamedTuple):
    """What is measured of a picture; channels are logarithms, so that exposure cancels.

    Attributes:
        red_green: Median of red less green.
        green_blue: Median of green less blue.
        hue: Logarithm of the spread of red less green over the disc.
        shading: Logarithm of the spread of the green channel after a wide blur.
        detail: Logarithm of the strength of the green channel's detail, vessels among it.
        sparse: Median of the detail over its root mean square: low where few pixels have most of it.
        slope: Detail in red for each unit of detail in green.
        together: How closely red and green detail agree: Fisher's z of their correlation.
        ridges: Share of the curvature that belongs to dark lines.
        edges: Logarithm of the strongest slopes over the strength of the detail.
        structures: Logarithm of one more than the number of dark structures: vessels are some dozens.
    """

    red_green: float
    green_blue: float
    hue: float
    shading: float
    detail: float
    sparse: float
    slope: float
    together: float
    ridges: float
    edges: float
    structures: float


@dataclass(frozen=True, eq=False)
class Rule:
    """A quadratic function of the measures, above 0 for a fundus photograph.

    Attributes:
        mean: (11,) of the measures where it was fitted.
        scale: (11,) their standard deviations.
        constant: Added.
        linear: (11,) weights of the standardised measures.
        quadratic: (11, 11) weights of their products.
        reach: Standardised measures are cut off at this, where the rule has seen nothing.
    """

    mean: Floats
    scale: Floats
    constant: float
    linear: Floats
    quadratic: Floats
    reach: float

    def score(self, measures: Appearance) -> float:
        """How much a picture looks like a fundus photograph: log odds where it was fitted.

        Args:
            measures: Of the picture.
        """
        z = np.clip((np.array(measures) - self.mean) / self.scale, -self.reach, self.reach)
        return float(self.constant + z @ self.linear + z @ self.quadratic @ z)

    def to_json(self) -> str:
        """As ``appearance.json`` holds it."""
        record = {name: np.asarray(value).tolist() for name, value in self.__dict__.items()}
        return json.dumps({"measures": Appearance._fields, **record}, indent=1) + "\n"


@cache
def fitted_rule() -> Rule:
    """The rule that ``benchmarks/photograph_quality.py`` has fitted."""
    record = json.loads(files(__package__).joinpath("appearance.json").read_text(encoding="utf-8"))
    arrays = {name: np.array(record[name]) for name in ("mean", "scale", "linear", "quadratic")}
    return Rule(**arrays, constant=record["constant"], reach=record["reach"])


def measure_appearance(pixels: Pixels, disc: Disc) -> Appearance | None:
    """Measure a picture inside its disc.

    Args:
        pixels: RGB, uint8 of shape (H, W, 3): the whole picture.
        disc: Where its disc is.

    Returns:
        The measures; None where too little of the disc is in the picture, or it shows nothing.
    """
    inside = recorded_mask(disc, SIDE) & _inner()
    if int(inside.sum()) < _FEWEST:
        return None
    channels = np.log(crop_disc(pixels, disc, SIDE).astype(np.float64) + _DARK)
    red, green, blue = (np.ascontiguousarray(channels[..., k]) for k in range(3))
    band = _band(green, inside)
    detail = band[inside]
    strength = float(detail.std())
    if strength == 0:
        return None
    red_detail = _band(red, inside)[inside]
    redness = _blur(red - green, inside, _HUE)[inside]
    agreement = np.corrcoef(red_detail, detail)[0, 1] if red_detail.std() > 0 else 0.0
    ridges, slopes = _shape(green, inside)
    return Appearance(
        float(np.median(redness)),
        float(np.median(_blur(green - blue, inside, _HUE)[inside])),
        float(np.log(redness.std() + 0.01)),
        float(np.log(_blur(green, inside, _SHADE)[inside].std() + 0.02)),
        float(np.log(strength + 0.003)),
        float(np.median(np.abs(detail)) / strength),
        float((red_detail * detail).mean() / np.square(detail).mean()),
        float(np.arctanh(np.clip(agreement, -0.999, 0.999))),
        ridges,
        float(np.log(slopes / (strength + 0.003) + 1e-6)),
        float(np.log1p(_count((band < -strength) & inside))),
    )


def _blur(picture: Floats, inside: Mask, sigma: float) -> Floats:
    """A Gaussian that averages over what is inside only."""
    weights = inside.astype(np.float64)
    border = cv2.BORDER_CONSTANT
    total = cv2.GaussianBlur(picture * weights, (0, 0), sigma, borderType=border)
    share = cv2.GaussianBlur(weights, (0, 0), sigma, borderType=border)
    return np.asarray(total / np.maximum(share, 1e-3), np.float64)


def _band(picture: Floats, inside: Mask) -> Floats:
    return _blur(picture, inside, _FINE) - _blur(picture, inside, _COARSE)


def _count(mask: Mask) -> int:
    """Number of connected regions, 8 neighbours to a pixel."""
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]) - 1


def _shape(green: Floats, inside: Mask) -> tuple[float, float]:
    """Share of the curvature that belongs to dark lines, and the slope that one pixel in a hundred exceeds.

    Lines are where one eigenvalue of the Hessian outweighs the other, after Frangi et al., "Multiscale vessel
    enhancement filtering", MICCAI 1998.
    """
    window = np.ones((_EDGE, _EDGE), np.uint8)
    eroded = cv2.erode(inside.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not eroded.any():
        return 0.0, 0.0
    smooth = _blur(green, inside, _VESSEL)
    down, right = np.gradient(smooth)
    (yy, _), (xy, xx) = np.gradient(down), np.gradient(right)
    middle, half = (xx + yy) / 2, np.sqrt(np.square((xx - yy) / 2) + np.square(xy))
    high, low = (middle + half)[eroded], (middle - half)[eroded]
    dark = np.where((high > 0) & (np.abs(low) < high / 2), high, 0)
    whole = np.square(high).sum() + np.square(low).sum()
    slopes = np.hypot(down, right)[eroded]
    return float(np.square(dark).sum() / (whole + 1e-9)), float(np.percentile(slopes, 99))


@cache
def _inner() -> Mask:
    offsets = (np.arange(SIDE) + 0.5) / (SIDE / 2) - 1
    return np.asarray(np.square(offsets)[:, None] + np.square(offsets) < _WITHIN**2)
