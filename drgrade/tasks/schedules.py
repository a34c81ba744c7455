"""Learning-rate schedules, as functions of the optimiser and the number of steps of the run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate of the published protocol: the same throughout.

    Args:
        optimizer: Whose learning rate it is.
        steps: Optimiser steps of the run (unused: a constant has no end).

    Returns:
        The schedule.
    """
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, floor: float = 0.01) -> LRScheduler:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter, ICLR 2017, without restarts).

    Args:
        optimizer: Whose learning rate it is.
        steps: Optimiser steps of the run.
        warmup: Share of the steps in which the rate rises, in [0, 1).
        floor: Rate at the end as a share of the highest.

    Returns:
        The schedule.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
