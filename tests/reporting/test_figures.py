"""Figures show the values of the study, with tooltips."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from example_study import example_study

from drgrade.reporting.figures.canvas import COLOURS, MARKERS, dodge, looks, png, style, svg
from drgrade.reporting.figures.curve import draw_curve
from drgrade.reporting.figures.details import draw_confusion, draw_roc, row_shares
from drgrade.reporting.figures.differences import draw_differences
from drgrade.reporting.figures.svg import VARIABLES, inline
from drgrade.reporting.schema import Method
from drgrade.reporting.writer import draw_figures
from drgrade.stats import formatting
from drgrade.stats.curves import RocCurve


@pytest.fixture(scope="module")
def study():
    return example_study()


@pytest.fixture(scope="module")
def figures(study):
    with style():
        return draw_figures(study)


def drawn(plot):
    """Return the data coordinates of each part with a tooltip, by text."""
    places = {}
    for line in plot.figure.axes[0].lines:
        if line.get_gid() in plot.tips:
            places[plot.tips[line.get_gid()]] = (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
    return places


def test_curve_shows_folds_means_and_published_results(study, figures):
    places = drawn(figures.curves[0])
    heights = sorted(y for _, y in places.values())
    expected = [value for row in study.rows for value in row.folds.values()]
    expected += [row.mean.value for row in study.rows] + [row.mean for row in study.published]
    assert heights == pytest.approx(sorted(expected))


def test_points_of_the_curve_have_tooltips(study, figures):
    row = next(row for row in study.rows if (row.method, row.label_fraction) == ("msssl-ssl", 0.25))
    tips = set(figures.curves[0].tips.values())
    assert f"MsSSL, ssl, 25 % of the labels\nfold 3: {row.folds['3']:.3f}" in tips
    low, high = row.mean.interval.low, row.mean.interval.high
    assert (
        f"MsSSL, ssl, 25 % of the labels\nmean {row.mean.value:.3f}, 95 % {low:.3f} to {high:.3f}\n"
        f"5 folds: {row.minimum:.3f} to {row.maximum:.3f}\n"
        "732 training labels, 887 with validation"
    ) in tips


def test_bars_of_the_curve_are_the_intervals(study, figures):
    bars = {
        tuple(np.round(line.get_ydata(), 9))
        for line in figures.curves[0].figure.axes[0].lines
        if line.get_linewidth() == 3.2
    }
    assert bars == {(round(row.mean.interval.low, 9), round(row.mean.interval.high, 9)) for row in study.rows}


def test_only_published_curves_are_dashed(study, figures):
    lines = [line for line in figures.curves[0].figure.axes[0].lines if len(line.get_xdata()) == 5]
    dashed = [line for line in lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[row.mean for row in study.published[:5]]]
    assert len(lines) - len(dashed) == len(study.methods)


def test_points_of_methods_do_not_overlap():
    for count in range(1, 13):
        asides = [dodge(number, count, 0.5) for number in range(count)]
        assert sum(asides) == pytest.approx(0)
        assert len(set(asides)) == count
        assert max(asides) - min(asides) < 0.5


def test_42_methods_have_different_looks():
    assert len(set(looks(map(str, range(42))).values())) == len(COLOURS) * len(MARKERS) == 42


def test_differences_are_drawn_at_their_values(study, figures):
    places = drawn(figures.differences[0])
    assert len(places) == len(study.comparisons)
    for comparison in study.comparisons:
        (x,) = [
            x
            for tip, (x, _) in places.items()
            if tip.startswith(
                f"{comparison.title(study.labels)}, "
                f"{formatting.fraction(comparison.label_fraction)} of the labels\n"
            )
        ]
        assert x == pytest.approx(comparison.difference.value)


def test_long_names_are_wrapped_and_nothing_is_cut_off(study):
    methods = [replace(each, label=f"{each.label}, {'long ' * 20}") for each in study.methods]
    with style():
        figures = draw_figures(replace(study, methods=methods, rows=study.rows[::5]))
        for plot in figures.all:
            plot.figure.draw_without_rendering()
            width, height = plot.figure.get_size_inches() * plot.figure.dpi
            axes = plot.figure.axes[0]
            texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += [text for legend in plot.figure.legends for text in legend.get_texts()]
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            assert min(box.x0 for box in boxes) > -1, plot.name
            assert max(box.x1 for box in boxes) < width + 1, plot.name
            assert min(box.y0 for box in boxes) > -1, plot.name
            assert max(box.y1 for box in boxes) < height + 1, plot.name


def test_many_comparisons_take_several_figures(study):
    many = [
        replace(comparison, second=f"other-{number}")
        for number in range(8)
        for comparison in study.comparisons[:5]
    ]
    others = [Method(f"other-{n}", f"other {n}", "matched", "ssl", {}, False) for n in range(8)]
    wide = replace(study, methods=[*study.methods, *others], comparisons=many)
    with style():
        plots = draw_differences(wide)
    assert len(plots) > 1
    assert len({plot.name for plot in plots}) == len(plots)
    assert sum(len(plot.tips) for plot in plots) == len(many)
    assert all(plot.figure.get_figheight() < 8.5 for plot in plots)


def test_cells_of_a_confusion_matrix_show_count_and_share(study, figures):
    row = study.rows[0]
    tips = list(figures.details[0.05].confusions[0].tips.values())
    assert len(tips) == 25
    count, total = row.confusion[1, 0], row.confusion[1].sum()
    assert f"grade 1 (mild), predicted as grade 0\n{count} of {total}, {100 * count / total:.1f} %" in tips


def test_row_shares_are_of_the_true_grade(study):
    row = study.rows[0]
    for true in range(5):
        for predicted in range(5):
            naive = row.confusion[true, predicted] / sum(row.confusion[true])
            assert row_shares(row)[true, predicted] == pytest.approx(naive)


def test_grade_that_does_not_occur_has_no_share(study):
    (row,) = [row for row in study.rows if row.method == "msssl-random" and row.label_fraction == 0.05]
    with style():
        plot = draw_confusion(row, "x")
    assert np.isnan(row_shares(row)[3]).all()
    assert not any("nan" in tip for tip in plot.tips.values())
    assert "nan" not in "".join(text.get_text() for text in plot.figure.axes[0].texts)


def test_points_of_a_roc_curve_lie_on_the_curve(study, figures):
    rows = [row for row in study.rows if row.label_fraction == 0.25]
    for x, y in drawn(figures.details[0.25].roc[0]).values():
        assert any(((row.roc.x == x) & (row.roc.y == y)).any() for row in rows)


def test_undefined_roc_curve_is_empty(study):
    nothing = RocCurve(np.array([]), np.array([]))
    with style():
        plot = draw_roc(study.labels, [replace(study.rows[0], roc=nothing)])
    assert plot.tips == {}


def test_names_are_not_parsed_as_formulas(study):
    method = replace(study.methods[0], label="a_b $x_1$ 50 % \\alpha {")
    with style():
        figures = draw_figures(replace(study, methods=[method, *study.methods[1:]]))
        texts = list(ET.fromstring(svg(figures.curves[0])).itertext())
    assert "a_b $x_1$ 50 % \\alpha {" in texts


def test_one_method_one_fraction_one_fold_is_drawn(study):
    row = replace(study.rows[0], folds={"published": 0.25}, sd=float("nan"))
    alone = replace(study, methods=study.methods[:1], rows=[row], comparisons=[], published=[])
    with style():
        figures = draw_figures(alone)
        assert all(png(plot).startswith(b"\x89PNG") for plot in figures.all)
    assert figures.differences == []


def test_same_study_gives_the_same_bytes(study):
    with style():
        first, second = (draw_curve(study) for _ in range(2))
        assert svg(first) == svg(second)
        assert png(first) == png(second)


def test_inline_figures_have_every_tip_and_no_fixed_colour(figures):
    with style():
        for plot in (figures.curves[0], figures.differences[0], *figures.details[0.1].all):
            text = inline(svg(plot), plot.name, plot.tips, plot.alt)
            root = ET.fromstring(text)
            titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
            assert titles == list(plot.tips.values()) or sorted(titles) == sorted(plot.tips.values())
            assert not re.search("#[0-9a-f]{6}", re.sub(r"url\(#[^)]*\)|href=\"#[^\"]*\"", "", text))
            assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(VARIABLES.values())
            assert "font-family" not in text
            assert root.get("aria-label") == plot.alt


def test_inline_figure_has_one_tab_stop(figures):
    with style():
        text = inline(svg(figures.curves[0]), "x", figures.curves[0].tips, "alt")
    assert text.count('tabindex="0"') == 1
    assert text.count('tabindex="-1"') == len(figures.curves[0].tips) - 1


def test_references_in_an_inline_figure_are_valid(figures):
    with style():
        text = inline(svg(figures.curves[0]), "one", figures.curves[0].tips, "alt")
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text)) == set(ids)
    assert all(name.startswith("one-") for name in ids)


def test_tooltips_are_escaped(figures):
    first = next(iter(figures.curves[0].tips))
    with style():
        text = inline(svg(figures.curves[0]), "x", {first: "</title><script>alert(1)</script>"}, 'a "b" <c>')
    assert "<script>" not in text
    assert ET.fromstring(text).get("aria-label") == 'a "b" <c>'


def test_tip_without_a_part_is_an_error(figures):
    with style(), pytest.raises(ValueError, match="no element hit-999"):
        inline(svg(figures.curves[0]), "x", {"hit-999": "?"}, "alt")
