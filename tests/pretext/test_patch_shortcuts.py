"""Test that colour, brightness and continuing edges do not reveal the position of a patch.

Every test has a control: without protection the same network or solver finds the position. Accuracies are
those of held-out photographs.
"""

import pytest
from common import halves
from patch_shortcuts import GROUP, MATCHING, PARTS, PROTECTIONS, TASKS, hides, matched, solves, views_of

TOLERANCE = 0.05
DATA = ("demo", "idrid")
PRETEXTS = tuple(TASKS)
UNPROTECTED, PROTECTED = PROTECTIONS["square"], PROTECTIONS["all"]


@pytest.fixture(scope="module")
def views(stores):
    made = {}

    def of(name, protection):
        if (name, protection.view) not in made:
            made[name, protection.view] = views_of(stores(name), protection.view, [1, 2])
        return made[name, protection.view]

    return of


def score(views, pretext, protection, part, epochs=4):
    train, test = halves(len(views))
    found = solves(TASKS[pretext], protection, PARTS[part], views[train, :1], views[test, -1], epochs)
    return found[0]


@pytest.mark.parametrize("pretext", PRETEXTS)
@pytest.mark.parametrize("name", DATA)
def test_edges_identify_neighbours_only_without_protection(views, name, pretext):
    matching = MATCHING[pretext]
    touching, apart = matching.chance
    count = 200 if pretext == "cpc" else None  # which has many patches per photograph
    bare = matched(pretext, UNPROTECTED, views(name, UNPROTECTED)[:count, -1])
    protected = matched(pretext, PROTECTED, views(name, PROTECTED)[:count, -1])
    assert bare.share > touching + 0.6
    assert protected.share == pytest.approx(apart, abs=TOLERANCE)


@pytest.mark.parametrize("name", DATA)
def test_gap_and_jitter_alone_do_not_protect_edges(views, name):
    """Brightness is continuous across a gap, so each patch is normalised and levelled separately."""
    apart = PROTECTIONS["gap, jitter"]
    assert matched("jigsaw", apart, views(name, apart)[:, -1]).share > 0.3


@pytest.mark.parametrize("pretext", PRETEXTS)
@pytest.mark.parametrize("name", DATA)
def test_mean_colours_of_patches_are_equal(views, name, pretext):
    assert hides(TASKS[pretext], PROTECTED, PARTS["mean colour"], views(name, PROTECTED)[:64])
    assert not hides(TASKS[pretext], UNPROTECTED, PARTS["mean colour"], views(name, UNPROTECTED)[:64])


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_mean_colour_reveals_the_position_without_protection(views, pretext):
    crop = PROTECTIONS["crop"]
    result = score(views("idrid", crop), pretext, crop, "mean colour")
    assert result.share - 3 * result.error > TASKS[pretext].chance[0] + TOLERANCE


@pytest.mark.parametrize("name", DATA)
def test_levelling_removes_most_of_the_slope_of_light(views, name):
    sloped, level = (
        score(
            views(name, PROTECTIONS[kind]), "relative_patch", PROTECTIONS[kind], "colours of the 4 quarters"
        )
        for kind in ("normalised", "levelled")
    )
    chance = TASKS["relative_patch"].chance[0]
    assert sloped.share - 3 * sloped.error > chance + TOLERANCE
    assert level.share - chance < 0.4 * (sloped.share - chance)


def test_whole_patches_reveal_the_position(views):
    result = score(views("idrid", PROTECTED), "relative_patch", PROTECTED, "whole patch")
    assert result.share - 3 * result.error > TASKS["relative_patch"].chance[0]


def test_mean_colour_identifies_the_photograph_without_protection(views):
    """If it revealed the position only, the accuracy would be divided by the number of photographs."""
    seen = views("idrid", UNPROTECTED)
    train, test = halves(len(seen))
    result = solves(
        TASKS["cpc"], UNPROTECTED, PARTS["mean colour"], seen[train, :1], seen[test, -1], epochs=4
    )
    within, among_all = result
    assert among_all.share > 3 * within.share / GROUP
