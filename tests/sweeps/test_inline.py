"""Sweeps of probes in one process: the same folders, failures and resuming as with one process per cell."""

import pandas as pd
import pytest
import yaml

from drgrade.sweeps.cells import read_sweep


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


def test_inline_cells_equal_those_of_processes_and_are_skipped_when_finished(
    sweep, call_here, tmp_path, metrics
):
    few = ("fold=1", "label_fraction=0.5")
    output = call_here(sweep(*few, "protocol=knn,majority"))
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert "one after the other in this process" in output
    assert "[2/2]" in output
    assert "photographs: train" not in output  # it is in the cell's log
    assert {cell.name for cell in read_sweep(folder)} == {path.name for path in folder.glob("protocol-*")}
    cell = folder / "protocol-knn_init-random_label_fraction-0.5_fold-1_seed-0"
    assert "photographs: train" in (cell / "output.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert "3 cells, 2 finished" in call_here(sweep(*few, "protocol=knn,majority,linear"))
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    own = tmp_path / "own"
    call_here(sweep(*few, "protocol=knn", f"hydra.sweep.dir={own}", launcher="local"))
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


def test_failed_cell_does_not_stop_the_others(sweep, call_here, tmp_path, metrics):
    cells = ("protocol=knn", "fold=0", "label_fraction=1.0", "init=/nowhere,random")
    output = call_here(sweep(*cells), status=1)
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert metrics(folder / "init-random_label_fraction-1.0_fold-0_seed-0")["status"] == "finished"
    table = output[output.index("1 of 2 cells are not finished") :]
    assert "no such file or folder" in table
    assert table.rstrip().splitlines()[-1].startswith("error: the sweep is not complete")
    (failed,) = folder.glob("init-nowhere*")
    assert "error: init=/nowhere" in (failed / "output.log").read_text()
    assert "2 cells, 1 finished" in call_here(sweep(*cells), status=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["protocol=matched,knn"], "protocol=matched"),
        (["task=pretext"], "task=pretext"),
        (["+nobody=1"], "there is no setting 'nobody'"),
    ],
)
def test_inline_launcher_refuses_cells_that_train(settings, said, sweep, call_here, tmp_path):
    cells = ("protocol=knn", "fold=0", "label_fraction=1.0")
    output = call_here(sweep(*cells, *settings), status=1)
    assert said in output
    assert not list(tmp_path.glob("sweeps/*/*/metrics.json"))


@pytest.mark.slow
def test_probe_table_writes_its_report(sweep, call_here, tmp_path):
    call_here(sweep("fold=0,1", "label_fraction=0.5,1.0", "hydra.sweeper.report=true"))
    (folder,) = (tmp_path / "sweeps").iterdir()
    table = pd.read_csv(folder / "report" / "table.csv")
    measured = table[table["folds"] == 2]
    assert len(measured) == 4
    assert set(measured["protocol"]) == {"linear", "knn"}
    assert set(measured["label_fraction"]) == {0.5, 1.0}
