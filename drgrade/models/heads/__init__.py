"""Heads: features to a grade, a loss, and a probability for every grade. Formulae: docs/heads.md."""

from drgrade.models.heads.base import NUM_GRADES, Head
from drgrade.models.heads.corn import CornHead
from drgrade.models.heads.cumulative import CumulativeHead
from drgrade.models.heads.regression import RegressionHead
from drgrade.models.heads.softmax import SoftmaxHead

__all__ = ["NUM_GRADES", "CornHead", "CumulativeHead", "Head", "RegressionHead", "SoftmaxHead"]
