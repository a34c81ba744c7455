"""``drgrade report`` from the command line, on folders of runs."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from synthetic import fail_run, remove_run, write_runs

from drgrade.cli.report import main, make_report
from drgrade.errors import ConfigError, DataError
from drgrade.settings import ReportSettings


def report(runs, **settings):
    return make_report(ReportSettings.compose(runs=runs, **{"resamples": 100, **settings}))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Write a sweep of two methods, one fraction and three folds without two of its runs."""
    folder = tmp_path_factory.mktemp("sweeps") / "study"
    runs = write_runs(folder, fractions=(0.1,))
    fail_run(runs[1])
    remove_run(runs[-1])
    return folder


@pytest.fixture(scope="module")
def reported(sweep):
    """Run the command in a subprocess."""
    command = [
        sys.executable,
        "-c",
        "from drgrade.cli import main; main()",
        "report",
        str(sweep),
        "resamples=100",
        "published=all",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_default_folder_is_in_the_sweep_and_printed_last(reported, sweep):
    page = sweep / "report" / "report.html"
    assert reported.stdout.splitlines()[-1] == str(page)
    assert page.is_file()
    assert reported.stderr == ""


def test_main_table_is_printed(reported):
    head = next(line for line in reported.stdout.splitlines() if line.startswith("method "))
    names = ["method", "labels", "folds", "trainings", "min", "mean", "max", "95", "%", "sd"]
    assert head.split() == [*names, "training", "labels", "labels", "used"]
    assert "(published)" in reported.stdout


def test_unfinished_sweep_is_reported(reported, sweep):
    assert "2 of 6 runs have no result (1 failed and 1 not begun)" in reported.stdout
    assert "2 of 6 runs have no result" in (sweep / "report" / "report.html").read_text()


def test_numbers_agree_with_stored_predictions(reported, sweep):
    folds = pd.read_csv(sweep / "report" / "folds.csv")
    runs = json.loads((sweep / "report" / "study.json").read_text())["runs"]
    expected = []
    for run in runs:
        stored = pd.read_csv(Path(run) / "predictions.csv")
        expected.append(cohen_kappa_score(stored["grade"], stored["predicted"], weights="quadratic"))
    assert sorted(folds["qwk"]) == pytest.approx(sorted(expected))
    assert len(folds) == 4


def test_title_and_folder_can_be_set(reported, sweep, tmp_path, capsys):
    report(sweep, out=tmp_path / "here", title="A & B", published="all")
    assert "<title>A &amp; B</title>" in (tmp_path / "here" / "report.html").read_text()
    assert capsys.readouterr().out.startswith("A & B\n")
    # The folder of the earlier report is not read as a run.
    assert (tmp_path / "here" / "table.csv").read_text() == (sweep / "report" / "table.csv").read_text()


def test_several_folders_are_reported_in_outputs(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [folder for folder in sorted(sweep.iterdir()) if (folder / "metrics.json").exists()]
    page = report(folders[:2])
    assert page.parent.parent == Path("outputs/reports")


def test_file_as_target_folder_is_an_error(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        report(sweep, out=tmp_path / "file")


@pytest.mark.parametrize(
    ("folders", "settings", "message"),
    [
        ([], {}, r"runs=\[\] is not allowed"),
        (["nowhere"], {}, "nowhere does not exist"),
        ([__file__], {}, "is not a folder"),
        (["."], {"resamples": 10}, "resamples=10 is not allowed: whole number ≥ 100"),
        (["."], {"seed": -1}, "seed=-1 is not allowed: whole number ≥ 0"),
    ],
)
def test_invalid_settings_are_errors(folders, settings, message):
    with pytest.raises(ConfigError, match=message):
        report(folders, **settings)


def test_folder_without_runs_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="no finished grading run"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_line_errors_are_one_line(call_main):
    status, _, err = call_main(main, "drgrade", "tilte=x")
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "did you mean title" in err


def test_help_names_every_setting(call_main):
    _, shown, _ = call_main(main, "drgrade", "--help")
    for name in ("RUN_OR_SWEEP", "out=null", "title=null", "resamples=10000", "seed=0"):
        assert name in shown
