"""Whether a picture looks like a fundus photograph: measures inside the disc, and a rule fitted to them.

A fundus is red before it is green before it is blue, and shaded slowly from the middle to the rim. Its detail
is vessels: dark, thin, sparse, and the same in the red and the green channel, where it is weaker in red
because blood lets red light through. Fur, leaves, text, tissue under a microscope have other detail, other
colours, or stronger edges. ``docs/quality.md`` says what the rule catches and what it does not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import inf, isfinite
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.crops import ExtractedDisc
from drgrade.data.geometry import Disc, crop_disc, recorded_mask
from drgrade.data.quality import Quality, measure

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


Flag = Literal[
    "good", "tiny", "too_dark", "over_exposed", "out_of_focus", "blank", "not_fundus", "unreadable"
]
"""What is said of a photograph in a word; of several that hold, the last."""

_SIDE = 224
"""Side in pixels of the crop that is looked at, whatever a grader takes: smaller ones hide blur."""

FLAGS: tuple[Flag, ...] = get_args(Flag)


@dataclass(frozen=True)
class Verdict:
    """What is said of a photograph before it is graded.

    Attributes:
        flag: In a word.
        reason: In a sentence, with the figure and the threshold; "" for ``good``.
        abstains: Whether it is not to be graded. A flag without it is a caution: it is graded, and the flag
            is shown.
        measures: What was measured, by name; what could not be measured is left out. Empty if the file could
            not be read.
    """

    flag: Flag
    reason: str = ""
    abstains: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """From where on a photograph is not graded.

    Attributes:
        tiny_below: Diameter of the disc in pixels of the file below which it is not graded. Below the size
            that the grader takes it is graded with a caution.
        blank_below: Contrast (see :class:`~drgrade.data.quality.Quality`).
        dark_below: Level, 0-255, of the brightest twentieth of the disc.
        over_exposed_above: Share of the disc, 0-1.
        blurred_below: Focus.
        strange_below: How much it looks like a fundus photograph (see
            :class:`~drgrade.data.fundus_check.Rule`).
    """

    tiny_below: float = 64.0
    blank_below: float = 0.004
    dark_below: float = 32.0
    over_exposed_above: float = 0.25
    blurred_below: float = 0.5
    strange_below: float = 0.0


def judge(seen: ExtractedDisc, limits: Limits | None = None) -> Verdict:
    """Judge a decoded photograph.

    Args:
        seen: The photograph, its disc, and the plain crop that is looked at.
        limits: From where on it is not graded; None for the documented ones.

    Returns:
        The verdict.
    """
    limits = limits or Limits()
    pixels, disc = seen.photo.pixels, seen.disc
    plain = crop_disc(pixels, disc, _SIDE)
    found = measure(plain, recorded_mask(disc, _SIDE), 2 * disc.radius)
    found = found._replace(diameter=2 * disc.radius * seen.photo.full_size[0] / pixels.shape[1])
    flag, reason, abstains = _light_and_focus(found, len(seen.plain), limits)
    measures = {name: float(value) for name, value in found._asdict().items() if isfinite(value)}
    # A photograph that is dark or blurred looks like nothing at all: that is said, and not what it may be.
    if not abstains:
        appearance = measure_appearance(pixels, disc)
        score = fitted_rule().score(appearance) if appearance else -inf
        measures |= {"fundus": score} if isfinite(score) else {}
        if score < limits.strange_below:
            least = limits.strange_below
            reason = f"does not look like a fundus photograph: {score:.1f}, {least:g} at least is needed"
            flag, abstains = "not_fundus", True
    return Verdict(flag, reason, abstains, measures)


def unreadable(reason: str) -> Verdict:
    """The verdict on a file that could not be decoded.

    Args:
        reason: Why.
    """
    return Verdict("unreadable", reason, abstains=True)


def blank(reason: str) -> Verdict:
    """The verdict on a picture that is black or of one colour.

    Args:
        reason: Which.
    """
    return Verdict("blank", reason, abstains=True)


def _light_and_focus(found: Quality, size: int, limits: Limits) -> tuple[Flag, str, bool]:
    if not np.isfinite(found.contrast):
        return "blank", "too little of the disc is to be seen to judge it", True
    if found.contrast < limits.blank_below:
        least = limits.blank_below
        return "blank", f"no structure: contrast {found.contrast:.4f}, {least} at least is needed", True
    if found.focus < limits.blurred_below:
        least = limits.blurred_below
        return "out_of_focus", f"out of focus: {found.focus:.2f}, {least} at least is needed", True
    if found.over_exposed > limits.over_exposed_above:
        most = limits.over_exposed_above
        return (
            "over_exposed",
            f"{found.over_exposed:.0%} of the disc is over-exposed, {most:.0%} at most",
            True,
        )
    if found.level < limits.dark_below:
        least = limits.dark_below
        return "too_dark", f"too dark: level {found.level:.0f} of 255, {least:.0f} at least is needed", True
    if found.diameter < max(limits.tiny_below, size):
        abstains = found.diameter < limits.tiny_below
        least = limits.tiny_below if abstains else size
        return "tiny", f"the disc is {found.diameter:.0f} px across, {least:.0f} are wanted", abstains
    return "good", "", False
