"""Cells of a sweep: names, progress, the list of cells and the table of failures."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import DataError
from drgrade.sweeps.cells import (
    SWEEP,
    Cell,
    cell_name,
    failures,
    progress,
    read_sweep,
    sweep_name,
    write_sweep,
)


def test_cell_name():
    values = {"init": "ssl", "label_fraction": "0.1", "optimizer.lr": "1e-3", "+experiment": "msssl_10pct"}
    assert cell_name(values) == "init-ssl_label_fraction-0.1_lr-1e-3_experiment-msssl_10pct"
    assert cell_name({}) == "single"


@given(st.text(min_size=1), st.text(min_size=1))
def test_cell_names_need_no_quoting_and_differ(first, second):
    names = [cell_name({"init": value}) for value in (first, second)]
    assert all(re.fullmatch(r"[\w.+-]+", name) and len(name) < 100 for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_progress_is_read_from_the_folder(tmp_path):
    assert progress(tmp_path / "nowhere").status == "not begun"
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert progress(tmp_path).status == "unfinished"
    (tmp_path / "metrics.json").write_text(json.dumps({"status": "failed", "error": "DataError: no grades"}))
    assert progress(tmp_path).reason == "DataError: no grades"
    (tmp_path / "metrics.json").write_text('{"status": "fini')
    assert progress(tmp_path).status == "failed"
    assert "remove it" in progress(tmp_path).reason


def test_failures_lists_unfinished_cells_with_reasons(tmp_path):
    cells = [Cell(name, ()) for name in ("good", "bad", "later")]
    for name, record in {
        "good": {"status": "finished"},
        "bad": {"status": "failed", "error": "ConfigError: no such\nthing"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(record))
    table = failures(tmp_path, cells)
    assert "2 of 3 cells are not finished" in table
    assert re.search(r"bad +failed +ConfigError: no such thing", table)
    assert re.search(r"later +not begun", table)
    assert "good" not in table
    assert failures(tmp_path, cells[:1]) == ""
    told = failures(tmp_path, cells, {"good": "x", "bad": "no such\nthing", "later": "seed=-1 is not ..."})
    assert re.search(r"bad +failed +ConfigError: no such thing", told)
    assert re.search(r"later +failed +seed=-1 is not", told)
    stale = failures(tmp_path, cells, {"bad": "another process is using"})
    assert re.search(r"bad +failed +another process is using", stale)


def test_write_sweep_keeps_cells_of_earlier_commands(tmp_path):
    write_sweep(tmp_path, "table", ["train.py", "seed=0"], [Cell("a", ("seed=0",))])
    write_sweep(tmp_path, "table", ["train.py", "seed=0,1"], [Cell("a", ("seed=0",)), Cell("b", ("seed=1",))])
    assert read_sweep(tmp_path) == [Cell("a", ("seed=0",)), Cell("b", ("seed=1",))]
    (tmp_path / SWEEP).write_text("[]")
    with pytest.raises(DataError, match=r"sweep\.json"):
        read_sweep(tmp_path)


def test_sweep_name_depends_on_settings_that_change_results():
    plain = sweep_name("rotation_table", "idrid", [("+experiment", "rotation_table"), ("data", "idrid")])
    assert plain == "rotation_table-idrid"
    # An axis, another device, another logger, another place: the same sweep.
    same = [
        ("fold", "0"),
        ("trainer", "ddp"),
        ("trainer.devices", "4"),
        ("logger", "csv"),
        ("data.root", "/x"),
    ]
    assert sweep_name("rotation_table", "idrid", same) == plain
    assert sweep_name("rotation_table", "idrid", [("scale", "small")]) == f"{plain}-small"
    other = sweep_name("rotation_table", "idrid", [("optimizer.lr", "1e-3"), ("head", "corn")])
    assert other.startswith(f"{plain}-")
    assert other == sweep_name("rotation_table", "idrid", [("head", "corn"), ("optimizer.lr", "1e-3")])
    assert other != sweep_name("rotation_table", "idrid", [("head", "corn"), ("optimizer.lr", "1e-4")])
    assert sweep_name("rotation_table", "idrid", [("trainer.max_epochs", "3")]) != plain
