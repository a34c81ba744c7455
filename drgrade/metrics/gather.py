"""Rows that several processes have computed, brought together."""

import torch
from torch import Tensor, distributed
from torchmetrics.utilities.distributed import gather_all_tensors


def gather_rows(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather what every process has; all must call.

    Distributed samplers repeat photographs to give every process the same number; the repeats are dropped.

    Args:
        index: (N,) int64, where in the data set each row stands.
        rows: (N, D).

    Returns:
        (M,) and (M, D) on the CPU, each index once, rising; the same on every process.
    """
    if distributed.is_available() and distributed.is_initialized():
        index, rows = (torch.cat(gather_all_tensors(each)) for each in (index, rows))
    index, order = torch.sort(index.cpu(), stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return index[first], rows.cpu()[order[first]]
