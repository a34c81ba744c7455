"""How far a model's confidence is from how often it is right."""

import torch
from torch import Tensor

from drgrade.metrics.undefined import undefined


def expected_calibration_error(probabilities: Tensor, grades: Tensor, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy, over equal-width bins of confidence.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 5. Confidence is the largest
    probability; a photograph counts as right where that probability is its grade's.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.
        bins: number of bins; bin i holds confidences in (i / bins, (i + 1) / bins].

    Returns:
        A value in [0, 1]; 0 where there are no photographs.
    """
    total = len(grades)
    if total == 0:
        return undefined("ece", 0.0, "there are no photographs")
    # On the CPU, where bincount adds in the order of the photographs, so that equal data give equal bits.
    confidence, top = probabilities.double().cpu().max(dim=1)  # (N,), (N,)
    right = (top == grades.cpu()).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(confidence, edges)
    gaps = torch.bincount(place, weights=confidence - right, minlength=bins)  # (bins,)
    return float(gaps.abs().sum()) / total
