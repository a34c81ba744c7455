from functools import partial
from itertools import pairwise

import pytest
import torch
from ranks import WORLD, on_two_ranks
from tiny import cnn, views, vit
from torch import nn

from drgrade.errors import ConfigError
from drgrade.pretext.contrastive import embed, full_precision, gather_rows, projection_head
from drgrade.pretext.exemplar import Exemplar
from drgrade.pretext.simclr import SimCLR


@pytest.mark.parametrize("widths", [(8, 4), (8, 16, 4), (8, 16, 32, 4)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_projection_head_has_linear_relu_and_batch_norm_layers(widths, batch_norm):
    kinds = []
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        kinds += [(nn.Linear, before, after)]
        kinds += [(nn.BatchNorm1d, after)] if batch_norm else []
        kinds += [] if last else [(nn.ReLU,)]
    found = []
    for layer in projection_head(widths, batch_norm).layers:
        sizes = {
            nn.Linear: lambda layer: (layer.in_features, layer.out_features),
            nn.BatchNorm1d: lambda layer: (layer.num_features,),
            nn.ReLU: lambda layer: (),
        }
        found.append((type(layer), *sizes[type(layer)](layer)))
    assert found == kinds


@pytest.mark.parametrize("widths", [(8, 0), (8, -1, 4)])
def test_widths_below_one_are_refused(widths):
    with pytest.raises(ConfigError, match=r"pretext\.head.*at least 1"):
        projection_head(widths)


def test_views_of_one_size_are_embedded_together_in_order():
    encoder, head, calls = vit(), projection_head([64, 8], batch_norm=False), []
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    large, small = views(2, batch=3), views(2, batch=3, side=32, seed=1)
    found = embed(encoder, head, [*large, *small])
    assert calls == [(6, 3, 64, 64), (6, 3, 32, 32)]
    for embedding, view in zip(found, [*large, *small], strict=True):
        torch.testing.assert_close(embedding, head(encoder(view)))


def test_views_of_one_size_share_batch_statistics():
    encoder, seen = cnn(), views(2, batch=3)
    head = projection_head([encoder.num_features, 8])
    found = torch.cat(embed(encoder, head, seen))
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    assert embed(encoder, head, seen[:1])[0].mean(dim=0).abs().max() < 1e-5  # normalised on its own
    assert found[:3].mean(dim=0).abs().max() > 1e-3


def test_a_single_process_gathers_its_own_rows():
    rows = torch.randn(3, 2)
    everyone, start = gather_rows(rows)
    assert everyone is rows
    assert start == 0


def _pretexts():
    """Return an encoder without batch statistics and all pretexts that gather, each built with one seed."""
    made = {}
    for name in ("simclr", "exemplar"):
        torch.manual_seed(0)
        encoder = vit(32)
        kind = partial(SimCLR, temperature=0.2, batch_norm=False) if name == "simclr" else Exemplar
        made[name] = (encoder, kind(encoder))
    return made


def _learnt(encoder, pretext, seen):
    loss, scores = pretext(encoder, seen)
    loss.backward()
    gradients = [p.grad for module in (encoder, pretext) for p in module.parameters()]
    return {"loss": loss.detach(), "scores": scores, "gradients": gradients}


def _of_rank(rank, seen):
    """Return the photographs of a process as the sampler distributes them: every second one."""
    return [view[rank::WORLD] for view in seen]


def _uneven(rank, seen):
    """Distribute three photographs to one process and two to the other."""
    return [view[:3] if rank == 0 else view[3:5] for view in seen]


def _on_a_rank(rank, rows, seen):
    own = rows[2 * rank : 2 * rank + 2].clone().requires_grad_()
    everyone, start = gather_rows(own)
    (everyone * torch.arange(8.0).view(4, 2) * (1 + rank)).sum().backward()
    found = {"rows": {"everyone": everyone.detach(), "start": start, "gradient": own.grad}}
    for name, (encoder, pretext) in _pretexts().items():
        found[name] = _learnt(encoder, pretext, _of_rank(rank, seen))
        pretext.eval()
        for _ in range(2 - rank):  # one more batch on the first process
            found[f"{name} in validation"] = pretext(encoder, _uneven(rank, seen))[0].detach()
    return found


ROWS, SEEN = torch.randn(4, 2), views(2, batch=6, side=32)


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(_on_a_rank, ROWS, SEEN)


def test_gathered_rows_receive_the_gradients_of_all_processes(ranks):
    for rank, found in enumerate(ranks):
        assert torch.equal(found["rows"]["everyone"], ROWS)
        assert found["rows"]["start"] == 2 * rank
        expected = 3 * torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2]  # once from rank 0, twice from 1
        assert torch.equal(found["rows"]["gradient"], expected)


@pytest.mark.parametrize("name", ["simclr", "exemplar"])
def test_two_processes_equal_one_with_the_joined_batch(ranks, name):
    joined = _learnt(*_pretexts()[name], SEEN)
    mean = torch.stack([found[name]["loss"] for found in ranks]).mean()
    torch.testing.assert_close(mean, joined["loss"], rtol=1e-5, atol=1e-6)
    for score, value in joined["scores"].items():
        mean = torch.stack([found[name]["scores"][score] for found in ranks]).mean()
        torch.testing.assert_close(mean, value)
    largest = max(each.abs().max() for each in joined["gradients"])
    assert largest > 1e-4
    for one, *two in zip(joined["gradients"], *(found[name]["gradients"] for found in ranks), strict=True):
        # DDP averages the gradients of all processes.
        torch.testing.assert_close(torch.stack(two).mean(dim=0), one, rtol=1e-3, atol=1e-5 * float(largest))


@pytest.mark.parametrize("name", ["simclr", "exemplar"])
def test_photographs_of_other_processes_are_negatives(ranks, name):
    for rank, found in enumerate(ranks):
        alone = _learnt(*_pretexts()[name], _of_rank(rank, SEEN))
        assert (alone["loss"] - found[name]["loss"]).abs() > 1e-4


@pytest.mark.parametrize("name", ["simclr", "exemplar"])
def test_processes_do_not_wait_for_each_other_in_validation(ranks, name):
    encoder, pretext = _pretexts()[name]
    pretext.eval()
    for rank, found in enumerate(ranks):
        loss = pretext(encoder, _uneven(rank, SEEN))[0].detach()
        torch.testing.assert_close(found[f"{name} in validation"], loss)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_rows_are_compared_in_full_precision(given, expected):
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with full_precision(torch.ones(2, 2, dtype=given)) as (rows,):
            assert rows.dtype == (rows @ rows.T).dtype == expected
