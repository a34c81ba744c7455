"""Numbers and structure of the HTML page."""

import base64
import hashlib
import re
from dataclasses import replace

import pytest
from example_study import example_study
from html_page import Page

from drgrade.reporting.figures.canvas import style
from drgrade.reporting.writer import draw_figures, render_page
from drgrade.stats import formatting

HOSTILE = '"><img src=x onerror=alert(1)></title></script><script>alert(2)</script>'


def render(study):
    with style():
        return render_page(study, draw_figures(study))


@pytest.fixture(scope="module")
def study():
    """Use two label fractions only."""
    study = example_study()
    return replace(
        study,
        rows=[row for row in study.rows if row.label_fraction in (0.05, 0.5)],
        comparisons=[each for each in study.comparisons if each.label_fraction in (0.05, 0.5)],
    )


@pytest.fixture(scope="module")
def html(study):
    return render(study)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_main_table_shows_the_rows_of_the_study(study, page):
    for row in study.rows:
        mean = formatting.decimal(row.mean.value)
        line = next(line for line in page.rows if len(line) == 10 and line[4] == mean)
        assert line == [
            formatting.fraction(row.label_fraction),
            f"{len(row.folds)}{'' if row.complete else '*'}",
            row.trainings,
            formatting.decimal(row.minimum),
            mean,
            formatting.decimal(row.maximum),
            formatting.interval(row.mean.interval),
            formatting.decimal(row.sd),
            formatting.count(row.labels),
            formatting.count(row.labels_used),
        ]


def test_published_rows_are_marked(study, html):
    part = html.partition('<tbody class="published">')[2]
    assert part
    text = part.partition("</table>")[0]
    assert "rotation (Taleb et al.)" in text
    assert "source: 2022, APTOS 2019, 5 folds, published protocol" in text
    means = re.findall(r'class="number strong">([^<]+)<', text)
    assert means == [formatting.decimal(row.mean) for row in study.published]
    assert html.count('<span class="badge note">published</span>') == 2


def test_comparison_table_shows_the_differences_of_the_study(study, page):
    differences = [line[1] for line in page.rows if len(line) == 9 and line[0].endswith("%")]
    assert differences[: len(study.comparisons)] == [
        formatting.signed(each.difference.value) for each in study.comparisons
    ]


def test_sections_are_in_order(html, page):
    names = ["qwk", "comparisons", "metrics", "details", "cost", "provenance", "computed"]
    places = [html.index(f'<h2 id="{name}">') for name in names]
    assert places == sorted(places)
    assert [value for value in page.values("href") if value[1:] in names] == [f"#{name}" for name in names]


def test_page_has_no_external_resources(html, page):
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert page.values("src") == []
    assert all(value.startswith("#") for value in page.values("href"))
    assert not re.search(
        r"(https?:)?//[a-z]", html.replace("http://www.w3.org/2000/svg", "").replace("\n//", "")
    )
    assert not re.search(r"@import|url\((?!#)", html)


def test_content_security_policy_allows_only_the_script_of_the_page(html):
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_ids_are_unique(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_tables_and_figures_are_accessible(page, html):
    assert page.tags.count("table") == len(re.findall(r"<table aria-labelledby=", html))
    assert all(re.search(r"scope=", tag) for tag in re.findall(r"<th[^>e][^>]*>", html))
    figures = re.findall(r"<svg[^>]*>", html)
    assert figures
    assert all(re.search(r'aria-label="[^"]{20,}"', figure) for figure in figures)
    assert "<html lang=" in html


def test_missing_runs_are_listed_at_the_top(html, page):
    assert "Incomplete: 1 of 100 runs has no result (1 failed)." in html
    assert ": failed," in page.text
    assert "CUDA out of memory <at step 7>" in page.text


def test_finished_sweep_has_no_warning(study):
    alone = replace(study, missing=[], rows=study.rows[:1], comparisons=[], notes=[], pretrainings=[])
    html = render(alone)
    assert "Incomplete" not in html
    assert "banner" not in html.partition("<body>")[2]
    assert 'id="comparisons"' not in html
    Page(html)


def test_untrusted_names_are_escaped(study):
    hostile = replace(
        study,
        title=HOSTILE,
        methods=[replace(study.methods[0], label=HOSTILE), *study.methods[1:]],
        missing=[replace(study.missing[0], name=HOSTILE, reason=HOSTILE)],
        data={HOSTILE: HOSTILE},
        notes=[HOSTILE],
        rows=study.rows[:2],
        comparisons=study.comparisons[:1],
    )
    page = Page(render(hostile))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_page_contains_all_tooltips(study, html):
    with style():
        figures = draw_figures(study)
    assert html.count('class="tip"') == sum(len(plot.tips) for plot in figures.all)
