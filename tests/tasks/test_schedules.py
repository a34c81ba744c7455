"""Learning-rate schedules."""

import math

import pytest
import torch

from drgrade.tasks import constant, cosine


def rates(schedule, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_schedule_does_not_change():
    assert rates(constant, 7) == [2.0] * 7


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.05), (40, 0.25), (10, 0.0), (1, 0.05)])
def test_cosine_schedule_has_linear_warmup_and_cosine_decay(steps, warmup):
    seen = rates(lambda optimizer, total: cosine(optimizer, total, warmup=warmup, floor=0.1), steps)
    rising = max(1, round(warmup * steps)) if warmup else 0
    for step, rate in enumerate(seen):
        if step < rising:
            expected = 2.0 * (step + 1) / rising
        else:
            progress = (step - rising) / max(1, steps - rising)
            expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
        assert rate == pytest.approx(expected)
    assert max(seen) == pytest.approx(2.0)
