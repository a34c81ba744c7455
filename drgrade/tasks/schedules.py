"""Learning-rate schedules, created from the optimiser and the number of optimiser steps of the run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Create a constant schedule, as in the published protocol; ``steps`` is not used."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, floor: float = 0.01) -> LRScheduler:
    """Create a linear warm-up followed by cosine annealing (Loshchilov and Hutter, ICLR 2017, no restarts).

    Args:
        optimizer: The optimiser.
        steps: Optimiser steps of the run.
        warmup: Fraction of the steps for the warm-up, in [0, 1).
        floor: Final learning rate as a fraction of the highest.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
