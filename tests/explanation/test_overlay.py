"""Heat is mapped back to its place on the original photograph."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.data.crops import Facts
from drgrade.data.geometry import Disc, crop_disc
from drgrade.explanation.overlay import draw_legend, draw_overlay, heat_gradient, project_heat

SIDE = 96


def _facts(width, height, x, y, radius, stretch=1.0):
    return Facts(width, height, 1, "", x, y, radius, stretch, 1.0, 0.2, 100.0)


def _centre(image):
    """Compute the centre of gravity; pixel i is at i + 0.5."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return (image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(200, 500),
    height=st.integers(150, 400),
    shift=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    reach=st.floats(0.6, 1.2),
    stretch=st.sampled_from([1.0, 1.3, 0.75]),
    place=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
)
def test_a_mark_is_mapped_back_to_its_place(width, height, shift, reach, stretch, place):
    """A mark on the photograph is prepared and mapped back; the frame may cut off the disc at any side."""
    radius = reach * min(width / stretch, height) / 2
    x, y = width * (0.5 + shift[0]), height * (0.5 + shift[1])
    at = x + place[0] * radius * stretch, y + place[1] * radius
    mark = 0.1 * radius
    if not (mark * max(stretch, 1) + 2 < at[0] < width - mark * max(stretch, 1) - 2):
        return
    if not mark + 2 < at[1] < height - mark - 2:
        return
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = ((columns - at[0]) / stretch) ** 2 + (rows - at[1]) ** 2 <= mark**2
    photograph = np.repeat((inside * 255).astype(np.uint8)[..., None], 3, axis=2)
    disc = Disc(x, y, radius, 0, 0, width, height, stretch)
    heat = crop_disc(photograph, disc, SIDE)[..., 0].astype(np.float32) / 255
    spread = project_heat((height, width), _facts(width, height, x, y, radius, stretch), heat)
    # The crop is rounded to whole pixels of the photograph.
    np.testing.assert_allclose(_centre(spread), _centre(inside), atol=1.0)


def test_heat_on_a_reduced_photograph_is_the_reduced_heat():
    rng = np.random.default_rng(0)
    heat = cv2.GaussianBlur(rng.random((SIDE, SIDE), np.float32), (0, 0), 8)
    facts = _facts(400, 300, 190.0, 150.0, 160.0)
    large, small = project_heat((300, 400), facts, heat), project_heat((150, 200), facts, heat)
    reduced = cv2.resize(large, (200, 150), interpolation=cv2.INTER_AREA)
    inside = cv2.erode((reduced > 0.1).astype(np.uint8), np.ones((5, 5))) > 0
    np.testing.assert_allclose(small[inside], reduced[inside], atol=0.02)


@pytest.mark.parametrize("cut", [0.0, 60.0])
def test_the_photograph_is_unchanged_without_heat(cut):
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 255, (300, 400, 3), np.uint8)
    facts = _facts(400, 300, 200.0, 150.0 - cut, 140.0)
    heat = np.zeros((SIDE, SIDE), np.float32)
    assert (draw_overlay(photograph, facts, heat) == photograph).all()
    heat[48:, :] = 1.0
    overlay = draw_overlay(photograph, facts, heat)
    changed = (overlay != photograph).any(axis=2)
    assert changed[round(150 - cut) + 5 : round(150 - cut) + 100, 200].all()
    assert not changed[: max(round(150 - cut) - 10, 0), :].any()
    assert not changed[:, :40].any()
    assert overlay.shape == photograph.shape
    assert overlay.dtype == np.uint8


def test_lightness_increases_with_heat():
    """So the order of the colours is visible to colour-blind readers and in grey."""
    photograph = np.full((201, 201, 3), (170, 80, 30), np.uint8)
    ramp = np.repeat(np.linspace(0, 1, SIDE, dtype=np.float32)[None], SIDE, axis=0)
    overlay = draw_overlay(photograph, _facts(201, 201, 100.5, 100.5, 100.5), ramp)
    lightness = cv2.cvtColor(overlay, cv2.COLOR_RGB2LAB)[100, :, 0].astype(int)
    along = lightness[[60, 80, 120, 140, 160, 180, 192]]  # the line at half of the heat is at 100
    assert (np.diff(along) > 0).all()
    assert along[-1] - lightness[0] > 50


def test_no_colour_of_the_scale_is_that_of_a_retina_or_a_lesion():
    """Exudates are yellow, white or orange, blood is red: in all of them red is above blue."""
    retinas = [(150, 70, 30), (210, 120, 60), (90, 40, 20)]
    for colour in retinas:
        photograph = np.full((201, 201, 3), colour, np.uint8)
        ramp = np.repeat(np.linspace(0, 1, SIDE, dtype=np.float32)[None], SIDE, axis=0)
        overlay = draw_overlay(photograph, _facts(201, 201, 100.5, 100.5, 100.5), ramp).astype(int)
        red, _, blue = overlay[100, 125:196].T
        assert (blue > red).all()
        assert (blue > 100).all()


def test_pages_show_the_scale_of_the_legend_in_overlays():
    stops = re.findall(r"#(\w{6})", heat_gradient())
    legend = draw_legend(801)[0]
    assert len(stops) == 9
    for number, stop in enumerate(stops):
        np.testing.assert_allclose(legend[100 * number], list(bytes.fromhex(stop)), atol=1)


@pytest.mark.parametrize("width", [1, 40, 640, 4288])
def test_the_legend_fits_its_width(width):
    assert draw_legend(width).shape[1:] == (width, 3)
    assert len(draw_legend(width)) >= 8
