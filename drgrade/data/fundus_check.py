"""Check that an image is a fundus photograph of sufficient quality; crop and check photographs for a model.

A fitted rule on measures inside the disc separates fundus photographs from other images. A fundus is more red
than green and more green than blue, and its shading is slow. Its detail consists of vessels: dark, thin,
sparse, and similar in red and green (weaker in red, because blood transmits red light). Other images have
other detail, other colours or stronger edges. The accuracy of the rule is in ``docs/quality.md``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import inf, isfinite
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

from drgrade.data.crops import Crop, CropMaker, ExtractedDisc, make_crops
from drgrade.data.geometry import Disc, Floats, Mask, NoFundus, Pixels, crop_disc, recorded_mask
from drgrade.data.image_reader import UnreadablePhotograph, hash_file
from drgrade.data.quality import Quality, measure

_APPEARANCE_SIDE = 128  # side in pixels of the crop on which the appearance is measured
_WITHIN = 0.9  # measured share of the radius: rims may glow
_MIN_PIXELS = 200
_OFFSET = 8.0  # grey levels added before the logarithm, which would amplify noise in dark regions
_FINE, _COARSE, _SHADE = 1.0, 6.0, 10.0  # standard deviations of the Gaussians in pixels
_HUE, _VESSEL = 2.0, 1.5
_EDGE = 7  # width in pixels of the border where slopes are affected by the mask


class Appearance(NamedTuple):
    """Measures of an image on the logarithms of its channels, so that exposure cancels.

    Attributes:
        red_green: Median of red minus green.
        green_blue: Median of green minus blue.
        hue: Logarithm of the standard deviation of red minus green over the disc.
        shading: Logarithm of the standard deviation of the green channel after a wide blur.
        detail: Logarithm of the strength of the detail of the green channel, including vessels.
        sparse: Median absolute detail divided by its standard deviation; low for sparse detail.
        slope: Regression slope of red detail on green detail.
        together: Fisher's z of the correlation of red and green detail.
        ridges: Share of the curvature that belongs to dark lines.
        edges: Logarithm of the 99th percentile of the slopes divided by the strength of the detail.
        structures: Logarithm of 1 + number of dark structures; vessels are some dozens.
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
class FundusRule:
    """Quadratic function of the measures, positive for fundus photographs.

    Attributes:
        mean: (11,) means of the measures in the fitted data.
        scale: (11,) their standard deviations.
        constant: Constant term.
        linear: (11,) weights of the standardised measures.
        quadratic: (11, 11) weights of their products.
        reach: Limit to which standardised measures are clipped.
    """

    mean: Floats
    scale: Floats
    constant: float
    linear: Floats
    quadratic: Floats
    reach: float

    def score(self, measures: Appearance) -> float:
        """Compute the log-odds of a fundus photograph."""
        z = np.clip((np.array(measures) - self.mean) / self.scale, -self.reach, self.reach)
        return float(self.constant + z @ self.linear + z @ self.quadratic @ z)

    def to_json(self) -> str:
        """Serialise as the content of ``appearance.json``."""
        record = {name: np.asarray(value).tolist() for name, value in self.__dict__.items()}
        return json.dumps({"measures": Appearance._fields, **record}, indent=1) + "\n"


@cache
def fitted_rule() -> FundusRule:
    """Load the rule fitted by ``benchmarks/photograph_quality.py``."""
    record = json.loads(files(__package__).joinpath("appearance.json").read_text(encoding="utf-8"))
    arrays = {name: np.array(record[name]) for name in ("mean", "scale", "linear", "quadratic")}
    return FundusRule(**arrays, constant=record["constant"], reach=record["reach"])


def measure_appearance(pixels: Pixels, disc: Disc) -> Appearance | None:
    """Measure an image, RGB, uint8 (H, W, 3), inside its disc.

    Returns:
        The measures; None if too little of the disc was recorded, or it has no detail.
    """
    inside = recorded_mask(disc, _APPEARANCE_SIDE) & _inner()
    if int(inside.sum()) < _MIN_PIXELS:
        return None
    channels = np.log(crop_disc(pixels, disc, _APPEARANCE_SIDE).astype(np.float64) + _OFFSET)
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
    dark = (band < -strength) & inside
    regions = cv2.connectedComponents(dark.astype(np.uint8), connectivity=8)[0]  # with the background
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
        float(np.log1p(regions - 1)),
    )


def _blur(image: Floats, inside: Mask, sigma: float) -> Floats:
    """Apply a Gaussian that averages over the inside only."""
    weights = inside.astype(np.float64)
    border = cv2.BORDER_CONSTANT
    total = cv2.GaussianBlur(image * weights, (0, 0), sigma, borderType=border)
    share = cv2.GaussianBlur(weights, (0, 0), sigma, borderType=border)
    return np.asarray(total / np.maximum(share, 1e-3), np.float64)


def _band(image: Floats, inside: Mask) -> Floats:
    return _blur(image, inside, _FINE) - _blur(image, inside, _COARSE)


def _shape(green: Floats, inside: Mask) -> tuple[float, float]:
    """Compute the share of the curvature that belongs to dark lines, and the 99th percentile of the slope.

    On a line, one eigenvalue of the Hessian dominates (Frangi et al., "Multiscale vessel enhancement
    filtering", MICCAI 1998).
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
    offsets = (np.arange(_APPEARANCE_SIDE) + 0.5) / (_APPEARANCE_SIDE / 2) - 1
    return np.asarray(np.square(offsets)[:, None] + np.square(offsets) < _WITHIN**2)


Flag = Literal[
    "good",
    "uncertain_disc",
    "tiny",
    "too_dark",
    "over_exposed",
    "out_of_focus",
    "blank",
    "not_fundus",
    "unreadable",
]
"""Quality flags of a photograph."""

FLAGS: tuple[Flag, ...] = get_args(Flag)

_SIDE = 224  # side in pixels of the crop whose light and focus are measured; smaller crops hide blur

LEAST_CONTRAST, LEAST_FOCUS, LEAST_LEVEL, MOST_OVER_EXPOSED = 0.004, 0.5, 32, 0.25
"""Limits of :class:`~drgrade.data.quality.Quality` beyond which a photograph is not graded."""

LEAST_DIAMETER = 64
"""Smallest diameter of the disc in pixels of the file.

A photograph whose disc is smaller than the grader's input is graded with a caution.
"""


@dataclass(frozen=True)
class Verdict:
    """Quality verdict on a photograph.

    Attributes:
        flag: Quality flag.
        reason: Explanation with measured value and threshold; empty for ``good``.
        abstains: True if the photograph should not be graded. Other flags than ``good`` are then cautions.
        measures: Measured values by name; empty if the file could not be read.
    """

    flag: Flag
    reason: str = ""
    abstains: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)


def judge(extracted: ExtractedDisc) -> Verdict:
    """Judge the quality of a decoded photograph."""
    pixels, disc = extracted.photo.pixels, extracted.disc
    plain = crop_disc(pixels, disc, _SIDE)
    quality = measure(plain, recorded_mask(disc, _SIDE), 2 * disc.radius)
    quality = quality._replace(diameter=2 * disc.radius * extracted.photo.full_size[0] / pixels.shape[1])
    flag, reason, abstains = _light_and_focus(quality, len(extracted.plain))
    measures = {name: float(value) for name, value in quality._asdict().items() if isfinite(value)}
    # The fundus rule is unreliable on dark or blurred photographs, which are refused already.
    if not abstains:
        appearance = measure_appearance(pixels, disc)
        score = fitted_rule().score(appearance) if appearance else -inf
        measures |= {"fundus": score} if isfinite(score) else {}
        if score < 0:
            flag, abstains = "not_fundus", True
            reason = f"does not look like a fundus photograph: score {score:.1f}, at least 0 is needed"
    if flag == "good" and disc.doubt:
        flag, reason = "uncertain_disc", disc.doubt
    return Verdict(flag, reason, abstains, measures)


def _light_and_focus(quality: Quality, size: int) -> tuple[Flag, str, bool]:
    """Return flag, reason and abstention by light, focus and size."""
    _, level, over_exposed, contrast, focus = quality
    if not np.isfinite(contrast):
        return "blank", "too little of the disc is visible", True
    if contrast < LEAST_CONTRAST:
        return "blank", f"no structure: contrast {contrast:.4f}, at least {LEAST_CONTRAST} is needed", True
    if focus < LEAST_FOCUS:
        return "out_of_focus", f"out of focus: {focus:.2f}, at least {LEAST_FOCUS} is needed", True
    if over_exposed > MOST_OVER_EXPOSED:
        limit = f"at most {MOST_OVER_EXPOSED:.0%} is allowed"
        return "over_exposed", f"{over_exposed:.0%} of the disc is over-exposed, {limit}", True
    if level < LEAST_LEVEL:
        return "too_dark", f"too dark: level {level:.0f} of 255, at least {LEAST_LEVEL} is needed", True
    for least, abstains in ((LEAST_DIAMETER, True), (size, False)):
        if quality.diameter < least:
            reason = f"the disc has a diameter of {quality.diameter:.0f} px, at least {least} is needed"
            return "tiny", reason, abstains
    return "good", "", False


@dataclass(frozen=True)
class PreparedPhotograph:
    """Crop and quality verdict of one photograph.

    Attributes:
        crop: Crop as in training; its pixels are None if the photograph cannot be used.
        verdict: Quality verdict; it abstains where ``crop.pixels`` is None.
    """

    crop: Crop
    verdict: Verdict


class Preparation(CropMaker):
    """Prepares and judges photographs with the settings of a run; picklable for worker processes."""

    def prepare(self, path: Path) -> PreparedPhotograph:
        """Decode one photograph once, crop its disc, and judge it before its illumination is normalised."""
        sha256 = ""
        try:
            sha256 = hash_file(path)
            extracted = self.extract(path)
            return PreparedPhotograph(self.crop(path, sha256, extracted), judge(extracted))
        except (UnreadablePhotograph, NoFundus) as error:
            flag: Flag = "blank" if isinstance(error, NoFundus) else "unreadable"
            verdict = Verdict(flag, str(error), abstains=True)
            return PreparedPhotograph(Crop(sha256, failure=str(error)), verdict)

    def prepare_all(self, paths: Iterable[Path], workers: int | None = None) -> Iterator[PreparedPhotograph]:
        """Prepare many photographs in order, with a few of them in memory at a time.

        Args:
            paths: The files.
            workers: Number of processes; None for one per CPU.

        Raises:
            DataError: If a worker process was killed.
        """
        yield from make_crops(self.prepare, paths, workers)
