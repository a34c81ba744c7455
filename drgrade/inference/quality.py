"""Whether a photograph can be graded: what is wrong with it, in a word and in a sentence.

A grader gives a grade to anything that has pixels. Here it is said before that whether there is a fundus, and
whether enough of it can be seen. ``docs/quality.md`` says how the thresholds were found, and what slips
through.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal, get_args

import numpy as np

from drgrade.data.crops import Seen
from drgrade.data.geometry import crop_disc, recorded_mask
from drgrade.data.quality import Quality, measure
from drgrade.inference.appearance import fitted_rule, measure_appearance

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
            :class:`~drgrade.inference.appearance.Rule`).
    """

    tiny_below: float = 64.0
    blank_below: float = 0.004
    dark_below: float = 32.0
    over_exposed_above: float = 0.25
    blurred_below: float = 0.5
    strange_below: float = 0.0


def judge(seen: Seen, limits: Limits | None = None) -> Verdict:
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
