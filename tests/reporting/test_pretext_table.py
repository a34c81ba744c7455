"""Reports with many methods: comparisons, overview table, published results, budgets, figures."""

import dataclasses
import io
import json
import re

import pandas as pd
import pytest
from pretexts import INPUTS, STEPS, write_table
from synthetic import change_json

import drgrade.reporting.writer as writer
from drgrade.errors import ConfigError
from drgrade.reporting import overview
from drgrade.reporting.csv_writer import csv_files, render_json
from drgrade.reporting.figures.canvas import FEW, style
from drgrade.reporting.latex import render_latex
from drgrade.reporting.study import build_study
from drgrade.reporting.tables import budget_table
from drgrade.reporting.writer import draw_figures, render_markdown, render_page
from drgrade.stats import formatting
from drgrade.stats.estimates import Interval

PRETEXTS = ("rotation", "simclr", "mae")
FRACTIONS = (0.1, 1.0)
SIZE = {"fractions": FRACTIONS, "folds": (0, 1), "pretexts": PRETEXTS, "photographs": 80}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table"), **SIZE)


@pytest.fixture(scope="module")
def study(folder):
    return build_study([folder], resamples=200, published="all")


@pytest.fixture(scope="module")
def figures(study):
    with style():
        return draw_figures(study)


@pytest.fixture
def encoders(folder):
    """Return the folder of the encoders, and restore it after the test."""
    place = folder.parent / "encoders"
    before = {path: path.read_text() for path in place.glob("*/*.json")}
    yield place
    for path, text in before.items():
        path.write_text(text)


def by_label(study):
    return {method.label: method for method in study.methods}


def test_names_of_lines(study):
    assert {method.name for method in study.methods} == {
        "rotation, pre-trained",
        "simclr, pre-trained",
        "mae, pre-trained",
        "random init",
        "vit, random init",
        "majority class",
    }
    assert {"random init, matched", "random init, published", "random init, linear"} < set(by_label(study))


def test_default_comparisons_are_with_random_weights(study):
    names = study.labels
    pairs = {(names[each.first], names[each.second]) for each in study.comparisons}
    expected = set()
    for protocol in ("matched", "published"):
        for name in ("rotation", "simclr"):
            expected.add((f"{name}, pre-trained, {protocol}", f"random init, {protocol}"))
        expected.add((f"mae, pre-trained, {protocol}", f"vit, random init, {protocol}"))
    assert pairs == expected
    assert len(study.comparisons) == len(expected) * len(FRACTIONS)
    assert "random initialisation of the same encoder" in study.compared


def test_compare_all_pairs_or_with_one_method(folder):
    every = build_study([folder], resamples=20, compare="all")
    count = len(every.methods)
    assert len(every.comparisons) == count * (count - 1) / 2 * len(FRACTIONS)
    line = build_study([folder], resamples=20, compare="simclr, pre-trained")
    names, protocols = line.labels, {each.key: each.protocol for each in line.methods}
    assert {names[each.second] for each in line.comparisons} == {
        "simclr, pre-trained, matched",
        "simclr, pre-trained, published",
    }
    assert all(protocols[each.first] == protocols[each.second] for each in line.comparisons)
    one = build_study([folder], resamples=20, compare="majority class")
    assert {one.labels[each.second] for each in one.comparisons} == {"majority class"}
    assert len(one.comparisons) == (count - 1) * len(FRACTIONS)
    with pytest.raises(ConfigError, match="simclr, pre-trained, matched"):
        build_study([folder], resamples=20, compare="simclar")


def test_fine_tuning_protocols_with_equal_labels_have_separate_columns(study):
    matched = {tuple(cell): code for (name, *cell), code in study.splits.items() if name == "matched"}
    splits = {(name, *cell): matched[tuple(cell)] for name, *cell in study.splits}
    found = overview.blocks(dataclasses.replace(study, splits=splits))
    assert [(block.name, list(block.protocols)) for block in found] == [
        ("published", ["published"]),
        ("matched", ["matched", "linear", "majority"]),
    ]


def test_probes_without_fine_tuning_have_separate_columns(study):
    kept = [method for method in study.methods if method.protocol in ("linear", "majority")]
    found = overview.blocks(dataclasses.replace(study, methods=kept))
    assert [block.name for block in found] == ["linear", "majority"]


def cells(study, name):
    """Return the lines of a method in the overview table: heading to cell."""
    table = overview.overview_table(study)
    titles = [column.title for column in table.columns]
    return [dict(zip(titles, group.lines[0], strict=True)) for group in table.groups if group.name == name]


def test_protocols_are_side_by_side_and_probes_share_columns(study):
    assert [(block.name, list(block.protocols)) for block in overview.blocks(study)] == [
        ("published", ["published"]),
        ("matched", ["matched", "linear", "majority"]),
    ]
    means = {(row.method, row.label_fraction): formatting.decimal(row.mean.value) for row in study.rows}
    methods = by_label(study)
    (found,) = cells(study, "rotation, pre-trained")
    for protocol in ("matched", "published"):
        for share in FRACTIONS:
            key = methods[f"rotation, pre-trained, {protocol}"].key
            text = found[f"{protocol}: {formatting.fraction(share)}"]
            assert text.rstrip(formatting.BETTER + formatting.WORSE) == means[key, share]
    (probe,) = cells(study, "random init, linear")
    assert probe["matched: 10 %"] == means[methods["random init, linear"].key, 0.1]
    assert probe["published: 10 %"] == ""


def test_published_results_follow_the_matching_method(study):
    table = overview.overview_table(study)
    names = [group.name for group in table.groups]
    place = names.index("rotation, pre-trained")
    papers = ["rotation (2022)", "rotation (Taleb et al. 2020)", "rotation (replication 2025)"]
    assert names[place + 1 : place + 4] == [f"{name}, on aptos2019" for name in papers]
    assert names[names.index("random init") + 1] == "random init (Taleb et al. 2020), on aptos2019"
    assert all(group.published == ("20" in group.name) for group in table.groups)
    (paper,) = cells(study, "rotation (2022), on aptos2019")
    assert paper["published: 10 %"] == "0.432 [a]"
    assert paper["published: 100 %"] == "0.725"
    assert paper["matched: 10 %"] == ""
    assert not any("jigsaw" in name for name in names)  # there is no such row here


def test_papers_have_separate_columns_without_the_published_protocol(tmp_path):
    folder = write_table(tmp_path, protocols=("matched",), **SIZE)
    study = build_study([folder], resamples=20, published="all")
    (paper,) = cells(study, "rotation (2022), on aptos2019")
    assert paper["papers: 5 %"] == "0.294 [a]"
    remarks = overview.overview_table(study).remarks
    assert any(remark.startswith("[a]: not a fair baseline") for remark in remarks)
    assert paper["matched: 100 %"] == ""


def test_arrows_mark_significant_differences_from_random_weights(study):
    chosen = study.comparisons[0]
    for p_holm, value, mark in (
        (0.01, 0.2, formatting.BETTER),
        (0.01, -0.2, formatting.WORSE),
        (0.2, 0.2, ""),
    ):
        difference = dataclasses.replace(chosen.difference, value=value, interval=Interval(-1, 1))
        changed = dataclasses.replace(chosen, p_holm=p_holm, difference=difference)
        rest = [dataclasses.replace(each, p_holm=1.0) for each in study.comparisons[1:]]
        found = dataclasses.replace(study, comparisons=[changed, *rest])
        text = "".join(cell for group in overview.overview_table(found).groups for cell in group.lines[0])
        assert text.count(formatting.BETTER) == (mark == formatting.BETTER)
        assert text.count(formatting.WORSE) == (mark == formatting.WORSE)


def test_small_report_of_one_protocol_has_no_overview(study):
    matched = [method for method in study.methods if method.protocol == "matched"][:4]
    keys = {method.key for method in matched}
    rows = [row for row in study.rows if row.method in keys]
    assert overview.overview_table(dataclasses.replace(study, methods=matched, rows=rows)) is None


def test_equal_budgets_are_reported(study):
    text = "\n".join(study.equality)
    assert f"Equal pre-training: {STEPS} optimiser steps for each pretext." in text
    assert f"Equal pre-training: {32 * STEPS:,} photographs for each pretext." in text
    assert "0.25 (mae, pre-trained) to 4 (rotation, pre-trained)." in text
    assert re.search(r"protocol matched: equal, with 200 optimiser steps and 6,400 photographs in", text)
    assert "protocol published: equal for all methods at the same label fraction and fold, but" in text
    assert "linear" not in text  # a probe takes no steps
    assert not any("Unequal" in note for note in study.notes)


def test_unequal_pretraining_is_a_warning(folder, encoders):
    change_json(encoders / "simclr-0" / "encoder.json", steps=2 * STEPS)
    study = build_study([folder], resamples=20)
    warning = (
        f"Unequal pre-training: {STEPS} (mae, pre-trained; rotation, pre-trained; simclr, pre-trained) "
        f"to {2 * STEPS} (simclr, pre-trained) optimiser steps."
    )
    assert warning in study.notes
    assert warning in study.equality


def test_unknown_pretraining_length_is_reported(folder, encoders):
    for path in encoders.glob("mae-*/*.json"):
        path.unlink()
    study = build_study([folder], resamples=20)
    assert "The length of pre-training is not recorded: mae, pre-trained." in study.notes


def test_unequal_fine_tuning_is_a_warning(tmp_path):
    folder = write_table(tmp_path, protocols=("matched",), **SIZE)
    run = next(folder.glob("*pretext-simclr*label_fraction-0.1*fold-1*"))
    change_json(run / "provenance.json", steps=7)
    notes = build_study([folder], resamples=20).notes
    assert any(
        note == "Fine-tuning, protocol matched: optimiser steps differ between methods at the same "
        "label fraction and fold."
        for note in notes
    )


def test_budget_table_shows_recorded_budgets(study):
    table = budget_table(study)
    lines = {group.name: group.lines[0] for group in table.groups}
    steps, images = f"{STEPS}", f"{32 * STEPS:,}"
    for name in PRETEXTS:
        seen = formatting.number(32 * STEPS * INPUTS[name])
        found = lines[f"{name}, pre-trained, matched"]
        assert found[:4] == ["2", steps, images, seen]
        assert found[5:7] == ["200", "6,400"]
    assert lines["random init, matched"][:5] == [formatting.DASH] * 5
    assert lines["random init, linear"][5:7] == [formatting.DASH] * 2
    assert " to " in lines["random init, published"][5]


def test_budgets_count_each_encoder_once(study):
    assert {budget.encoders for budget in study.budgets} == {0, 2}
    names = study.labels
    for budget in study.budgets:
        assert budget.trained == (
            "linear" not in names[budget.method] and "majority" not in names[budget.method]
        )


def test_many_methods_have_separate_panels(study, figures):
    assert len(study.methods) > FEW
    panels = [axes for plot in figures.curves for axes in plot.figure.axes if axes.get_visible()]
    assert [" ".join(axes.get_title().split()) for axes in panels] == list(
        dict.fromkeys(method.name for method in study.methods)
    )
    means = {round(row.mean.value, 9) for row in study.rows}
    drawn = {
        round(float(value), 9)
        for axes in panels
        for line in axes.lines
        if line.get_gid()
        for value in line.get_ydata()
    }
    assert means <= drawn
    details = figures.details[0.1]
    assert len(details.roc) == -(-len(study.methods) // FEW)
    colours = [
        {
            text.get_text(): line.get_color()
            for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
        }
        for plot in details.roc
        for legend in plot.figure.legends
    ]
    assert all(len(set(each.values())) == len(each) for each in colours)
    names = [plot.name for plot in figures.all]
    assert len(names) == len(set(names))


def test_panels_fit_the_figure(figures):
    with style():
        for plot in figures.curves:
            plot.figure.draw_without_rendering()
            width, height = plot.figure.get_size_inches() * plot.figure.dpi
            texts = [axes.title for axes in plot.figure.axes if axes.get_visible()]
            texts += [text for legend in plot.figure.legends for text in legend.get_texts()]
            for box in (text.get_window_extent() for text in texts):
                assert -1 < box.x0 < box.x1 < width + 1
                assert -1 < box.y0 < box.y1 < height + 1


def test_all_formats_contain_overview_and_budget(study, figures, monkeypatch):
    monkeypatch.setattr(writer, "LONG_TABLE", 20)
    with style():
        page, markdown = render_page(study, figures), render_markdown(study, figures)
    latex = render_latex(study)
    table = overview.overview_table(study)
    (found,) = cells(study, "simclr, pre-trained")
    assert f"| simclr, pre-trained | {' | '.join(found.values())} |" in re.sub(" +", " ", markdown)
    assert r"\multicolumn{2}{c}{matched}" in latex
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in latex
    line = next(line for line in table.plain().splitlines() if line.startswith("simclr"))
    assert line.split()[2:] == list(found.values())
    assert page.index('id="table-overview"') < page.index('id="table-qwk"')
    assert '<h2 id="budget">' in page
    folded = re.findall(r'<summary class="caption" id="table-(\w+)">', page)
    selective = ["selective", "coverage", "referral", "selective_comparisons"]
    assert folded == [
        "qwk",
        "metrics",
        "recall",
        *selective,
        "costs",
    ]  # the others have fewer lines than that
    for sentence in study.equality:
        assert sentence.split(":")[0] in page
        assert sentence.split(":")[0] in markdown


def test_budgets_are_in_csv_and_json(study):
    table = pd.read_csv(io.StringIO(csv_files(study)["budget.csv"]))
    own = table[table["method"] == "rotation, pre-trained, matched"]
    assert own["label_fraction"].tolist() == list(FRACTIONS)
    assert set(own["pretraining_steps_least"]) == {STEPS}
    assert set(own["steps_greatest"]) == {200}
    assert json.loads(render_json(study, []))["equality"] == list(study.equality)
