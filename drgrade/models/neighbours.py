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
    return shares_of_nearest(similarity, functional.one_hot(grades, num_grades).float(), neighbours)


def shares_of_nearest(
    similarity: Tensor, votes: Tensor, neighbours: int, temperature: float = TEMPERATURE
) -> Tensor:
    """Shares of the votes of the nearest photographs, weighted by exp(similarity / temperature).

    Args:
        similarity: (N, M), of photographs to be graded and those of a bank.
        votes: (M, G), one-hot, the grades of the bank.
        neighbours: how many vote, 1 to M.
        temperature: of the weights, above 0.

    Returns:
        (N, G), rows with sum 1.
    """
    nearest = similarity.topk(neighbours, dim=1)
    # Softmax divides by the sum, which the shares of the votes need anyway, and cannot overflow.
    weights = torch.softmax(nearest.values / temperature, dim=1)  # (N, neighbours)
    return (weights[:, :, None] * votes[nearest.indices]).sum(dim=1)
