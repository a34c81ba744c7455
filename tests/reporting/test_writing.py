"""Markdown, CSV, LaTeX, JSON and plain text contain the values of the study."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from example_study import FRACTIONS, example_study
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import DataError
from drgrade.reporting import latex
from drgrade.reporting.csv_writer import csv_files, render_json
from drgrade.reporting.latex import render_latex
from drgrade.reporting.notes import summary, unfinished_note
from drgrade.reporting.schema import Method, Missing
from drgrade.reporting.tables import all_tables, costs_table, main_table, metrics_table, recall_table
from drgrade.reporting.writer import render_markdown, write_report
from drgrade.stats import formatting
from drgrade.stats.estimates import Interval

HOSTILE = r"a_b & 50 % $x$ #1 {\tiny} ~ ^ <i>|</i> `c` *d* [e](f)"


@pytest.fixture(scope="module")
def study():
    return example_study()


@pytest.fixture(scope="module")
def small(study):
    """Return a small study, because drawing figures is slow: two methods, two label fractions."""
    keys, fractions = ("rotation-ssl", "msssl-ssl"), (0.05, 1.0)
    return replace(
        study,
        methods=[method for method in study.methods if method.key in keys],
        rows=[row for row in study.rows if row.method in keys and row.label_fraction in fractions],
        comparisons=[
            each
            for each in study.comparisons
            if (each.first, each.second) == keys and each.label_fraction in fractions
        ],
    )


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Write the report of the small study."""
    folder = tmp_path_factory.mktemp("report") / "new" / "deep"
    write_report(small, folder)
    return folder


def read(study, name):
    return pd.read_csv(io.StringIO(csv_files(study)[name]))


def markdown_rows(text, title):
    """Return the cells of the table below a heading."""
    part = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("**", "") for cell in line.strip("| ").split(" | ")] for line in lines]


def test_report_files(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "tables.tex", "study.json", "table.csv", "folds.csv"} < names
    assert {
        "comparisons.csv",
        "confusion.csv",
        "calibration.csv",
        "recall.csv",
        "roc.csv",
        "costs.csv",
    } < names
    plots = {Path(name).stem for name in names if name.startswith("figures/")}
    assert {"curve", "differences", "recall-5pct", "calibration-100pct", "roc-5pct"} < plots
    assert "confusion-100pct-msssl-ssl" in plots
    assert names == set(json.loads((folder / "study.json").read_text())["files"])
    assert not [name for name in names if Path(name).name.startswith(".")]


def test_figures_referenced_by_markdown_exist(folder):
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / "report.md").read_text())
    assert len(named) == len(set(named)) == len(list((folder / "figures").glob("*.png")))
    assert all((folder / name).is_file() for name in named)


def test_only_files_of_an_earlier_report_are_removed(study, tmp_path):
    earlier = ["figures/roc-10pct.png", "roc-old.csv", "../outside.csv", "notes.txt"]
    kept = ["figures/mine.png", *earlier[2:]]
    (tmp_path / "report" / "figures").mkdir(parents=True)
    for name in {*earlier, *kept}:
        (tmp_path / "report" / name).write_text("")
    (tmp_path / "report" / "study.json").write_text(json.dumps({"files": earlier}))
    only = replace(study, rows=study.rows[:1], methods=study.methods[:1], comparisons=[], published=[])
    write_report(only, tmp_path / "report")
    assert not [name for name in earlier[:2] if (tmp_path / "report" / name).exists()]
    assert all((tmp_path / "report" / name).exists() for name in kept)


def test_unwritable_folder_is_an_error(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the report to .*out=DIR"):
        write_report(replace(study, rows=study.rows[:1], comparisons=[]), tmp_path / "file" / "report")


def test_table_csv_has_all_digits(study):
    table = read(study, "table.csv")
    ours = table[~table["published"]].reset_index(drop=True)
    for column, values in {
        "min": [row.minimum for row in study.rows],
        "mean": [row.mean.value for row in study.rows],
        "mean_low": [row.mean.interval.low for row in study.rows],
        "mean_high": [row.mean.interval.high for row in study.rows],
        "max": [row.maximum for row in study.rows],
        "sd": [row.sd for row in study.rows],
        "accuracy": [row.metrics["accuracy"] for row in study.rows],
        "label_fraction": [row.label_fraction for row in study.rows],
    }.items():
        assert ours[column].tolist() == pytest.approx(values, abs=1e-15)
    assert ours["complete"].tolist() == [row.complete for row in study.rows]


def test_published_rows_are_marked_and_keep_their_source(study):
    table = read(study, "table.csv")
    published = table[table["published"]]
    assert published["mean"].tolist() == [row.mean for row in study.published]
    assert published["source"].tolist() == [row.source for row in study.published]
    assert published["sd"].isna().all()
    assert table["published"].sum() == len(study.published)


def test_folds_csv_agrees_with_the_table(study):
    folds = read(study, "folds.csv").groupby(["key", "label_fraction"])["qwk"]
    for row in study.rows:
        values = folds.get_group((row.method, row.label_fraction))
        assert values.mean() == pytest.approx(row.mean.value)
        assert values.std() == pytest.approx(row.sd)
        assert len(values) == len(row.folds)


def test_confusion_csv_agrees_with_recall_csv(study):
    cells = read(study, "confusion.csv")
    right = cells[cells["grade"] == cells["predicted"]].merge(
        read(study, "recall.csv"), on=["key", "label_fraction", "grade"]
    )
    assert len(right) == 5 * len(study.rows)
    pd.testing.assert_series_equal(right["share"], right["recall"], check_names=False)


def test_other_csv_files_are_complete(study):
    assert read(study, "comparisons.csv")["difference"].tolist() == pytest.approx(
        [each.difference.value for each in study.comparisons]
    )
    assert len(read(study, "roc.csv")) == sum(len(row.roc.x) for row in study.rows)
    assert read(study, "calibration.csv")["count"].sum() == sum(
        row.calibration.count.sum() for row in study.rows
    )
    costs = read(study, "costs.csv")
    assert costs["what"].value_counts().to_dict() == {"run": 20, "pre-training": 2}


def test_nan_is_an_empty_cell(study):
    for text in csv_files(study).values():
        assert "nan" not in text.lower()


def test_markdown_has_the_main_table(folder, small):
    lines = markdown_rows((folder / "report.md").read_text(), "QWK")
    lines = lines[next(number for number, line in enumerate(lines) if line[1] == "labels") :]
    numbers = ["min", "mean", "max", "95 %", "sd", "training labels", "labels used"]
    assert lines[0] == ["method", "labels", "folds", "trainings", *numbers]
    for line, row in zip(lines[1:], small.rows, strict=False):
        interval = f"{row.mean.interval.low:.3f} to {row.mean.interval.high:.3f}".replace(
            "-", formatting.MINUS
        )
        numbers = [
            f"{v:.3f}".replace("-", formatting.MINUS) for v in (row.minimum, row.mean.value, row.maximum)
        ]
        assert line[1] == f"{100 * row.label_fraction:.0f} %"
        assert line[4:9] == [*numbers, interval, f"{row.sd:.3f}"]
    published = [line for line in lines if line[0].endswith("(published)")]
    assert [line[5] for line in published] == [f"{row.mean:.3f}" for row in small.published]


def test_markdown_has_the_comparisons(folder, small):
    lines = markdown_rows((folder / "report.md").read_text(), "Comparisons")[1:]
    expected = small.comparisons
    assert len(expected) == 2
    differences = [line[2].replace(formatting.MINUS, "-") for line in lines]
    assert differences == [f"{each.difference.value:+.3f}" for each in expected]
    assert [line[4] for line in lines] == [str(each.folds) for each in expected]


def test_markdown_lists_missing_runs(folder):
    text = (folder / "report.md").read_text()
    assert "Incomplete: 1 of 100 runs has no result (1 failed)." in text
    assert r"msssl-ssl\_0.5\_fold-4: failed, CUDA out of memory &lt;at step 7\>" in text


def test_no_file_contains_nan(folder):
    for name in ("report.html", "report.md", "tables.tex", "study.json"):
        assert not re.search(r"\bnan\b", (folder / name).read_text(), re.IGNORECASE), name


def test_every_dash_has_its_reason(study):
    for table in all_tables(study):
        dashes = [
            cell for group in table.groups for line in group.lines for cell in line if cell == formatting.DASH
        ]
        assert bool(dashes) == any(remark.startswith(formatting.DASH) for remark in table.remarks), table.name


def test_single_fold_has_a_dash_for_the_standard_deviation(study):
    row = replace(study.rows[0], folds={"published": 0.3}, sd=math.nan)
    table = main_table(replace(study, rows=[row], published=[]))
    assert table.groups[0].lines[0][7] == formatting.DASH
    assert "a single fold has no standard deviation" in table.remarks[0]


def test_unrecorded_costs_are_dashes_with_a_reason(study):
    table = costs_table(study)
    line = table.groups[1].lines[FRACTIONS.index(0.1)]
    assert line == ["10 %", formatting.DASH, formatting.DASH, formatting.DASH]
    assert table.remarks == [f"{formatting.DASH}: not recorded."]


def test_untested_grade_has_no_recall(study):
    assert recall_table(study).groups[3].lines[0][4] == formatting.DASH


def test_metrics_of_one_grade_are_not_in_the_table(study):
    rows = [
        replace(row, metrics={**row.metrics, "auroc_3": 0.5, "qwk": 0.1, "new_one": 0.25})
        for row in study.rows
    ]
    table = metrics_table(replace(study, rows=rows))
    names = [column.name for column in table.columns]
    assert names[:2] == ["labels", "accuracy"]
    assert "new one" in names
    assert not {"auroc 3", "qwk"} & set(names)


def test_incomplete_rows_are_marked(study):
    marked = [line for group in main_table(study).groups for line in group.lines if "*" in line[1]]
    assert [line[:2] for line in marked] == [["50 %", "4*"]]


def test_study_json_is_complete(study):
    record = json.loads(render_json(study, ["a.csv"]))
    assert record["rows"][0]["mean"]["value"] == study.rows[0].mean.value
    assert record["rows"][0]["confusion"] == study.rows[0].confusion.tolist()
    assert record["rows"][15]["recall"][3]["value"] is None
    assert record["splits"][0] == {
        "protocol": "published",
        "label_fraction": 0.05,
        "label_seed": 0,
        "fold": "0",
        "split_hash": study.splits["published", 0.05, 0, "0"],
    }
    assert set(record) == {*vars(study), "files"}


def test_unsupported_type_in_json_is_an_error(study):
    with pytest.raises(ValueError, match="serializing to JSON"):
        render_json(replace(study, notes=[object()]), [])


def tokens(text):
    """Split LaTeX into commands, characters and braces, without comments."""
    return re.findall(r"\\[a-zA-Z]+\*?|\\.|.", re.sub(r"(?<!\\)%.*", "", text), re.DOTALL)


def check_latex(text):
    """Assert that braces, math and environments are closed and lines have as many cells as columns."""
    depth, opened = 0, []
    for token in tokens(text):
        depth += (token == "{") - (token == "}")
        assert depth >= 0
        assert token not in ("_", "^", "#", "~")
    assert depth == 0
    assert tokens(text).count("$") % 2 == 0
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    for columns, body in re.findall(
        r"\\begin\{(?:tabular|longtable)\}\{@\{\}((?:p\{\w+\})?\w+)@\{\}\}(.*?)\\end\{(?:tabular|longtable)\}",
        text,
        re.DOTALL,
    ):
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and line[:8] != r"\caption"]
        assert lines
        for line in lines:
            wide = sum(int(count) - 1 for count in re.findall(r"multicolumn\{(\d+)\}\{[cr]\}", line))
            assert tokens(line).count("&") + wide == len(re.sub(r"p{.*}", "l", columns)) - 1


def test_latex_is_well_formed_and_has_the_numbers(folder, study):
    text = (folder / "tables.tex").read_text()
    check_latex(text)
    assert text.count(r"\begin{table}") == 10
    assert text.isascii()
    row = study.rows[0]
    assert rf"rotation, ssl & 5\,\% & 5 & 2 & {row.minimum:.3f} & \textbf{{{row.mean.value:.3f}}} &" in text
    assert r"\emph{another paper} (published) & 100\,\%" in text


def test_latex_lines_do_not_start_with_an_optional_argument(study):
    """TeX reads ``[`` after a rule or the end of a line as an optional argument."""
    method = replace(study.methods[0], label="[a] *b")
    text = render_latex(replace(study, methods=[method, *study.methods[1:]]))
    assert not [line for line in text.splitlines() if line.startswith(("[", "*"))]
    assert "{[}a{]} {*}b" in text


def test_long_and_wide_latex_tables_fit_the_page(study):
    many = [replace(study.rows[0], label_fraction=share / 100) for share in range(1, 61)]
    long = render_latex(replace(study, rows=many))
    check_latex(long)
    assert long.count(r"\endfirsthead") == long.count(r"\endhead") == long.count(r"\begin{longtable}") > 0
    name = "a method of many words " * 8
    wide = render_latex(replace(study, methods=[replace(study.methods[0], label=name), *study.methods[1:]]))
    check_latex(wide)
    assert re.search(r"\\begin\{tabular\}\{@\{\}p\{\d+pt\}r+@\{\}\}", wide)


def test_untrusted_names_keep_latex_and_markdown_valid(study):
    method = replace(study.methods[0], label=HOSTILE)
    hostile = replace(study, title=HOSTILE, methods=[method, *study.methods[1:]], notes=[HOSTILE])
    check_latex(render_latex(hostile))
    text = render_markdown_only(hostile)
    for line in text.splitlines():
        if line.startswith("| "):
            assert not re.search(r"(?<!\\)<i>", line)
    for lines in tables_below(text, "QWK"):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1


def tables_below(text, title):
    part = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    tables = [paragraph.splitlines() for paragraph in part.split("\n\n") if paragraph.startswith("| ")]
    assert tables
    return tables


def render_markdown_only(study):
    """Render Markdown without drawing figures."""
    from drgrade.reporting.figures.canvas import ReportFigure
    from drgrade.reporting.writer import ReportFigures

    return render_markdown(study, ReportFigures([ReportFigure("curve", "alt", None)], [], {}))


@given(st.text())
def test_any_text_can_be_escaped(text):
    check_latex(latex.escape(text))
    assert "\n" not in formatting.escape_markdown(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", formatting.escape_markdown(text))


def test_plain_table_is_aligned(study):
    lines = main_table(study).plain().splitlines()
    table = lines[: 2 + len(study.rows) + len(study.published)]
    assert len({len(line) for line in table[:2]}) == 1
    end = table[0].index("min") + len("min")
    assert all(line[end - 1] != " " and line[end] == " " for line in table[2:])
    assert "another paper (published)" in lines[1 + len(study.rows) + len(study.published)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.5, f"{formatting.MINUS}0.500"),
        (-0.0004, "0.000"),
        (0.0, "0.000"),
        (math.nan, formatting.DASH),
        (math.inf, formatting.DASH),
    ],
)
def test_decimal(value, text):
    assert formatting.decimal(value) == text


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (formatting.signed(0.1), "+0.100"),
        (formatting.signed(-0.1), f"{formatting.MINUS}0.100"),
        (formatting.signed(0.0001), "0.000"),
        (formatting.fraction(0.05), "5 %"),
        (formatting.fraction(0.025), "2.5 %"),
        (formatting.fraction(1 / 3), "33.3333 %"),
        (formatting.fraction_slug(1.0), "100pct"),
        (formatting.p_value(0.0005), "< 0.001"),
        (formatting.p_value(0.04), "0.040"),
        (formatting.p_value(math.nan), formatting.DASH),
        (formatting.hours(0.42), "0.4 s"),
        (formatting.hours(42), "42 s"),
        (formatting.hours(600), "10 min"),
        (formatting.hours(9000), "2.5 h"),
        (formatting.hours(1_000_000), "278 h"),
        (formatting.hours(math.nan), formatting.DASH),
        (formatting.memory(None), formatting.DASH),
        (formatting.memory(300 * 2**20), "300 MiB"),
        (formatting.memory(5 * 2**30), "5.0 GiB"),
        (formatting.speed(9.87), "9.9"),
        (formatting.speed(412.3), "412"),
        (formatting.count(5), "5"),
        (formatting.count(22.25), "22.2"),
        (formatting.count(732.25), "732"),
        (formatting.interval(Interval(math.nan, 1.0)), formatting.DASH),
        (formatting.listed([]), ""),
        (formatting.listed(["a"]), "a"),
        (formatting.listed(["a", "b", "c"]), "a, b and c"),
        (formatting.listed(["a, b", "c"]), "a, b; c"),
    ],
)
def test_other_formatting_functions(made, text):
    assert made == text


def test_summary_counts_runs_and_folds(study):
    text = summary(study)
    assert "99 runs: 4 methods, 5 test folds, 2 seeds, 2 label draws, 3662 test photographs" in text
    assert "5 %, 10 %, 25 %, 50 % and 100 % of the labels of aptos2019" in text


def test_statuses_of_missing_runs_are_counted_in_order(study):
    missing = [Missing("a", "not begun", ""), Missing("b", "failed", "x"), Missing("c", "not begun", "")]
    assert "3 of 102 runs have no result (1 failed and 2 not begun)" in unfinished_note(
        replace(study, missing=missing)
    )
    assert unfinished_note(replace(study, missing=[])) == ""


def test_pretraining_remarks_of_methods():
    assert Method("k", "l", "p", "ssl", {}, False).pretraining_remark == ""
    assert "unknown" in Method("k", "l", "p", "ssl", {}, None).pretraining_remark
