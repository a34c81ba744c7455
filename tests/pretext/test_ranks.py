"""Test that teachers, centres, colour statistics and gathered rows are equal on two processes."""

import pytest
import torch
from ranks import WORLD, on_two_ranks
from tiny import DINO_SIZES, ENCODERS, SIDE, cnn, pictures, views
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drgrade.metrics.distributed import gather_rows
from drgrade.pretext.colorization import Colorization
from drgrade.pretext.dino import DINO
from drgrade.pretext.moco_v3 import MoCoV3

BATCH, STEPS = 8, 5


def moco(encoder, batch_norm):
    return MoCoV3(encoder, hidden=16, dim=8, batch_norm=batch_norm)


def dino(encoder, batch_norm):
    return DINO(encoder, 32, 0, **DINO_SIZES, batch_norm=batch_norm, freeze_last_layer=0.3)


PRETEXTS = {"moco_v3": moco, "dino": dino}


class Step(nn.Module):
    """Training step as a module, so that it can be wrapped as the trainer does."""

    def __init__(self, pretext, encoder, batch_norm, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = ENCODERS[encoder](32)
        self.pretext = PRETEXTS[pretext](self.encoder, batch_norm)

    def forward(self, seen, progress):
        self.pretext.before_step(self.encoder, progress)
        return self.pretext(self.encoder, seen)[0]

    def centre(self):
        if not isinstance(self.pretext, DINO):
            return {}
        loss = self.pretext.loss
        return {"centre": loss.center.clone(), "pending": loss.pending.clone()}


def one_step(pretext, rank, world):
    """Return loss and gradients of a joined batch, or of a part of it."""
    step = Step(pretext, "vit", batch_norm=False, seed=0)
    wrapped = DistributedDataParallel(step, find_unused_parameters=True) if world > 1 else step
    loss = wrapped(
        [view[rank * BATCH // world : (rank + 1) * BATCH // world] for view in views(2, BATCH, 32)], 0.5
    )
    loss.backward()
    step.pretext.before_step(step.encoder, 0.6)  # updates the centre
    gradients = {name: each.grad for name, each in step.named_parameters() if each.grad is not None}
    return {"loss": loss.item(), "gradients": gradients, **step.centre()}


def several_steps(pretext, encoder, rank):
    """Return the weights after some steps from different initial weights, which DDP makes equal."""
    step = Step(pretext, encoder, batch_norm=True, seed=rank)
    start = {name: each.detach().clone() for name, each in step.named_parameters()}
    wrapped = DistributedDataParallel(step, find_unused_parameters=True)
    optimizer = torch.optim.AdamW([each for each in step.parameters() if each.requires_grad], lr=1e-2)
    for number in range(STEPS):
        loss = wrapped(views(2, 4, 32, seed=10 * number + rank), number / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"start": start, "weights": dict(step.named_parameters()), **step.centre()}


def colours(rank, world):
    """Return the distribution of colours after three batches, split over the processes."""
    torch.manual_seed(0)
    encoder = cnn()
    pretext = Colorization(encoder, SIDE, width=16)
    for seed in range(3):
        pretext(encoder, [pictures(4, seed=seed).chunk(world)[rank]])
    return pretext.histogram


def shares(rank):
    """Distribute seven rows to two processes, one of them to both."""
    index = torch.tensor([0, 2, 4, 6] if rank == 0 else [1, 3, 5, 6])
    return gather_rows(index, index[:, None] * torch.tensor([1.0, 10.0]))


def rank_results(rank):
    found = {f"{name} one": one_step(name, rank, WORLD) for name in PRETEXTS}
    found |= {"colours": colours(rank, WORLD), "rows": list(shares(rank))}
    for name in PRETEXTS:
        found |= {f"{name} {encoder}": several_steps(name, encoder, rank) for encoder in ("vit", "cnn")}
    return found


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(rank_results)


@pytest.mark.parametrize("name", PRETEXTS)
def test_two_processes_equal_one_with_the_joined_batch(ranks, name):
    alone = one_step(name, 0, 1)
    joined = [each[f"{name} one"] for each in ranks]
    assert sum(each["loss"] for each in joined) / WORLD == pytest.approx(alone["loss"], rel=1e-5)
    for each in joined:
        assert each["gradients"].keys() == alone["gradients"].keys()
        for parameter, expected in alone["gradients"].items():
            found = each["gradients"][parameter]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4, msg=parameter)
        for part in ("centre", "pending"):
            if part in alone:
                torch.testing.assert_close(each[part], alone[part])
    if name == "dino":
        assert alone["centre"].abs().max() > 0


@pytest.mark.parametrize("encoder", ["vit", "cnn"])
@pytest.mark.parametrize("name", PRETEXTS)
def test_teacher_student_and_centre_are_identical_on_two_processes(ranks, name, encoder):
    first, second = (each[f"{name} {encoder}"] for each in ranks)
    assert any(not torch.equal(first["start"][n], second["start"][n]) for n in first["start"])
    teachers = [n for n in first["weights"] if n.startswith("pretext.teacher.")]
    assert teachers
    assert first["weights"].keys() == second["weights"].keys()
    for parameter, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][parameter]), parameter
    assert not all(torch.equal(first["weights"][n], first["start"][n]) for n in teachers)  # they have changed
    for part in ("centre", "pending"):
        if part in first:
            assert torch.equal(first[part], second[part])
            assert first[part].abs().max() > 0


def test_the_colour_distribution_counts_all_processes(ranks):
    first, second = (each["colours"] for each in ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, colours(0, 1))
    assert first.sum() > 0


def test_gathered_rows_are_unique_on_all_processes(ranks):
    for index, rows in (each["rows"] for each in ranks):
        assert index.tolist() == list(range(7))
        assert rows.tolist() == [[float(i), 10.0 * i] for i in range(7)]


def test_one_process_sorts_rows_and_drops_repeats():
    found, rows = gather_rows(torch.tensor([3, 1, 3]), torch.tensor([[3.0], [1.0], [3.0]]))
    assert found.tolist() == [1, 3]
    assert rows.tolist() == [[1.0], [3.0]]
