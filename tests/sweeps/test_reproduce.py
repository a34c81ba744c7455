"""One command from photographs to the report: told beforehand how long, stopped in order, gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drgrade.cli.reproduce import Settings, divide, main
from drgrade.errors import ConfigError
from drgrade.sweeps.cells import Cell
from drgrade.sweeps.estimate import Length, Training
from drgrade.sweeps.workload import plan_sweep, workload
from drgrade.training.build import make_photographs
from drgrade.training.run import train

TABLE = ("experiments=rotation_table", "fold=0", "label_fraction=0.5,1.0", "init=random")


@pytest.fixture
def reproduce(overrides):
    """``reproduce("a=b")``: the command on tiny runs of one fold, two fractions, from random weights."""

    def make(*more):
        return [sys.executable, "-m", "drgrade.cli.reproduce", *overrides, *TABLE, "measure=0.5", *more]

    return make


def call(command, folder, status=0):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_from_photographs_to_the_report_and_nothing_twice(reproduce, tmp_path):
    said = call(reproduce(), tmp_path).stdout
    row = next(line for line in said.splitlines() if line.startswith("rotation_table"))
    assert row.split()[1:3] == ["2", "0"]
    assert "2 cells, 0 finished" in said
    assert "estimated" in said.splitlines()[-1]
    (page,) = tmp_path.glob("reports/rotation_table-demo-*/report.html")
    assert str(page) in said
    assert not list(tmp_path.glob("sweeps/*/report"))
    assert not list(tmp_path.glob(".probe-*"))
    again = call(reproduce("estimate=only"), tmp_path)
    assert "Nothing is left to run." in again.stdout
    assert "measuring" not in again.stderr


@pytest.mark.slow
def test_an_estimate_alone_leaves_no_run_and_no_encoder(reproduce, tmp_path):
    done = call(reproduce("init=random,ssl", "estimate=only"), tmp_path)
    row = next(line for line in done.stdout.splitlines() if line.startswith("rotation_table"))
    assert row.split()[1:3] == ["4", "1"]  # one encoder serves both fractions
    assert done.stderr.count("measuring the speed of") == 2
    assert "Done about" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_every_cell_is_told_by_the_first_short_run(reproduce, tmp_path):
    done = call(reproduce("optimizer.lr=-1"), tmp_path, status=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "learning rate" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_table_with_a_broken_cell_is_reported_and_ends_with_status_1(reproduce, tmp_path):
    done = call(reproduce("label_fraction=1.0", "init=random,/nowhere", "estimate=none"), tmp_path, status=1)
    assert "not complete: rotation_table" in done.stderr.splitlines()[-1]
    assert list(tmp_path.glob("reports/*/report.html"))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_running(number, reproduce, tmp_path):
    process = subprocess.Popen(
        reproduce("scale.published_epochs=1000", "estimate=none"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a shell starts what is put into the background; SIGTERM has to stop it all the same.
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        if number == signal.SIGTERM
        else None,
    )
    end = time.monotonic() + 120
    while not list(tmp_path.glob("sweeps/*/init-*/checkpoints/last.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    (cell,) = tmp_path.glob("sweeps/*/init-*")
    assert '"interrupted"' in (cell / "metrics.json").read_text()
    assert not [line for line in processes() if str(tmp_path) in line]


def processes():
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if int(line.split()[0]) != os.getpid()]


def test_the_estimate_counts_what_a_run_does(overrides, compose):
    """Against what really went through the training: the clock's count."""
    changed = ("label_fraction=0.5", "protocol.frozen_epochs=1", "trainer.max_steps=5")
    sweep = plan_sweep("msssl_table", [*overrides, "fold=0", "init=random", *changed])
    (job,) = workload(sweep).cells
    cfg = compose("+experiment=msssl_table", "fold=0", "init=random", *changed)
    train(cfg)
    photographs = make_photographs(cfg)
    counts = photographs.split["subset"].value_counts()
    batch = min(cfg.data.batch_size, counts["train"])
    # 2 epochs of 2 steps; the limit of 5 steps is not reached
    assert job.training == Training(Length(2, 4 * batch, 2 * batch), 3 * counts["val"] + counts["test"])
    images = provenance(cfg)["images"]
    assert images == job.training.length.images


def provenance(cfg):

    return json.loads((Path(cfg.paths.run) / "provenance.json").read_text())


def test_pre_trainings_are_counted_by_what_they_see_and_only_if_missing(overrides, compose):
    asked = [*overrides, "fold=0,1", "label_fraction=0.5,1.0", "init=ssl"]
    for_each_fold = workload(plan_sweep("msssl_table", asked)).pretrainings
    assert len(for_each_fold) == 2
    assert len(workload(plan_sweep("msssl_table", [*asked, "pretrain_on=all"])).pretrainings) == 1
    cfg = compose("+experiment=msssl_table", "fold=0", "label_fraction=0.5", "init=ssl")
    train(cfg)
    (made,) = set(for_each_fold) - set(workload(plan_sweep("msssl_table", asked)).pretrainings)
    cfg.paths.run = str(made)
    assert provenance(cfg)["images"] == for_each_fold[made].training.length.images


def test_finished_cells_do_not_count(overrides, compose, tmp_path):
    asked = [*overrides, "fold=0", "label_fraction=1.0", "init=random"]
    sweep = plan_sweep("rotation_table", asked)
    (cell,) = sweep.waiting
    assert isinstance(cell, Cell)
    train(compose("+experiment=rotation_table", *asked[-3:], run=str(sweep.plan.folder / cell.name)))
    assert plan_sweep("rotation_table", asked).waiting == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("experiments=rotation_tabel", "did you mean rotation_table"),
        ("experiments=", "names none"),
        ("+experiment=rotation_table", "experiments="),
        ("measure=0", "not above 0"),
        ("estimate=ony", "did you mean only"),
        ("hydra.sweep.dir=/tmp/x", "folder of its own"),
        ("-m", "name=value"),
        ("folder", "name=value"),
    ],
)
def test_a_command_that_cannot_be_is_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        divide(["data=demo", argument])


def test_own_settings_are_told_from_those_of_the_trainings():
    settings, overrides = divide(["data=demo", "seed=0,1", "estimate=only", "~callbacks.progress"])
    assert settings == Settings(estimate="only")
    assert overrides == ["data=demo", "seed=0,1", "~callbacks.progress"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("label_fracton=0.1", "did you mean label_fraction"),
        ("data=idird", "did you mean idrid"),
        ("task=pretext", "a table is made of grading runs"),
        ("experiments=rotation_search", "is a search"),
        ("data.root=???", "data.root is not given"),
        ("resume=auto", "goes on by itself"),
    ],
)
def test_a_mistake_is_one_line(argument, words, overrides, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce", *overrides, *TABLE, argument])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line
