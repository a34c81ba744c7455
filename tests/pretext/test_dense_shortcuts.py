"""Test that position and silhouette do not predict the target maps of dense pretexts.

Every test has a control: with the rim and corners of the prepared photograph, the position alone predicts
most of the map. Shares are shares of the variance of the maps of held-out photographs.
"""

import numpy as np
import pytest
import torch
from dense_shortcuts import CLUES, MAPS, bin_accuracies, configured, explained, never_recorded
from rotation_shortcuts import views_of, whole_crop

DATA = ("demo", "idrid")
LITTLE, MUCH = 0.12, 0.5


@pytest.fixture(scope="module")
def seen(stores):
    made = {}

    def of(name, pretext):
        if (name, pretext) not in made:
            view = configured(pretext) if pretext else whole_crop
            made[name, pretext] = views_of(stores(name), view, [1])[:, 0]
        return made[name, pretext]

    return of


@pytest.mark.parametrize("clue", CLUES)
@pytest.mark.parametrize("pretext", MAPS)
@pytest.mark.parametrize("name", DATA)
def test_position_and_silhouette_explain_little_of_the_map_of_a_view(seen, name, pretext, clue):
    views = seen(name, pretext)
    share = explained(CLUES[clue](views), MAPS[pretext](views))
    assert share.share + 2 * share.error < LITTLE


@pytest.mark.parametrize("pretext", MAPS)
@pytest.mark.parametrize("name", DATA)
def test_position_and_silhouette_explain_the_map_if_the_rim_is_visible(seen, name, pretext):
    crops = seen(name, None)
    maps = MAPS[pretext](crops)
    by_position, by_silhouette = (explained(clue(crops), maps) for clue in CLUES.values())
    assert by_position.share - 2 * by_position.error > MUCH
    assert by_silhouette.share > by_position.share


@pytest.mark.parametrize("name", DATA)
def test_position_predicts_the_colour_of_a_crop_but_not_of_a_view(seen, name):
    always, placed = bin_accuracies(MAPS["colorization"](seen(name, "colorization")))
    assert placed < always + 0.02
    always, placed = bin_accuracies(MAPS["colorization"](seen(name, None)))
    assert placed > always + 0.1


@pytest.mark.parametrize("name", DATA)
def test_holes_lie_inside_the_recorded_area(stores, name):
    assert never_recorded(stores(name), configured("inpainting"), [1, 2], 64) == 0
    assert never_recorded(stores(name), whole_crop, [1], 64) > 0.05


def test_a_function_of_the_clue_is_explained_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    clues = torch.randn(200, 5, generator=generator)
    weights = torch.randn(5, 2 * 3 * 3, generator=generator)
    assert explained(clues, (clues @ weights).view(200, 2, 3, 3)).share > 0.95
    noise = torch.randn(200, 2, 3, 3, generator=generator)
    assert abs(explained(clues, noise).share) < 0.1
    fixed = torch.randn(1, 2, 3, 3, generator=generator)
    assert explained(torch.zeros(200, 1), fixed + 0.01 * noise).share > 0.99


def test_bin_accuracy_equals_a_naive_loop():
    left, right = np.array([40.0, 30.0]), np.array([0.0, 0.0])
    maps = np.zeros((40, 2, 1, 4), np.float32)
    maps[..., :1], maps[..., 1:] = left[None, :, None, None], right[None, :, None, None]
    always, placed = bin_accuracies(torch.from_numpy(maps))
    assert (always, placed) == (0.75, 1.0)
