"""The specifications sent to W&B agree with the metrics that runs log."""

import json
import shlex

import pytest
from omegaconf import OmegaConf
from wandb_files import offline_runs

from drgrade.cli.dashboard import main, work
from drgrade.config import compose
from drgrade.errors import ConfigError, DataError
from drgrade.sweeps.cells import Cell, write_sweep
from drgrade.training.run import train

pytest.importorskip("wandb_workspaces")

CELLS = ("init-ssl_fold-0", "init-random_fold-0", "init-random_fold-1")


@pytest.fixture
def sweep(compose, tmp_path, monkeypatch):
    """``sweep("logger=wandb")``: write a sweep of three cells: finished, unfinished, not started."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def make(*overrides):
        folder = tmp_path / "sweeps" / "table"
        write_sweep(folder, "table", ["train.py", "-m"], [Cell(name, ()) for name in CELLS])
        for name in CELLS[:2]:
            cell = folder / name
            cell.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(compose(*overrides, "sweep=table", run=name), cell / "config.yaml", resolve=True)
        (folder / CELLS[0] / "metrics.json").write_text('{"status": "finished", "test/qwk": 0.5}')
        return folder

    return make


@pytest.fixture
def written(sweep, capsys):
    """``written("logger=wandb")``: return the output of the command and both specifications."""

    def make(*overrides, **settings):
        folder = sweep(*overrides)
        work(compose("dashboard", sweep=folder, **settings))
        read = [
            json.loads((folder / "dashboard" / f"{name}.json").read_text())
            for name in ("workspace", "report")
        ]
        return capsys.readouterr().out, *read

    return make


def find(node, wanted):
    """Yield all values of a key at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == wanted:
                yield value
            yield from find(value, wanted)
    elif isinstance(node, list):
        for value in node:
            yield from find(value, wanted)


def panels(node):
    return [panel for found in find(node, "panels") if isinstance(found, list) for panel in found]


def conditions(filters):
    return {(each["key"]["name"], each["op"], each["value"]) for each in filters["filters"]}


def test_workspace_and_report_show_the_runs_of_the_sweep_only(written):
    _, workspace, report = written("logger=wandb")

    (runs,) = workspace["spec"]["section"]["runSets"]
    assert conditions(runs["filters"]) == {("group", "=", "table")}
    sets = [each for found in find(report, "runSets") for each in found]
    jobs = [conditions(each["filters"]) for each in sets]
    assert all(("group", "=", "table") in found for found in jobs)
    assert {("jobType", "=", "grading") in found for found in jobs} == {True, False}  # and the pre-training
    assert "summary:test/qwk" in runs["runFeed"]["columnOrder"]
    assert all("summary:test/qwk" in each["runFeed"]["columnOrder"] for each in sets)


def test_workspace_and_report_have_curve_confusion_and_system(written):
    _, workspace, report = written("logger=wandb")

    for spec in (workspace, report):
        shown = panels(spec)
        (curve,) = [each for each in shown if each["config"].get("metrics") == ["by_label_fraction/qwk"]]
        assert curve["config"]["xAxis"] == "label_fraction"
        assert (curve["config"]["groupAgg"], curve["config"]["groupArea"]) == ("mean", "minmax")
        (scatter,) = [each for each in shown if each["viewType"] == "Scatter Plot"]
        assert scatter["config"]["xAxis"] == "config:label_fraction.value"
        assert scatter["config"]["yAxis"] == "summary:test/qwk"
        charts = [each["config"]["panelDefId"] for each in shown if each["viewType"] == "Vega2"]
        assert charts == ["wandb/confusion_matrix/v1", *["wandb/area-under-curve/v0"] * 2]
        assert "system/gpu.0.gpu" in [name for found in find(shown, "metrics") for name in found]


def test_worst_photographs_are_shown_if_the_runs_log_them(written):
    assert "test/worst" not in json.dumps(written("logger=wandb"))
    _, workspace, report = written("logger=wandb", "logger.worst_photographs=5")
    assert "test/worst" in json.dumps(workspace)
    assert "test/worst" in json.dumps(report)


def test_panels_use_metrics_that_runs_log(compose, tmp_path, written):
    _, workspace, report = written("logger=wandb", "logger.worst_photographs=2")
    train(
        compose(
            "logger=wandb",
            "logger.worst_photographs=2",
            "sweep=table",
            run="init-ssl",
        )
    )

    (run,) = offline_runs(tmp_path / "init-ssl")
    curves = {"_runtime"}.union(*run.history)
    for spec in (workspace, report):
        for panel in panels(spec):
            config = panel["config"]
            if panel["viewType"] == "Run History Line Plot" and not config["metrics"][0].startswith(
                "system/"
            ):
                named = {*config["metrics"], config["xAxis"]}
                assert named <= curves
            if panel["viewType"] == "Vega2":
                (key,) = [each["value"] for each in _arguments(config) if each["name"] == "tableKey"]
                table = json.loads((run.folder / "files" / run.summary[f"{key}.path"]).read_text())
                assert set(config["fieldSettings"].values()) == set(table["columns"])
        (columns, *_) = find(spec, "columnOrder")
        for column in columns:
            where, name = column.split(":")
            if where == "summary":
                assert name in run.summary
            if where == "config":
                assert name.removesuffix(".value") in run.config
    assert run.config["curve"] == "densenet121, init=random, published"


def _arguments(config):
    return [each for found in find(config, "args") for each in found]


def test_offline_output_explains_how_to_publish(written):
    output, workspace, _ = written("logger=wandb", entity="clinic", project="eyes")
    assert (workspace["entity"], workspace["project"]) == ("clinic", "eyes")
    assert "1 of 3 cells finished" in output
    assert "wandb login" in output
    assert "drgrade dashboard" in output


def test_offline_runs_include_pre_training(sweep, tmp_path, capsys):
    folder, encoder = sweep("logger=wandb"), tmp_path / "encoders" / "one"
    for place in (folder / CELLS[0], encoder):
        (place / "wandb" / "offline-run-1").mkdir(parents=True)
    (folder / CELLS[0] / "provenance.json").write_text(json.dumps({"encoder": str(encoder)}))

    work(compose("dashboard", sweep=folder))

    assert (
        f"wandb sync {folder}/*/wandb/offline-run-* {encoder}/wandb/offline-run-*" in capsys.readouterr().out
    )


def test_printed_commands_quote_folders(sweep, tmp_path, capsys):
    folder = sweep("logger=wandb").rename(tmp_path / "my sweep's")
    (folder / CELLS[0] / "wandb" / "offline-run-1").mkdir(parents=True)

    work(compose("dashboard", sweep=folder))

    sync, again = (
        line for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line and "  " in line
    )
    assert sync.split()[:2] == ["wandb", "sync"]
    assert shlex.split(sync)[2:] == [f"{folder}/*/wandb/offline-run-*"]
    assert sync.endswith("/*/wandb/offline-run-*")  # outside of the quotes, or the shell would not expand it
    assert shlex.split(again) == ["drgrade", "dashboard", str(folder)]


def test_earlier_dashboard_is_replaced(sweep):
    from drgrade.reporting.dashboard import (
        PUBLISHED,
        build_report,
        build_workspace,
        read_dashboard_sweep,
        restore_ids,
    )

    folder = sweep("logger=wandb")
    found = read_dashboard_sweep(folder, entity="clinic")
    workspace, report = build_workspace(found), build_report(found)
    record = {"workspace": {"name": "nw-abc-v", "id": "w1"}, "report": {"id": "r1"}}
    (folder / PUBLISHED).write_text(json.dumps(record))
    restore_ids(workspace, report, folder)
    assert (workspace._to_model().name, workspace._to_model().id, report._to_model().id) == (
        "nw-abc-v",
        "w1",
        "r1",
    )
    (folder / PUBLISHED).write_text("{}")
    with pytest.raises(DataError, match="remove it"):
        restore_ids(workspace, report, folder)


def test_folder_without_wandb_sweep_is_an_error(sweep, tmp_path):
    with pytest.raises(DataError, match=r"has no sweep\.json"):
        work(compose("dashboard", sweep=tmp_path))
    with pytest.raises(DataError, match="logger=wandb"):
        work(compose("dashboard", sweep=sweep("logger=csv")))
    with pytest.raises(ConfigError, match="sweep is not given"):
        work(compose("dashboard"))


def test_dashboard_command(sweep, call_main):
    folder = sweep("logger=wandb")
    status, out, _ = call_main(main, "drgrade", str(folder))
    assert status == 0
    assert str(folder / "dashboard" / "report.json") in out
