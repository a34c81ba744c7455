"""What the losses of the heads share: weights of the grades, and focusing on what is hard."""

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTINGS = ("none", "balanced", "effective")
"""How grades can be weighted; see `class_weights`."""


def class_weights(counts: Tensor, weighting: str, beta: float) -> Tensor:
    """Weights that make up for grades being rare.

    `balanced` is n / (K n_k), as scikit-learn computes it (King and Zeng, "Logistic regression in rare events
    data", Political Analysis 9(2), 2001): the mean weight of a photograph is 1. `effective` is
    (1 - beta) / (1 - beta^n_k), scaled to the sum K (Cui et al., "Class-balanced loss based on effective
    number of samples", CVPR 2019, equation 4): with beta = 0 all grades weigh 1, towards beta = 1 as 1 / n_k.
    n_k are the photographs of grade k, n all of them, and K is the number of grades that occur.

    Args:
        counts: (G,) photographs of each grade.
        weighting: `none`, `balanced` or `effective`.
        beta: of `effective`, in [0, 1).

    Returns:
        (G,) float32. A grade that does not occur has weight 0: nothing is known of what it would cost.
    """
    present = counts > 0
    number = counts[present].double()
    if weighting == "balanced":
        found = number.sum() / (len(number) * number)
    elif weighting == "effective":
        found = (1 - beta) / (1 - beta**number)
        found = found * len(number) / found.sum()
    else:
        found = torch.ones_like(number)
    weights = torch.zeros(len(counts))
    weights[present] = found.float()
    return weights


def binary_focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Binary cross-entropy, times (1 - p_t)^gamma with p_t the probability of what is true.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 4, without its alpha.

    Args:
        logits: any shape.
        targets: zeros and ones, of the same shape.
        gamma: at least 0; 0 is cross-entropy.

    Returns:
        One loss for each logit.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma == 0:
        return losses
    # 1 - p_t by way of its logarithm: where p_t rounds to 1, the gradient of a root of 1 - p_t is not finite.
    return losses * torch.exp(gamma * F.logsigmoid(logits * (1 - 2 * targets)))


def multiclass_focal(logits: Tensor, grades: Tensor, gamma: float) -> Tensor:
    """Cross-entropy, times (1 - p_t)^gamma with p_t the softmax probability of the true grade.

    Args:
        logits: (B, G).
        grades: (B,) int64.
        gamma: at least 0; 0 is cross-entropy.

    Returns:
        (B,) losses.
    """
    losses = F.cross_entropy(logits, grades, reduction="none")
    if gamma == 0:
        return losses
    true = F.one_hot(grades, logits.shape[1]).bool()  # (B, G)
    others = torch.logsumexp(logits.masked_fill(true, -torch.inf), dim=1)  # log of the sum that 1 - p_t has
    return losses * torch.exp(gamma * (others - torch.logsumexp(logits, dim=1)))
