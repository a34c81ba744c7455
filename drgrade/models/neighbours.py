"""Grades of the nearest photographs in the space of features."""

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.07
"""Of the votes, as Wu et al. (CVPR 2018) and Caron et al. (DINO, ICCV 2021) set it."""


def neighbour_votes(
    features: Tensor, bank: Tensor, grades: Tensor, neighbours: int, num_grades: int = 5
) -> Tensor:
    """Let the nearest photographs of a bank vote on the grade of others.

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018: the
    neighbours by cosine similarity s vote with weight exp(s / 0.07).

    Args:
        features: (N, D), of the photographs to be graded.
        bank: (M, D), of photographs whose grade is known.
        grades: (M,) int64, 0 to `num_grades` - 1.
        neighbours: how many vote, 1 to M.
        num_grades: how many grades there are.

    Returns:
        (N, num_grades) float32, the share of the votes of each grade; rows with sum 1.
    """
    similarity = functional.normalize(features.float(), dim=1) @ functional.normalize(bank.float(), dim=1).T
    nearest, which = similarity.topk(neighbours, dim=1)  # (N, neighbours)
    weights = torch.softmax(nearest / TEMPERATURE, dim=1)
    votes = torch.zeros(len(features), num_grades, device=features.device)
    return votes.scatter_add_(1, grades[which], weights)
