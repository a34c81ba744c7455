"""Calibration in reports agrees with the metrics of the runs and with naive resampling."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import RANDOM, ROTATION, FakeMethod, calibrate_run, write_runs

from drgrade.errors import DataError
from drgrade.metrics.functional import brier_score, negative_log_likelihood
from drgrade.models.calibration import TARGET_SENSITIVITIES, calibrated_metrics
from drgrade.reporting.checks import collect_folds
from drgrade.reporting.csv_writer import csv_files
from drgrade.reporting.figures.canvas import style
from drgrade.reporting.latex import render_latex
from drgrade.reporting.statistics import resample_calibrated
from drgrade.reporting.study import build_study, find_cells
from drgrade.reporting.tables import all_tables, operating_points_table
from drgrade.reporting.writer import draw_figures, render_markdown, render_page
from drgrade.runs.reader import read_run
from drgrade.runs.run_dir import read_calibration
from drgrade.stats.bootstrap import draws

NAMES = {"calibration", "thresholds", "operating_points"}


@pytest.fixture
def calibrated(tmp_path):
    """Folders of two folds and two seeds of one method."""
    runs = write_runs(tmp_path, [ROTATION], [1.0], folds=[0, 1], seeds=[0, 1], photographs=120)
    for seed, run in enumerate(runs):
        calibrate_run(run, seed)
    return runs


def study_of(*folders):
    return build_study(list(folders), resamples=100)


def own_figures(run):
    table = pd.read_csv(run / "predictions.csv")
    probabilities = torch.tensor(table[[f"p{grade}" for grade in range(5)]].to_numpy())
    return calibrated_metrics(probabilities, torch.tensor(table["grade"].to_numpy()), read_calibration(run))


def test_calibration_results_are_means_over_folds(calibrated):
    (row,) = study_of(calibrated[0].parent).rows
    own = [own_figures(run) for run in calibrated]
    found = row.calibrated
    for name, figure in (
        ("nll_calibrated", found.nll.after),
        ("brier_calibrated", found.brier.after),
        ("ece_calibrated", found.ece),
        ("qwk_thresholds", found.qwk.after),
    ):
        assert figure == pytest.approx(np.mean([each[name] for each in own]))
    assert found.nll.before == pytest.approx(row.metrics["nll"])
    assert found.brier.before == pytest.approx(row.metrics["brier"])
    assert found.qwk.before == pytest.approx(row.mean.value)
    assert found.qwk.difference.value == pytest.approx(found.qwk.after - row.mean.value)
    temperatures = [read_calibration(run).temperature for run in calibrated]
    assert found.temperatures == {
        "0": pytest.approx(np.mean(temperatures[:2])),
        "1": pytest.approx(np.mean(temperatures[2:])),
    }


def test_operating_points_pool_the_photographs_of_all_runs(calibrated):
    (row,) = study_of(calibrated[0].parent).rows
    for point, target in zip(row.calibrated.points, TARGET_SENSITIVITIES, strict=True):
        referred, positive = [], []
        for run in calibrated:
            table, calibration = pd.read_csv(run / "predictions.csv"), read_calibration(run)
            probabilities = torch.tensor(table[[f"p{grade}" for grade in range(5)]].to_numpy())
            scores = calibration.probabilities(probabilities)[:, 2:].sum(dim=1).numpy()
            referred.append(scores >= calibration.point(target).threshold)
            positive.append(table["grade"].to_numpy() >= 2)
        referred, positive = np.concatenate(referred), np.concatenate(positive)
        assert point.target == target
        assert point.sensitivity.value == pytest.approx(referred[positive].mean())
        assert point.specificity.value == pytest.approx((~referred)[~positive].mean())
        assert point.sensitivity.interval.low <= point.sensitivity.value <= point.sensitivity.interval.high


def test_resamples_equal_metrics_of_repeated_photographs(calibrated):
    runs = [read_run(cell) for cell in find_cells([calibrated[0].parent])[0]]
    fold = collect_folds(runs)["0"]
    (run, *_) = [each for each in runs if each.fold == "0"]
    (found,) = resample_calibrated(fold, [run], 20, seed=3)
    for number, counts in enumerate(np.concatenate(list(draws(fold, 20, seed=3)))):
        rows = np.repeat(np.arange(len(fold.grades)), counts[fold.groups].astype(int))
        probabilities, grades = torch.tensor(run.probabilities[rows]), torch.tensor(fold.grades[rows])
        naive = calibrated_metrics(probabilities, grades, run.calibration)
        samples = found.samples
        raw = negative_log_likelihood(probabilities, grades), brier_score(probabilities, grades)
        assert samples.nll[number] == pytest.approx([raw[0], naive["nll_calibrated"]])
        assert samples.brier[number] == pytest.approx([raw[1], naive["brier_calibrated"]])
        assert samples.qwk[number] == pytest.approx(naive["qwk_thresholds"])
        rates = samples.hits[number] / samples.totals[number][:, None]
        assert rates[0].tolist() == pytest.approx(
            [naive[f"sensitivity_at_{each:g}"] for each in TARGET_SENSITIVITIES]
        )
        assert rates[1].tolist() == pytest.approx(
            [naive[f"specificity_at_{each:g}"] for each in TARGET_SENSITIVITIES]
        )


def test_runs_without_calibration_are_reported(tmp_path):
    write_runs(tmp_path, [ROTATION], [1.0])
    study = study_of(tmp_path)
    assert study.rows[0].calibrated is None
    assert not NAMES & {table.name for table in all_tables(study)}
    assert not {"calibrated.csv", "operating_points.csv"} & csv_files(study).keys()
    text = "No run was calibrated: the run was made before runs were calibrated; run it again."
    with style():
        figures = draw_figures(study)
        assert text in render_page(study, figures)
        assert text in render_markdown(study, figures)


def test_uncalibrated_rows_have_dashes_and_a_reason(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0], folds=[0, 1])
    for run in runs[:3]:
        calibrate_run(run)
    tables = {table.name: table for table in all_tables(study_of(tmp_path))}
    for name in NAMES:
        lines = [line for group in tables[name].groups for line in group.lines]
        assert set(lines[-1][1:]) == {"\N{EN DASH}"}
        assert "\N{EN DASH}" not in lines[0]
        assert "made before runs were calibrated" in tables[name].remarks[0]


def test_all_writers_report_the_calibration_of_a_single_run(calibrated):
    study = study_of(calibrated[0])
    with style():
        figures = draw_figures(study)
        page, text = render_page(study, figures), render_markdown(study, figures)
    for written in (page, text, render_latex(study)):
        assert "Operating points for referable DR" in written
    assert "calibrated on validation photographs" in page
    points = pd.read_csv(io.StringIO(csv_files(study)["operating_points.csv"]))
    assert points["wanted"].tolist() == list(TARGET_SENSITIVITIES)
    own = own_figures(calibrated[0])
    assert points["sensitivity"].tolist() == pytest.approx(
        [own[f"sensitivity_at_{each:g}"] for each in TARGET_SENSITIVITIES]
    )
    line = pd.read_csv(io.StringIO(csv_files(study)["table.csv"])).iloc[0]
    assert line["nll_calibrated"] == pytest.approx(own["nll_calibrated"])
    assert line["nll_calibrated_change_low"] <= own["nll_calibrated"] - line["nll"]
    assert line["brier_calibrated"] == pytest.approx(own["brier_calibrated"])


def test_many_methods_show_one_operating_point(tmp_path):
    methods = [FakeMethod(("init=random", f"head.dropout=0.{number}")) for number in range(1, 8)]
    for run in write_runs(tmp_path, methods, [1.0], folds=[0]):
        calibrate_run(run)
    study = study_of(tmp_path)
    table = operating_points_table(study)
    assert [len(group.lines) for group in table.groups] == [1] * 7
    assert {line[1] for group in table.groups for line in group.lines} == {"90 %"}
    assert any("operating_points.csv" in remark for remark in table.remarks)
    assert len(pd.read_csv(io.StringIO(csv_files(study)["operating_points.csv"]))) == 7 * len(
        TARGET_SENSITIVITIES
    )


def test_damaged_calibration_is_an_error(calibrated):
    path = calibrated[0] / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": -1}))
    with pytest.raises(DataError, match=r"calibration\.json: the calibration is damaged: the temperature"):
        study_of(calibrated[0].parent)
