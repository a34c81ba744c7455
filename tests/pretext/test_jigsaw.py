import numpy as np
import pytest
import torch
from tiny import SIDE, Means, views

from drgrade.errors import ConfigError
from drgrade.pretext.jigsaw import Jigsaw, distant_permutations
from drgrade.pretext.patches import Patches


def plain(size=SIDE):
    return Patches(size, jitter=0.0, level=False, normalise=False)


def distances(chosen):
    return np.array([(a != b).sum() for i, a in enumerate(chosen) for b in chosen[:i]])


@pytest.mark.parametrize("count", [2, 9, 40, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_permutations_are_valid_and_distinct(count, seed):
    chosen = distant_permutations(count, seed)
    assert chosen.shape == (count, 9)
    assert (np.sort(chosen, axis=1) == np.arange(9)).all()
    assert len(np.unique(chosen, axis=0)) == count


@pytest.mark.parametrize("seed", range(3))
def test_nine_permutations_differ_everywhere_and_a_hundred_in_six_places_at_least(seed):
    assert distances(distant_permutations(9, seed)).min() == 9
    assert distances(distant_permutations(100, seed)).min() == 6


@pytest.mark.parametrize("count", [20, 100])
def test_permutations_are_further_apart_than_random_ones(count):
    chosen = distances(distant_permutations(count))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        drawn = distances([rng.permutation(9) for _ in range(count)])
        assert chosen.min() > drawn.min() + 1
        assert chosen.mean() > drawn.mean()


def test_each_permutation_maximises_the_smallest_distance():
    chosen = distant_permutations(40)
    rng = np.random.default_rng(0)
    others = np.array([rng.permutation(9) for _ in range(3000)])
    for n in range(1, 40):
        nearest = (others[:, None] != chosen[None, :n]).sum(axis=2).min(axis=1)
        assert (chosen[n] != chosen[:n]).sum(axis=1).min() >= nearest.max()


def test_permutations_depend_on_the_seed_only():
    np.testing.assert_array_equal(distant_permutations(30, 4), distant_permutations(30, 4))
    assert (distant_permutations(30, 4) != distant_permutations(30, 5)).any()


def test_position_j_shows_patch_p_of_j():
    encoder = Means()
    pretext = Jigsaw(encoder, plain(), permutations=20, hidden=(4,)).eval()
    (images,) = views()
    pretext(encoder, [images])
    targets = torch.randint(20, (4,), generator=pretext.generator(images.device))
    for image, target, seen in zip(images, targets, encoder.seen.view(4, 9, 3, 32, 32), strict=True):
        patches = pretext.patches(image[None])[0]
        for j, piece in enumerate(distant_permutations(20)[target]):
            assert torch.equal(seen[j], patches[piece])


def test_the_loss_is_the_cross_entropy_of_every_puzzle():
    torch.manual_seed(0)
    encoder = Means()
    pretext = Jigsaw(encoder, plain(), permutations=3, hidden=(6,)).eval()
    (images,) = views(batch=6)
    loss, scores = pretext(encoder, [images])
    targets = torch.randint(3, (6,), generator=pretext.generator(images.device)).tolist()
    total = right = 0.0
    for image, target in zip(images, targets, strict=True):
        patches = pretext.patches(image[None])[0]
        features = [encoder(patches[int(piece)][None])[0] for piece in distant_permutations(3)[target]]
        logits = pretext.head(torch.cat(features)[None])[0]
        total -= logits.log_softmax(0)[target].item()
        right += int(logits.argmax()) == target
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)
    assert scores["accuracy"].item() == pytest.approx(right / 6)


def test_a_checkpoint_restores_the_permutations():
    made = [Jigsaw(Means(), plain(), permutations=5, permutation_seed=seed, hidden=(4,)) for seed in (0, 1)]
    assert not torch.equal(made[0].table, made[1].table)
    made[1].load_state_dict(made[0].state_dict())
    assert torch.equal(made[0].table, made[1].table)


@pytest.mark.parametrize("count", [1, 1001])
def test_a_number_of_permutations_out_of_range_is_refused(count):
    with pytest.raises(ConfigError, match=f"permutations={count}"):
        Jigsaw(Means(), Patches(SIDE), permutations=count)


def test_another_grid_is_refused():
    with pytest.raises(ConfigError, match="needs a grid of 3 x 3"):
        Jigsaw(Means(), Patches(SIDE, 4))
