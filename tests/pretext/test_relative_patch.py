import pytest
import torch
from tiny import SIDE, Means, views

from drgrade.errors import ConfigError
from drgrade.pretext.patches import Patches
from drgrade.pretext.relative_patch import RelativePatch, cell_of


def still(size=SIDE, **options):
    return Patches(size, jitter=0.0, **options)


def test_targets_number_the_neighbours_in_reading_order():
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    places = torch.stack([y, x, y]).expand(2, -1, -1, -1) - 29.5  # relative to the centre
    encoder = Means()
    pretext = RelativePatch(encoder, still(60, level=False, normalise=False), hidden=())
    pretext(encoder, [places])
    seen = encoder.seen.view(2, 9, 3, 32, 32).mean(dim=(-2, -1))[..., :2]
    middle, others = seen[:, 0], seen[:, 1:]
    torch.testing.assert_close(middle, torch.zeros(2, 2), atol=1e-3, rtol=0)
    directions = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    assert [tuple(each) for each in others[0].sign().where(others[0].abs() > 1, 0).tolist()] == directions


def test_cells_omit_the_middle():
    assert cell_of(torch.arange(8)).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("neighbours", [1, 3, 8])
def test_the_loss_is_the_cross_entropy_of_every_pair(neighbours):
    torch.manual_seed(0)
    encoder = Means()
    pretext = RelativePatch(encoder, still(level=False, normalise=False), neighbours, hidden=(6,))
    pretext.eval()
    (images,) = views()
    loss, scores = pretext(encoder, [images])
    drawn = torch.rand((4, 8), generator=pretext.generator(images.device)).argsort(dim=1)
    total = right = 0.0
    for b, image in enumerate(images):
        patches = pretext.patches(image[None])[0]
        targets = range(8) if neighbours == 8 else drawn[b, :neighbours].tolist()
        for target in targets:
            cell = [0, 1, 2, 3, 5, 6, 7, 8][target]
            pair = torch.cat([encoder(patches[4:5]), encoder(patches[cell : cell + 1])], dim=1)
            logits = pretext.head(pair)[0]
            total -= logits.log_softmax(0)[target].item()
            right += int(logits.argmax()) == target
    assert loss.item() == pytest.approx(total / (4 * neighbours), rel=1e-5)
    assert scores["accuracy"].item() == pytest.approx(right / (4 * neighbours))


def test_neighbours_are_distinct_and_equally_frequent():
    pretext = RelativePatch(Means(), still(), neighbours=3)
    torch.manual_seed(0)
    targets = pretext.draw_targets(4000, torch.device("cpu"), None)
    assert (targets.sort(dim=1).values.diff(dim=1) > 0).all()
    counts = torch.bincount(targets.flatten(), minlength=8) / 4000
    assert counts.tolist() == pytest.approx([3 / 8] * 8, abs=0.04)


@pytest.mark.parametrize("neighbours", [0, 9])
def test_a_number_of_neighbours_out_of_range_is_refused(neighbours):
    with pytest.raises(ConfigError, match=f"neighbours={neighbours}"):
        RelativePatch(Means(), Patches(SIDE), neighbours)


def test_another_grid_is_refused():
    with pytest.raises(ConfigError, match="needs a grid of 3 x 3"):
        RelativePatch(Means(), Patches(SIDE, 4))
