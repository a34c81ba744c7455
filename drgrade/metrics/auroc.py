"""Area under the receiver operating characteristic, exact with ties."""

import torch
from torch import Tensor

from drgrade.metrics.undefined import undefined


def auroc(scores: Tensor, positive: Tensor, name: str = "auroc") -> float:
    """The chance that a positive scores above a negative; ties count one half.

    Mann and Whitney, Annals of Mathematical Statistics 18(1), 1947;
    Hanley and McNeil, Radiology 143(1), 1982.

    Args:
        scores: (N,) float, higher means more likely positive.
        positive: (N,) bool.
        name: what to call the metric if it is undefined.

    Returns:
        A value in [0, 1]; 0.5 where positives or negatives are missing.
    """
    _, level = torch.unique(scores, return_inverse=True)  # (N,) rank among the distinct scores, from 0
    levels = int(level.max()) + 1 if len(level) else 0
    positives = torch.bincount(level[positive], minlength=levels)  # (levels,)
    negatives = torch.bincount(level[~positive], minlength=levels)  # (levels,)
    pairs = int(positives.sum()) * int(negatives.sum())
    if pairs == 0:
        return undefined(name, 0.5, "it needs positives and negatives")
    below = negatives.cumsum(dim=0) - negatives
    # Whole numbers, so the result does not depend on the order of the photographs.
    doubled = int((positives * (2 * below + negatives)).sum())
    return doubled / (2 * pairs)
