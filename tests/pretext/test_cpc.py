import math

import pytest
import torch
from lightly.utils import dist
from ranks import WORLD, on_two_ranks
from tiny import SIDE, Means, views, vit

from drgrade.errors import ConfigError
from drgrade.pretext.cpc import CPC
from drgrade.pretext.patches import Patches


def overlapping(size=SIDE, grid=5, **options):
    return Patches(size, grid, -0.4, **options)


def still(size=SIDE, grid=5, **options):
    return Patches(size, grid, -0.4, 0.0, **options)


def naive(pretext, encoder, images):
    """Compute loss and scores prediction by prediction."""
    grid, skip = pretext.patches.grid, pretext.skip
    codes = [
        pretext.project(encoder(pretext.patches(image[None])[0])).view(grid, grid, -1) for image in images
    ]
    candidates = [
        (b, row, column)
        for b in range(len(images))
        for row in range(skip + 1, grid)
        for column in range(grid)
    ]
    total = count = right = within = 0.0
    for b, code in enumerate(codes):
        context = pretext.context(code.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        for k in range(skip + 1, grid):
            for row in range(grid - k):
                for column in range(grid):
                    predicted = pretext.predict[str(k)](context[row, column])
                    scores = torch.stack([codes[i][y, x] @ predicted for i, y, x in candidates])
                    scores = scores / math.sqrt(len(predicted))
                    place = candidates.index((b, row + k, column))
                    total -= scores.log_softmax(0)[place].item()
                    right += int(scores.argmax()) == place
                    own = [n for n, (i, _, _) in enumerate(candidates) if i == b]
                    within += own[int(scores[own].argmax())] == place
                    count += 1
    return total / count, right / count, within / count


@pytest.mark.parametrize(("grid", "skip"), [(5, 1), (4, 1), (5, 2)])
def test_the_loss_equals_a_naive_loop_over_predictions(grid, skip):
    torch.manual_seed(0)
    encoder = Means()
    pretext = CPC(encoder, still(grid=grid, level=False, normalise=False), skip, code=7, layers=2)
    (images,) = views(batch=3)
    loss, scores = pretext(encoder, [images])
    with torch.no_grad():
        expected = naive(pretext, encoder, images)
    found = (loss.item(), scores["accuracy"].item(), scores["accuracy_within"].item())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_context_depends_on_no_row_below(layers):
    torch.manual_seed(0)
    pretext = CPC(Means(), still(), code=6, layers=layers)
    codes = torch.randn(1, 6, 5, 5, requires_grad=True)
    for row in range(5):
        (gradient,) = torch.autograd.grad(pretext.context(codes)[0, :, row, 2].sum(), codes)
        seen = gradient[0].abs().sum(dim=(0, 2)) > 0
        assert seen.tolist() == [row - layers <= above <= row for above in range(5)]


def test_predicted_patches_share_no_pixel_with_their_context():
    pretext = CPC(Means(), overlapping(96))
    patches = pretext.patches
    assert patches.smallest_gap(1) < 0  # neighbours overlap
    corners = patches.corners(300, torch.device("cpu")).view(300, 5, 5, 2)[..., 0]
    for row in range(5 - 1 - pretext.skip):
        lowest = corners[:, : row + 1].amax() + patches.cut
        assert corners[:, row + pretext.skip + 1 :].amin() >= lowest


def test_identical_codes_give_the_loss_of_chance():
    encoder = Means()
    pretext = CPC(encoder, still(), code=6)
    loss, _ = pretext(encoder, [torch.ones(4, 3, SIDE, SIDE)])
    assert loss.item() == pytest.approx(math.log(4 * 3 * 5), rel=1e-5)


def batch_results(images):
    """Return the loss and the gradients of a deterministic pretext, on an encoder without batch
    normalisation."""
    torch.manual_seed(0)
    encoder = vit()
    pretext = CPC(encoder, still(), code=8)
    loss, scores = pretext(encoder, [images])
    loss.backward()
    parameters = {**dict(encoder.named_parameters(prefix="encoder")), **dict(pretext.named_parameters())}
    return {
        "loss": loss.detach(),
        **{f"score {name}": score for name, score in scores.items()},
        **{name: parameter.grad for name, parameter in parameters.items()},
    }


def rank_results(rank, images):
    """Return batch_results for a rank's half of the photographs, and losses of 2 or 1 validation batches."""
    trained = batch_results(images.chunk(WORLD)[rank])
    encoder = Means()
    pretext = CPC(encoder, still(), code=8).eval()
    with torch.no_grad():
        validated = [pretext(encoder, [share])[0] for share in images[: 3 - rank].split(2)]
    return {"trained": trained, "validated": validated}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(rank_results, views(batch=4)[0])


def test_two_processes_equal_one_with_the_joined_batch(ranks):
    (images,) = views(batch=4)
    expected, found = batch_results(images), [rank["trained"] for rank in ranks]
    for name, value in expected.items():
        # DistributedDataParallel averages the gradients.
        mean = torch.stack([each[name] for each in found]).mean(dim=0)
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=name)
    alone = batch_results(images[:2])
    assert found[0]["loss"] > alone["loss"]  # negatives of the other process are included


def test_processes_do_not_wait_for_each_other_in_validation(ranks):
    assert [len(rank["validated"]) for rank in ranks] == [2, 1]


def test_gathered_rows_are_contiguous(monkeypatch):
    """NCCL rejects others ("Tensors must be contiguous"); gloo, which the tests use, accepts them."""
    sent = []

    def gather(rows):
        sent.append(rows)
        return rows, rows

    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    monkeypatch.setattr(dist, "gather", gather)
    CPC(Means(), still(), code=8)(Means(), views())
    assert [rows.is_contiguous() for rows in sent] == [True]


def test_logits_are_float32_under_mixed_precision(monkeypatch):
    compared = []

    def cross_entropy(logits, right):
        compared.append(logits.dtype)
        return logits.float().mean()

    monkeypatch.setattr("drgrade.pretext.cpc.functional.cross_entropy", cross_entropy)
    with torch.autocast("cpu", torch.bfloat16):
        CPC(Means(), still(), code=8)(Means(), views())
    assert compared == [torch.float32]


@pytest.mark.parametrize("setting", [{"skip": -1}, {"skip": 4}, {"code": 0}, {"layers": 0}])
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"pretext.head.{name}={value}"):
        CPC(Means(), overlapping(), **setting)


def test_overlapping_rows_are_refused():
    with pytest.raises(ConfigError, match=r"skip=0: patches 1 rows apart may overlap"):
        CPC(Means(), overlapping(), skip=0)
