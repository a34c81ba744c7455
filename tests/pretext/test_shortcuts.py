"""Test that silhouette, rim and the area outside the mask do not reveal the rotation.

Every test has a control: on an unprotected crop the same network predicts the rotation from the same part.
Accuracies are those of held-out photographs; chance is 25 %.
"""

from functools import partial

import numpy as np
import pytest
from common import halves
from rotation_shortcuts import (
    four_colours,
    hard_mask,
    outside,
    ring,
    silhouette,
    tells,
    turns_alike,
    views_of,
    whole,
    whole_crop,
)

from drgrade.data.transforms import FILL, MaskedView, circular_mask

CHANCE, TOLERANCE = 0.25, 0.05
DATA = ("demo", "idrid")
HIDDEN = {
    "silhouette": silhouette,
    "outside": outside,
    "rim of 5 %": partial(ring, width=0.05),
    "rim of 10 %": partial(ring, width=0.1),
}


@pytest.fixture(scope="module")
def views(stores):
    made = {}

    def of(name, view, kind):
        if (name, kind) not in made:
            made[name, kind] = views_of(stores(name), view, [1, 2, 3])
        return made[name, kind]

    return of


def accuracy(clue, epochs, per_photograph=2):
    """Train on the views of half the photographs; return the accuracy on the last view of the others."""
    train, test = halves(len(clue))
    score = tells(clue[train, :per_photograph], clue[test, -1], epochs)
    assert 4 * len(test) >= 300
    return score


@pytest.mark.parametrize("part", HIDDEN)
@pytest.mark.parametrize("name", DATA)
def test_protected_clues_do_not_reveal_the_rotation(views, name, part):
    """Equal turns cannot be told apart: any network predicts exactly one of the four correctly."""
    assert turns_alike(HIDDEN[part](views(name, MaskedView(), "views")))


@pytest.mark.parametrize("part", ["rim of 5 %", "rim of 10 %"])
@pytest.mark.parametrize("name", DATA)
def test_the_rim_of_the_widest_views_does_not_reveal_the_rotation(stores, name, part):
    assert turns_alike(HIDDEN[part](views_of(stores(name), MaskedView(), [None])))


@pytest.mark.parametrize(
    ("name", "part", "view"),
    [
        ("demo", "silhouette", whole_crop),
        ("demo", "outside", whole_crop),
        ("demo", "rim of 10 %", hard_mask),
        ("idrid", "silhouette", whole_crop),
        ("idrid", "outside", whole_crop),
        ("idrid", "rim of 5 %", hard_mask),
    ],
)
def test_unprotected_clues_reveal_the_rotation(views, name, part, view):
    clue = HIDDEN[part](views(name, view, view.__name__))
    score = accuracy(clue, epochs=6, per_photograph=2 if view is hard_mask else 1)
    assert score.share - 3 * score.error > CHANCE + TOLERANCE


@pytest.mark.parametrize(("name", "at_least"), [("demo", 0.45), ("idrid", 0.7)])
def test_the_whole_view_reveals_the_rotation(views, name, at_least):
    assert accuracy(whole(views(name, MaskedView(), "views")), epochs=6).share > at_least


def test_levelling_removes_part_of_the_clue_of_light(views):
    plain = accuracy(four_colours(views("idrid", MaskedView(level=False), "plain")), 6, per_photograph=1)
    level = accuracy(four_colours(views("idrid", MaskedView(), "views")), 6, per_photograph=1)
    assert plain.share - level.share > 3 * np.hypot(plain.error, level.error)


@pytest.mark.parametrize("name", DATA)
def test_all_views_have_one_silhouette_without_padding(stores, name):
    store = stores(name)
    clear = store.manifest["clear"].to_numpy()
    mask, core = circular_mask(64), circular_mask(64, 0.9 * 0.92)
    for seed in (None, 4):
        for i, image in enumerate(store.images):
            view = MaskedView(level=False)(np.array(image), clear[i], seed)
            np.testing.assert_array_equal((view != FILL).any(axis=-1), mask)
            # Pixels under the mask are black only where the photograph is black, inside the recorded area.
            black = (view.max(axis=-1) < 8) & mask
            recorded = np.array(image)[circular_mask(64, min(0.92, 0.9 * clear[i]))]
            assert not black.any() or (recorded.max(axis=-1) < 8).any()
            assert (view[mask & ~core].max(axis=-1) >= 8).all()


@pytest.mark.parametrize("name", DATA)
def test_marked_padding_is_never_visible(stores, name):
    store = stores(name)
    y, x = np.mgrid[:64, :64] - 31.5
    for image, clear in zip(store.images[:60], store.manifest["clear"][:60], strict=True):
        marked = np.where((np.hypot(x, y) / 32 <= clear)[..., None], image // 2, np.uint8(255))
        for seed in (None, 1, 2):
            assert MaskedView(level=False)(marked, clear, seed)[circular_mask(64)].max() <= 127
