"""Metrics over a whole set of photographs, in float64."""

from typing import TYPE_CHECKING, Any

from drgrade.metrics.auroc import auroc
from drgrade.metrics.calibration import expected_calibration_error
from drgrade.metrics.grading import grading_metrics
from drgrade.metrics.kappa import confusion_matrix, quadratic_weighted_kappa

if TYPE_CHECKING:
    from drgrade.metrics.collect import GradingMetrics, Predictions

__all__ = [
    "GradingMetrics",
    "Predictions",
    "auroc",
    "confusion_matrix",
    "expected_calibration_error",
    "grading_metrics",
    "quadratic_weighted_kappa",
]


def __getattr__(name: str) -> Any:
    # torchmetrics takes seconds to import (it brings matplotlib), and only these two need it.
    if name in ("GradingMetrics", "Predictions"):
        from drgrade.metrics import collect

        return getattr(collect, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
