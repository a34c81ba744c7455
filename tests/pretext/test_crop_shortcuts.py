"""Test that silhouette and mean colour do not identify the partner of a view.

Every test has a control: they identify the partner of views without the protection. Among 64 photographs,
chance is 1/64.
"""

import numpy as np
import pytest
from crop_shortcuts import (
    BATCH,
    by_best_metric,
    colours,
    configured,
    matched,
    mean_colour,
    pairs_of,
    plain_squares,
    silhouette,
    whole_photographs,
)

CHANCE = 1 / BATCH
DATA = ("demo", "idrid")
PRETEXTS = ("simclr", "exemplar")


@pytest.fixture(scope="module")
def pairs(stores):
    made = {}
    kinds = {"squares": plain_squares, "whole": lambda: whole_photographs}

    def of(name, kind):
        if (name, kind) not in made:
            views = kinds[kind]() if kind in kinds else configured(kind)
            made[name, kind] = pairs_of(stores(name), views)
        return made[name, kind]

    return of


def marked(store):
    """Return 128 photographs of a store, white inside the recorded area and black outside."""
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y) / 32
    for clear in store.manifest["clear"][:128]:
        image = np.where(radius <= clear, np.uint8(255), np.uint8(0))
        yield np.repeat(image[..., None], 3, axis=2), float(clear)


@pytest.mark.parametrize("pretext", PRETEXTS)
@pytest.mark.parametrize("name", DATA)
def test_all_views_have_the_same_silhouette(stores, name, pretext):
    views = configured(pretext)
    marked_views = [views(image, clear, seed) for seed, (image, clear) in enumerate(marked(stores(name)))]
    outlines = silhouette(np.stack(marked_views))
    assert np.ptp(outlines) == 0
    assert matched(outlines, draws=10).share == pytest.approx(CHANCE)


@pytest.mark.parametrize("pretext", PRETEXTS)
@pytest.mark.parametrize("name", DATA)
def test_dark_pixels_of_views_do_not_identify_the_partner(pairs, name, pretext):
    score = matched(silhouette(pairs(name, pretext)))
    assert score.share - 3 * score.error <= CHANCE + 1e-9


@pytest.mark.parametrize("name", DATA)
def test_the_silhouette_of_a_whole_photograph_identifies_it(pairs, name):
    score = matched(silhouette(pairs(name, "whole")))
    assert score.share - 3 * score.error > CHANCE


@pytest.mark.parametrize("pretext", PRETEXTS)
@pytest.mark.parametrize("name", DATA)
def test_mean_colour_identifies_the_partner_only_without_jitter(pairs, name, pretext):
    plain = matched(mean_colour(pairs(name, "squares")))
    jittered = matched(mean_colour(pairs(name, pretext)))
    assert plain.share - 3 * plain.error > 0.3
    assert jittered.share + 3 * jittered.error < 0.1


@pytest.mark.parametrize(("pretext", "at_most"), [("simclr", 0.15), ("exemplar", 0.2)])
@pytest.mark.parametrize("name", DATA)
def test_mean_and_spread_of_colours_identify_the_partner_only_without_jitter(pairs, name, pretext, at_most):
    plain = by_best_metric(colours(pairs(name, "squares")))
    jittered = by_best_metric(colours(pairs(name, pretext)))
    assert plain.share - 3 * plain.error > 0.6
    assert jittered.share < at_most


# --- the measurement


@pytest.mark.parametrize("batch", [2, 10])
def test_equal_partners_are_matched_and_identical_views_by_chance_only(batch):
    alone = np.random.default_rng(0).normal(size=(20, 1, 3)).repeat(2, axis=1)
    assert matched(alone, batch, draws=50) == (1, 0)
    assert matched(np.ones((20, 2, 3)), batch, draws=50).share == pytest.approx(1 / batch)


def test_independent_views_are_matched_by_chance():
    score = matched(np.random.default_rng(0).normal(size=(400, 2, 3)))
    assert score.share == pytest.approx(CHANCE, abs=4 * score.error)


def test_the_best_metric_uses_the_unchanged_dimensions():
    rng = np.random.default_rng(0)
    kept, jittered = rng.normal(size=(300, 1, 1)).repeat(2, axis=1), 30 * rng.normal(size=(300, 2, 2))
    mixed = np.concatenate([kept + jittered[..., :1], jittered], axis=-1)  # kept is their difference
    assert matched(mixed).share < 0.1
    assert by_best_metric(mixed).share > 0.9
