"""The confusion matrix and the quadratic weighted kappa (QWK) that is read from it."""

import torch
from torch import Tensor

from drgrade.metrics.undefined import undefined


def confusion_matrix(predicted: Tensor, grades: Tensor, num_grades: int = 5) -> Tensor:
    """Counts how often each grade was called what.

    Args:
        predicted: (N,) integers, 0 to `num_grades` - 1.
        grades: (N,) integers, the truth.
        num_grades: how many grades G there are.

    Returns:
        (G, G) int64; rows are the truth, columns the predictions.

    Raises:
        ValueError: the lengths differ, or a value is not a grade.
    """
    if predicted.shape != grades.shape or grades.ndim != 1:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and grades {tuple(grades.shape)} must be vectors alike"
        )
    cells = torch.stack((grades, predicted)).long()  # (2, N)
    if cells.numel():
        low, high = (int(bound) for bound in cells.aminmax())
        if low < 0 or high >= num_grades:
            raise ValueError(f"grades must lie in 0 to {num_grades - 1}, found {low} to {high}")
    counts = torch.bincount(cells[0] * num_grades + cells[1], minlength=num_grades**2)
    return counts.reshape(num_grades, num_grades)


def quadratic_weighted_kappa(confusion: Tensor) -> Tensor:
    """Agreement beyond chance, where an error of d grades weighs d squared.

    Cohen, "Weighted kappa", Psychological Bulletin 70(4), 1968: 1 - sum(w * O) / sum(w * E), with the counts
    O, the counts E expected of independent graders with the same margins, and w_ij = (i - j)^2.

    Args:
        confusion: (G, G) counts.

    Returns:
        Scalar float64 in [-1, 1]. Where truth and predictions are one and the same single grade (or there are
        none), the formula is 0 / 0; the value is then 0: no evidence of agreement beyond chance.
    """
    counts = confusion.double()
    places = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    weights = (places[:, None] - places[None, :]).square()  # (G, G)
    # Multiplied by the total, both sums are whole numbers below 2^53, so no order of summing can change them.
    observed = (weights * counts).sum() * counts.sum()
    expected = (weights * torch.outer(counts.sum(dim=1), counts.sum(dim=0))).sum()
    if expected == 0:
        return counts.new_tensor(undefined("qwk", 0.0, "only one grade occurs, in truth and predictions"))
    return 1 - observed / expected
