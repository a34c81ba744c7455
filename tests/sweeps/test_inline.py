"""Sweeps of probes in one process: folders, failures and resuming as with a process for each cell."""

import json
import sys

import pandas as pd
import pytest
import yaml

from drgrade.cli.train import main
from drgrade.sweeps.cells import read_sweep
from drgrade.sweeps.forecast import forecast
from drgrade.sweeps.workload import plan_sweep, workload


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """``call(command, status=1)``: what a command says; in this process, to save time."""

    def run(command, status=0):
        monkeypatch.setattr(sys, "argv", command[1:])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert code == status, out + err
        return out + err

    return run


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def sweep(command):
    """``sweep("a=1,2")``: the command of a tiny sweep of probes."""

    def make(*more, launcher="inline"):
        return command(
            "+experiment=probe_table",
            "encoder=timm",
            "encoder.name=test_resnet",
            f"hydra/launcher={launcher}",
            "hydra.sweeper.report=false",
            *more,
        )

    return make


def test_cells_are_those_of_processes_of_their_own_and_finished_ones_are_left_alone(sweep, call, tmp_path):
    few = ("fold=1", "label_fraction=0.5,1.0", "protocol=knn,majority")
    output = call(sweep(*few))
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert "one after the other in this process" in output
    assert "[4/4]" in output
    assert "photographs: train" not in output  # what a cell says goes into its folder
    assert {cell.name for cell in read_sweep(folder)} == {path.name for path in folder.glob("protocol-*")}
    cell = folder / "protocol-knn_init-random_label_fraction-0.5_fold-1_seed-0"
    assert "photographs: train" in (cell / "output.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert "4 cells, 4 finished" in call(sweep(*few))
    assert "6 cells, 4 finished" in call(
        sweep("fold=1", "label_fraction=0.5,1.0", "protocol=knn,majority,linear")
    )
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    own = tmp_path / "own"
    call(sweep("fold=1", "label_fraction=0.5", "protocol=knn", f"hydra.sweep.dir={own}", launcher="local"))
    (alone,) = own.glob("init-*")
    assert metrics(alone) == metrics(cell)
    for name in ("predictions.csv", "split.csv", "confusion.csv", "photographs.json"):
        assert (alone / name).read_bytes() == (cell / name).read_bytes()
    first, second = (yaml.safe_load((each / "config.yaml").read_text()) for each in (alone, cell))
    for config in (first, second):
        config.pop("sweep")
        config.pop("paths")
        config["logger"] = None
    assert first == second


def test_a_cell_that_fails_does_not_stop_the_others_and_is_named_in_the_end(sweep, call, tmp_path):
    cells = ("protocol=knn", "fold=0", "label_fraction=1.0", "init=/nowhere,random")
    output = call(sweep(*cells), status=1)
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert metrics(folder / "init-random_label_fraction-1.0_fold-0_seed-0")["status"] == "finished"
    table = output[output.index("1 of 2 cells are not finished") :]
    assert "no such file or folder" in table
    assert table.rstrip().splitlines()[-1].startswith("error: the sweep is not complete")
    assert "Traceback" not in output
    (failed,) = folder.glob("init-nowhere*")
    assert "error: init=/nowhere" in (failed / "output.log").read_text()
    assert "2 cells, 1 finished" in call(sweep(*cells), status=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["protocol=matched,knn"], "protocol=matched"),
        (["task=pretext"], "task=pretext"),
        (["+nobody=1"], "nothing reads 'nobody'"),
    ],
)
def test_what_is_no_probe_is_refused_before_anything_runs(settings, said, sweep, call, tmp_path):
    cells = ("protocol=knn", "fold=0", "label_fraction=1.0")
    output = call(sweep(*cells, *settings), status=1)
    assert said in output
    assert not list(tmp_path.glob("sweeps/*/*/metrics.json"))


@pytest.mark.slow
def test_a_whole_table_makes_its_report(sweep, call, tmp_path):
    call(sweep("fold=0,1", "label_fraction=0.5,1.0", "hydra.sweeper.report=true"))
    (folder,) = (tmp_path / "sweeps").iterdir()
    table = pd.read_csv(folder / "report" / "table.csv")
    measured = table[table["folds"] == 2]
    assert len(measured) == 4
    assert set(measured["protocol"]) == {"linear", "knn"}
    assert set(measured["label_fraction"]) == {0.5, 1.0}


def test_an_estimate_counts_probes_and_measures_none_of_them(overrides):
    found = plan_sweep("probe_table", [*overrides, "fold=0,1", "label_fraction=1.0"])
    load = workload(found)
    assert (load.probes, list(load.cells), dict(load.pretrainings)) == (4, [], {})
    assert found.inline
    assert found.here
    (estimate,) = forecast([found], 1.0)
    assert (estimate.cells, estimate.seconds) == (4, 4.0)
    pretrained = workload(
        plan_sweep("probe_table", [*overrides, "fold=0,1", "label_fraction=1.0", "init=ssl"])
    )
    assert len(pretrained.pretrainings) == 2
