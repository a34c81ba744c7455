"""Explanations: which part of a photograph a grade hangs on. docs/explanations.md says how to read them."""

from drgrade.inference.explaining.explainer import Explainer, Explanation
from drgrade.inference.explaining.overlay import legend, overlay
from drgrade.inference.explaining.targets import TARGETS, Target

__all__ = ["TARGETS", "Explainer", "Explanation", "Target", "legend", "overlay"]
