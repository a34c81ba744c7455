"""Search for runs, and errors in damaged runs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic import (
    RANDOM,
    ROTATION,
    FakeMethod,
    change_config,
    change_json,
    fail_run,
    remove_run,
    stop_run,
    write_runs,
)

from drgrade.errors import DataError
from drgrade.reporting.study import build_study, find_cells
from drgrade.runs.reader import LeftOut, Run, RunLocation, Unfinished, read_run


@pytest.fixture
def run(tmp_path) -> Path:
    """A single finished run."""
    return write_runs(tmp_path / "runs", [RANDOM], [1.0], folds=[0, 1, 2], sweep=None)[0]


def edit(path: Path, change) -> None:
    """Change a table as text."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table).to_csv(path, index=False)


def test_runs_are_found_at_any_depth_and_each_once(tmp_path):
    runs = write_runs(tmp_path / "deep" / "in" / "study", [RANDOM], [0.1, 1.0])
    single = write_runs(tmp_path / "single", [ROTATION], [1.0], sweep=None)
    (runs[0] / "checkpoints").mkdir()
    (runs[0] / "checkpoints" / "config.yaml").write_text("a: 1")
    (tmp_path / "wandb" / "run").mkdir(parents=True)
    (tmp_path / "wandb" / "run" / "config.yaml").write_text("a: 1")
    cells, commands = find_cells([tmp_path, runs[1], tmp_path / "deep" / ".." / "single"])
    assert [cell.folder.resolve() for cell in cells] == sorted([*runs, *single])
    assert commands == ["train.py -m +experiment=study"]


def test_run_given_before_its_sweep_belongs_to_the_sweep(tmp_path):
    runs = write_runs(tmp_path / "study", [RANDOM], [1.0])
    for folders in ([runs[0], tmp_path], [tmp_path, runs[0]]):
        cell = next(cell for cell in find_cells(folders)[0] if cell.folder == runs[0])
        assert cell.sweep == tmp_path / "study"
        assert "init=random" in cell.overrides


def test_image_ids_and_folds_stay_text(run):
    read = read_run(RunLocation(run))
    assert isinstance(read, Run)
    assert read.image_ids.tolist() == sorted(pd.read_csv(run / "predictions.csv", dtype=str)["image_id"])
    assert all(len(image_id) == 4 for image_id in read.image_ids)
    assert (read.fold, read.seed, read.label_fraction) == ("0", 0, 1.0)


def test_photographs_may_be_called_na_or_null(run):
    names = {"0000": "NA", "0001": "null", "0002": "nan", "0003": "1e5"}
    for file in ("split.csv", "predictions.csv"):
        edit(run / file, lambda table: table.assign(image_id=table["image_id"].replace(names)))
    read = read_run(RunLocation(run))
    assert isinstance(read, Run)
    assert set(read.split["image_id"]) >= set(names.values())


def test_order_of_lines_does_not_matter(run):
    before = read_run(RunLocation(run))
    for file in ("split.csv", "predictions.csv"):
        edit(run / file, lambda table: table.sample(frac=1, random_state=0))
    after = read_run(RunLocation(run))
    for name in ("image_ids", "groups", "grades", "predicted", "probabilities"):
        assert np.array_equal(getattr(before, name), getattr(after, name))


def test_photographs_without_a_grade_are_read(run):
    edit(
        run / "split.csv",
        lambda table: table.assign(grade=table["grade"].where(table["subset"] == "test", "")),
    )
    assert isinstance(read_run(RunLocation(run)), Run)


DAMAGES = {
    "a photograph lacks": (
        "predictions.csv",
        lambda table: table.iloc[1:],
        "1 missing, 0 not test photographs",
    ),
    "a photograph is there twice": (
        "predictions.csv",
        lambda table: pd.concat([table, table.iloc[:1]]),
        "some are repeated",
    ),
    "a photograph too many": (
        "predictions.csv",
        lambda table: pd.concat([table, table.iloc[:1].assign(image_id="x")]),
        "0 missing, 1 not test",
    ),
    "another grade": (
        "split.csv",
        lambda table: table.assign(grade=[(int(grade) + 1) % 5 for grade in table["grade"]]),
        "other grades than split.csv",
    ),
    "no such grade": ("predictions.csv", lambda table: table.assign(predicted="5"), "outside 0 to 4"),
    "half a grade": ("predictions.csv", lambda table: table.assign(predicted="1.5"), "outside 0 to 4"),
    "probabilities that are no numbers": (
        "predictions.csv",
        lambda table: table.assign(p3="inf"),
        "not numbers",
    ),
    "a probability below 0": ("predictions.csv", lambda table: table.assign(p3="-0.5"), "negative"),
    "probabilities of no whole": ("predictions.csv", lambda table: table.assign(p3="7.5"), "sum is not 1"),
    "words instead of numbers": ("predictions.csv", lambda table: table.assign(p3="often"), "damaged"),
    "a column lacks": ("predictions.csv", lambda table: table.drop(columns="p4"), "damaged"),
    "predictions were changed": (
        "predictions.csv",
        lambda table: table.assign(predicted=table["grade"]),
        "predictions.csv gives 1.000000",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_table_is_an_error_with_folder_and_remedy(run, damage):
    file, change, message = DAMAGES[damage]
    edit(run / file, change)
    with pytest.raises(DataError, match=message) as error:
        read_run(RunLocation(run))
    assert str(run) in str(error.value)
    assert "again" in str(error.value)


@pytest.mark.parametrize("file", ["config.yaml", "split.csv", "predictions.csv"])
def test_finished_run_with_a_missing_file_is_an_error(run, file):
    (run / file).unlink()
    with pytest.raises(DataError, match=file):
        read_run(RunLocation(run))


def test_finished_run_without_a_test_is_an_error(run):
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test/qwk"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataError, match="no test/qwk"):
        read_run(RunLocation(run))


@pytest.mark.parametrize("name", ["data", "data_hash", "split_hash"])
def test_finished_run_whose_record_lacks_something_is_an_error(run, name):
    change_json(run / "metrics.json", **{name: None})
    with pytest.raises(DataError, match=f"metrics.json.* has no {name}"):
        read_run(RunLocation(run))


def test_non_numeric_qwk_is_an_error(run):
    change_json(run / "metrics.json", **{"test/qwk": "good"})
    with pytest.raises(DataError, match="test/qwk=good"):
        read_run(RunLocation(run))


@pytest.mark.parametrize("name", ["label_fraction", "fold", "seed", "init", "protocol", "data", "split"])
def test_finished_run_whose_config_lacks_something_is_an_error(run, name):
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config[name]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=f"config.yaml has no .*{name}"):
        read_run(RunLocation(run))


@pytest.mark.parametrize(("name", "value"), [("label_fraction", 0.5), ("fold", 2), ("seed", 9)])
def test_config_that_contradicts_the_record_is_an_error(run, name, value):
    change_config(run, **{name: value})
    with pytest.raises(DataError, match=f"{name} is {value} in config.yaml and"):
        read_run(RunLocation(run))


def test_non_numeric_cost_is_an_error(run):
    change_json(run / "provenance.json", seconds="long")
    with pytest.raises(DataError, match="seconds is not a number"):
        read_run(RunLocation(run))


def test_failed_run_may_lack_its_cell(run):
    fail_run(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["fold"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = read_run(RunLocation(run))
    assert isinstance(found, Unfinished)
    assert found.config is None


@pytest.mark.parametrize("file", ["metrics.json", "provenance.json", "config.yaml"])
def test_unreadable_file_is_named(run, file):
    (run / file).write_text("{,")
    with pytest.raises(DataError, match=file):
        read_run(RunLocation(run))


def test_unfinished_runs_report_their_progress(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [0.1, 1.0])
    fail_run(runs[0], "RuntimeError: out of memory")
    fail_run(runs[1], status="interrupted")
    stop_run(runs[2])
    remove_run(runs[3])
    read = [read_run(cell) for cell in find_cells([tmp_path])[0]]
    unfinished = {each.location.folder: each for each in read if isinstance(each, Unfinished)}
    assert [unfinished[run].status for run in runs[:4]] == [
        "failed",
        "interrupted",
        "unfinished",
        "not begun",
    ]
    assert unfinished[runs[0]].reason == "RuntimeError: out of memory"
    assert len(unfinished) == 4


def test_cell_that_has_only_begun_to_prepare_is_unfinished(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [1.0])
    shutil.rmtree(runs[0])
    (runs[0] / ".hydra").mkdir(parents=True)
    (runs[0] / ".hydra" / "config.yaml").write_text("task: grading\nseed: ${x}\n")
    read = read_run(next(cell for cell in find_cells([tmp_path])[0] if cell.folder == runs[0]))
    assert isinstance(read, Unfinished)
    assert read.status == "unfinished"


def test_other_folders_are_left_out_with_a_note(tmp_path):
    runs = write_runs(tmp_path / "runs", [RANDOM], [1.0], folds=(0, 1, 2, 3, 4), sweep=None)
    change_config(runs[0], task="pretext")
    change_config(runs[1], test=False)
    change_json(runs[2] / "metrics.json", evaluated="runs/x")
    change_config(runs[3], trainer={"limit_train_batches": 1})
    other = tmp_path / "prepared"
    (other / ".hydra").mkdir(parents=True)
    (other / ".hydra" / "config.yaml").write_text("data: {name: demo}\n")
    read = [read_run(cell) for cell in find_cells([tmp_path])[0]]
    assert [each.why.split(" (")[0] for each in read if isinstance(each, LeftOut)] == [
        "folders of other commands",
        "pre-training runs",
        "runs that were not to be tested",
        "evaluations of other runs",
        "trial runs on a part of their photographs",
    ]
    study = build_study([tmp_path], resamples=20)
    assert len(study.runs) == 1
    assert not study.missing
    assert sum(note.startswith("Left out") for note in study.notes) == 5


def test_failed_pre_training_is_not_a_missing_run(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [1.0], sweep=None)
    fail_run(runs[0])
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    (runs[0] / "config.yaml").unlink()
    (runs[0] / ".hydra").mkdir()
    (runs[0] / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**config, "task": "pretext"}))
    assert not build_study([tmp_path], resamples=20).missing


def test_error_without_finished_runs_lists_the_others(tmp_path):
    for run in write_runs(tmp_path / "study", [RANDOM], [1.0]):
        fail_run(run)
    with pytest.raises(DataError, match=r"no finished grading run .*3 failed"):
        build_study([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\(no runs\)"):
        build_study([tmp_path / "empty"])
    with pytest.raises(DataError, match="is not a folder"):
        build_study([tmp_path / "nowhere"])


def test_broken_list_of_cells_is_an_error(sweep):
    (sweep / "sweep.json").write_text("[]")
    with pytest.raises(DataError, match=r"sweep\.json"):
        build_study([sweep])


def test_older_runs_without_cost_are_read(tmp_path):
    runs = write_runs(tmp_path, [FakeMethod()], [1.0], folds=(0, 1, 2))
    for run in runs:
        provenance = json.loads((run / "provenance.json").read_text())
        kept = {name: provenance[name] for name in ("command", "versions", "commit", "seconds", "images")}
        (run / "provenance.json").write_text(json.dumps(kept))
    (row,) = build_study([tmp_path], resamples=20).rows
    assert (row.seconds, row.images_per_second, row.peak_memory) == (60, kept["images"] / 60, None)
    for run in runs:
        (run / "provenance.json").unlink()
    (row,) = build_study([tmp_path], resamples=20).rows
    assert math.isnan(row.seconds)
    assert math.isnan(row.images_per_second)
