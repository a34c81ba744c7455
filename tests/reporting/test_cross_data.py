"""Runs that were tested on other data sets make a matrix of training and test data sets."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from drgrade.errors import DataError
from drgrade.reporting.cross_data import cross_table
from drgrade.reporting.study import build_study
from drgrade.reporting.writer import write_report
from drgrade.stats.formatting import DASH
from tests.reporting.synthetic import ROTATION, change_config, change_json, write_runs


def add_external(run, name="messidor2", count=40, seed=0):
    """Give a run predictions for an external data set; photographs of one patient come in pairs."""
    grades = np.random.default_rng(seed).integers(0, 5, count)
    rng = np.random.default_rng([seed, *run.name.encode()])
    predicted = np.where(rng.random(count) < 0.5, grades, rng.integers(0, 5, count))
    ids = [f"{name}_{number:03d}" for number in range(count)]
    table = pd.DataFrame({"image_id": ids, "grade": grades, "predicted": predicted})
    table.to_csv(run / f"predictions_{name}.csv", index=False)
    split = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
    groups = [f"{name}:{number // 2}" for number in range(count)]
    more = pd.DataFrame({"image_id": ids, "group": groups, "grade": grades, "subset": "external"})
    pd.concat([split, more]).to_csv(run / "split.csv", index=False)
    qwk = cohen_kappa_score(grades, predicted, labels=range(5), weights="quadratic")
    change_json(run / "metrics.json", **{f"external/{name}/qwk": qwk})
    return qwk


def as_data(runs, name):
    """Turn runs into runs that were trained on another data set."""
    for run in runs:
        change_json(run / "metrics.json", data=name)
        change_config(run, data__name=name)


def test_matrix_holds_the_mean_qwk_on_each_data_set(tmp_path):
    runs = write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,))
    external = [add_external(run) for run in runs]
    study = build_study([tmp_path / "a"], resamples=200)
    own, other = study.cross
    assert (own.trained, own.tested, own.photographs) == (other.trained, own.trained, 90)
    assert own.qwk.value == pytest.approx(study.rows[0].mean.value)
    assert (other.tested, other.photographs, other.runs) == ("messidor2", 40, 3)
    assert other.qwk.value == pytest.approx(np.mean(external))
    assert other.qwk.interval.low < other.qwk.value < other.qwk.interval.high


def test_runs_share_the_resamples_of_an_external_data_set(tmp_path):
    """Twice the same predictions give the interval of one run, not a narrower one."""
    runs = write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,))
    for run in runs:
        add_external(run)
        (run / "predictions_messidor2.csv").write_text((runs[0] / "predictions_messidor2.csv").read_text())
    both = build_study([tmp_path / "a"], resamples=500).cross[1].qwk
    one = build_study([runs[0]], resamples=500).cross[1].qwk
    assert (one.value, one.interval) == (pytest.approx(both.value), both.interval)


def test_runs_trained_on_other_data_sets_are_rows_of_the_matrix_alone(tmp_path):
    for run in write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,)):
        add_external(run, "messidor2")
    others = write_runs(tmp_path / "b", methods=(ROTATION,), fractions=(1.0,), photographs=60)
    as_data(others, "messidor2")
    study = build_study([tmp_path / "a"], resamples=200, cross=[tmp_path / "b"])
    assert len(study.rows) == 1
    assert [(each.trained == "messidor2", each.tested) for each in study.cross] == [
        (False, study.cross[0].trained),
        (False, "messidor2"),
        (True, "messidor2"),
    ]
    table = cross_table(study.cross)
    assert [column.name for column in table.columns][2:] == [study.cross[0].trained, "messidor2"]
    assert table.remarks == [f"{DASH}: not tested (data.external=)."]


def test_report_without_external_data_sets_has_no_matrix(tmp_path):
    write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,))
    study = build_study([tmp_path / "a"], resamples=100)
    assert study.cross == []
    page = write_report(study, tmp_path / "report")
    assert "Across data sets</h2>" not in page.read_text()
    assert not (tmp_path / "report" / "cross_data.csv").exists()


def test_report_writes_the_matrix(tmp_path):
    for run in write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,)):
        add_external(run)
    page = write_report(build_study([tmp_path / "a"], resamples=100), tmp_path / "report")
    assert "Across data sets</h2>" in page.read_text()
    assert len(pd.read_csv(tmp_path / "report" / "cross_data.csv")) == 2


def test_runs_tested_on_different_external_photographs_are_refused(tmp_path):
    runs = write_runs(tmp_path / "a", methods=(ROTATION,), fractions=(1.0,))
    for run in runs:
        add_external(run, count=40 if run == runs[0] else 30)
    with pytest.raises(DataError, match="not tested on the same photographs of messidor2"):
        build_study([tmp_path / "a"], resamples=100)
