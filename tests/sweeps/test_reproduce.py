"""``drgrade reproduce``: from photographs to the report, with an estimate of the time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from drgrade.cli.reproduce import main, training_overrides
from drgrade.errors import ConfigError
from drgrade.runs.run_dir import write_config
from drgrade.settings import ReproduceSettings
from drgrade.sweeps.sweeper import plan_sweep

TABLE = ("experiments=rotation_table", "fold=0", "label_fraction=0.5,1.0", "init=random")


@pytest.fixture
def reproduce(overrides):
    """``reproduce("a=b")``: the command on tiny runs of one fold, two fractions, from random weights."""

    def make(*more):
        return [sys.executable, "-m", "drgrade.cli.reproduce", *overrides, *TABLE, "measure=0.5", *more]

    return make


@pytest.fixture
def reproduce_here(reproduce, call_main):
    """``reproduce_here("a=b", status=0)``: output and errors of the command, run in this process."""

    def run(*more, status=0):
        ended, out, err = call_main(main, *reproduce(*more)[2:])
        assert ended == status, out + err
        return out, err

    return run


@pytest.mark.slow
def test_reproduce_estimates_runs_and_reports(reproduce_here, tmp_path):
    out, err = reproduce_here("label_fraction=1.0", "init=random,/nowhere", status=1)
    row = next(line for line in out.splitlines() if line.startswith("rotation_table"))
    assert row.split()[1:3] == ["2", "0"]
    assert "2 cells, 0 finished" in out
    assert "estimated" in out.splitlines()[-1]
    assert "not complete: rotation_table" in err.splitlines()[-1]
    (page,) = tmp_path.glob("reports/rotation_table-demo-*/report.html")
    assert str(page) in out
    assert not list(tmp_path.glob("sweeps/*/report"))
    assert not list(tmp_path.glob(".probe-*"))
    out, err = reproduce_here("label_fraction=1.0", "estimate=only")
    assert "Nothing is left to run." in out
    assert "measuring" not in err


@pytest.mark.slow
def test_estimate_leaves_no_files(reproduce_here, tmp_path):
    out, err = reproduce_here("init=random,ssl", "estimate=only")
    row = next(line for line in out.splitlines() if line.startswith("rotation_table"))
    assert row.split()[1:3] == ["4", "1"]  # one encoder serves both fractions
    assert err.count("measuring the speed of") == 2
    assert "Done about" in out
    assert list(tmp_path.iterdir()) == []


def test_short_run_finds_errors_of_all_cells(reproduce_here, tmp_path):
    _, err = reproduce_here("label_fraction=1.0", "optimizer.lr=-1", status=1)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "learning rate" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_interrupted_reproduce_leaves_no_process(number, reproduce, tmp_path):
    process = subprocess.Popen(
        reproduce("scale.published_epochs=1000", "estimate=none"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Shells start background commands with SIGINT ignored; SIGTERM must stop them.
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
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    (cell,) = tmp_path.glob("sweeps/*/init-*")
    assert '"interrupted"' in (cell / "metrics.json").read_text()
    assert "2 of 2 cells are not finished" in output
    assert not [line for line in processes() if str(tmp_path) in line]


def processes():
    listed = subprocess.run(
        ["ps", "-ww", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if int(line.split()[0]) != os.getpid()]


def test_finished_cells_are_not_planned(overrides, compose):
    given = [*overrides, "fold=0", "label_fraction=1.0", "init=random"]
    sweep = plan_sweep("rotation_table", given)
    (cell,) = sweep.waiting
    folder = sweep.plan.folder / cell.name
    folder.mkdir(parents=True)
    write_config(folder, compose("+experiment=rotation_table", *given[-3:], run=str(folder)))
    (folder / "metrics.json").write_text('{"status": "finished"}')
    assert plan_sweep("rotation_table", given).waiting == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("+experiment=rotation_table", "experiments="),
        ("hydra.sweep.dir=/tmp/x", "folder of its own"),
        ("-m", "name=value"),
    ],
)
def test_invalid_arguments_are_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        training_overrides(ReproduceSettings.compose("data=demo"), ["data=demo", argument])


def test_own_settings_are_not_passed_to_trainings():
    given = ["data=demo", "seed=0,1", "estimate=only", "~callbacks.progress"]
    overrides = training_overrides(ReproduceSettings.compose("estimate=only"), given)
    assert overrides == ["data=demo", "seed=0,1", "~callbacks.progress"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("experiments=rotation_tabel", "did you mean rotation_table"),
        ("experiments=[]", "is empty"),
        ("measure=0", "measure=0 is not allowed: number > 0"),
        ("estimate=ony", "estimate=ony is not allowed; did you mean only?"),
        ("folder", "name=value"),
        ("label_fracton=0.1", "did you mean label_fraction"),
        ("data=idird", "did you mean idrid"),
        ("task=pretext", "the cells of a table are grading runs"),
        ("experiments=rotation_search", "is a search"),
        ("data.root=???", "data.root is not given"),
        ("resume=auto", "resumes by itself"),
    ],
)
def test_wrong_setting_gives_one_line(argument, words, reproduce_here):
    _, err = reproduce_here(argument, status=1)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line
