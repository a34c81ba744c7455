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


LEAST = 1e-6
"""No probability counts as less in a likelihood: some heads give exactly 0, whose logarithm is infinite."""


def negative_log_likelihood(probabilities: Tensor, grades: Tensor) -> float:
    """The mean of -log of the probability that the true grade was given, in nats.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.

    Returns:
        A value in [0, 13.8]: no probability counts as less than `LEAST`. All five grades alike have 1.609. 0
        where there are no photographs.
    """
    if len(grades) == 0:
        return undefined("nll", 0.0, "there are no photographs")
    given = probabilities.double().cpu().gather(1, grades.cpu()[:, None])
    return float(-given.clamp(min=LEAST).log().mean())


def brier_score(probabilities: Tensor, grades: Tensor) -> float:
    """The mean squared distance of the probabilities from the truth, summed over the grades.

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78(1), 1950,
    equation 2.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.

    Returns:
        A value in [0, 2]; all five grades alike have 0.8. 0 where there are no photographs.
    """
    if len(grades) == 0:
        return undefined("brier", 0.0, "there are no photographs")
    truth = torch.nn.functional.one_hot(grades.cpu(), probabilities.shape[1])
    return float((probabilities.double().cpu() - truth).square().sum(dim=1).mean())


def hit_rates(referred: Tensor, positive: Tensor) -> tuple[float, float]:
    """Sensitivity and specificity of a decision.

    Args:
        referred: (N,) bool, the decision.
        positive: (N,) bool, the truth.

    Returns:
        Share of the positives that are referred, share of the others that are not; 0 where there are none.
    """
    referred, positive = referred.cpu(), positive.cpu()

    def share(name: str, part: Tensor) -> float:
        if len(part) == 0:
            return undefined(name, 0.0, "there are no photographs that it counts")
        return int(part.sum()) / len(part)

    return share("sensitivity", referred[positive]), share("specificity", ~referred[~positive])
