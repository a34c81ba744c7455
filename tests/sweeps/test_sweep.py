"""Sweeps: finished cells are skipped, interrupted ones resume, failed ones are listed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from drgrade.processes import stop
from drgrade.runs.run_dir import write_config
from drgrade.sweeps.cells import Cell, cell_command, read_sweep
from drgrade.sweeps.sweeper import launch_overrides

NO_REPORT = "hydra.sweeper.report=false"


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the sweep has ended"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def sweep(command, tmp_path):
    """``sweep("a=1,2")``: the command of a tiny sweep of one fold of the rotation table."""

    def make(*more):
        return command("+experiment=rotation_table", "fold=0", "label_fraction=1.0", *more, "-m")

    return make


def test_sweep_skips_finished_cells_and_lists_failed_ones(sweep, call_here, tmp_path, metrics):
    assert "1 cells, 0 finished" in call_here(sweep("init=random", "hydra/launcher=basic", NO_REPORT))
    (folder,) = (tmp_path / "sweeps").iterdir()
    cell = folder / "init-random_label_fraction-1.0_fold-0_seed-0"
    before = (cell / "metrics.json").stat().st_mtime_ns
    assert metrics(cell)["status"] == "finished"
    values = "init=random,/nowhere,/elsewhere"
    output = call_here(sweep(values, "hydra.launcher.n_jobs=2", NO_REPORT), status=1)
    assert "3 cells, 1 finished" in output
    table = output[output.index("2 of 3 cells are not finished") :]
    assert "failed" in table
    assert "no such file or folder" in table
    assert table.rstrip().splitlines()[-1].startswith("error: the sweep is not complete")
    assert (cell / "metrics.json").stat().st_mtime_ns == before
    assert {found.name for found in read_sweep(folder)} == {path.name for path in folder.glob("init-*")}
    assert "1 cells, 1 finished" in call_here(sweep("init=random"))
    assert (folder / "report" / "report.html").is_file()


@pytest.mark.slow
def test_killed_cell_resumes_from_its_last_checkpoint(sweep, command, call, tmp_path, metrics):
    long = ("init=random", "scale.published_epochs=12")
    process = subprocess.Popen(
        sweep(*long), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    cells = tmp_path / "sweeps"
    wait_for(lambda: list(cells.glob("*/init-*/checkpoints/last.ckpt")), process)
    (cell,) = cells.glob("*/init-*")
    (child,) = (int(each) for each in children(process.pid))
    os.kill(child, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "unfinished" in output
    done = (cell / "output.log").read_text().count("epoch ")
    assert 0 < done < 12
    call(sweep(*long))
    log = (cell / "output.log").read_text()
    assert log.count("epoch ") in (12, 13)  # one may have ended after its last checkpoint was written
    assert log.count("epoch 1/12") == 1
    call(command("+experiment=rotation_100pct", "fold=0", f"paths.run={tmp_path / 'whole'}", *long))
    assert metrics(cell) == metrics(tmp_path / "whole")


def test_stop_ends_all_processes_if_one_has_just_ended():
    ended, working = (
        subprocess.Popen(
            [sys.executable, "-c", f"import time; time.sleep({seconds})"],
            start_new_session=True,
        )
        for seconds in (0, 600)
    )
    ended.wait()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        stop([ended, working], seconds=60)
        assert working.returncode == -signal.SIGTERM
    finally:
        working.kill()
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.slow
def test_cells_of_a_killed_sweep_end_and_the_same_command_completes_it(sweep, call, tmp_path, metrics):
    command = sweep(
        "init=random", "seed=0,1", "hydra.launcher.n_jobs=2", "scale.published_epochs=12", NO_REPORT
    )
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("sweeps/*/init-*/checkpoints/last.ckpt")), process)
    process.kill()
    process.wait()
    assert "2 of 2 cells are not finished" not in call(command)  # the cells may still be ending
    for cell in tmp_path.glob("sweeps/*/init-*"):
        assert metrics(cell)["status"] == "finished"
        assert (cell / "output.log").read_text().count("epoch 1/12") <= 2


@pytest.mark.parametrize("name", ["a b", "o'brien", r"back\slash", r"both\'", "a,b=c", "ends\\"])
def test_hydra_reads_the_folder_of_a_cell(name):
    parse = OverridesParser.create().parse_override
    folder = Path("/sweeps") / name
    *_, place = cell_command([], folder / "cell")
    assert str(parse(place).value()) == str(folder / "cell")
    given = launch_overrides(Cell("cell", ("seed=0",)), name, folder)
    read = {each.get_key_element(): str(each.value()) for each in map(parse, given)}
    assert read["hydra.sweep.dir"] == str(folder)
    assert read["sweep"] == name


def children(pid):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


@pytest.fixture
def refused(sweep, call_here):
    """``refused("a=b")``: the output of a sweep that ends with status 1."""
    return lambda *more: call_here(sweep("init=random", *more), status=1)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("resume=auto", "resumes by itself"),
        ("optimizer.lr=interval(0.1,1)", "hydra/sweeper=search"),
        ("hydra.launcher.n_jobs=some", "hydra.launcher.n_jobs=some is not a whole number"),
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0 is not a whole number of at least 1"),
        ("data.root=???", "data.root is not given"),
        ("label_fracton=1,2", "did you mean label_fraction"),
        ("label_fraction=1,1.0", "occurs twice"),
    ],
)
def test_invalid_sweep_gives_one_line(argument, words, refused):
    (line,) = [line for line in refused(argument).splitlines() if line.startswith("error: ")]
    assert words in line


def test_reason_of_a_refused_cell_is_in_the_table(refused):
    said = refused("seed=-1")
    assert re.search(r"failed +seed=-1 is not allowed: whole number ≥ 0\n  its output: .*output\.log", said)


def test_finished_cell_of_another_run_is_refused(compose, refused, tmp_path):
    name = "init-random_label_fraction-1.0_fold-0_seed-0"
    cfg = compose("+experiment=rotation_table", "init=random", "sweep=mine", run=f"mine/{name}")
    (tmp_path / "mine" / name).mkdir(parents=True)
    write_config(tmp_path / "mine" / name, cfg)
    (tmp_path / "mine" / name / "metrics.json").write_text('{"status": "finished"}')
    said = refused(f"hydra.sweep.dir={tmp_path / 'mine'}", "optimizer.lr=0.5")
    assert "was another run" in said
    assert "optimizer.lr was 0.001 and is 0.5" in said
    other = refused(f"hydra.sweep.dir={tmp_path / 'mine'}", "trainer.max_epochs=77")
    assert "trainer.max_epochs was" in other
    assert not (tmp_path / "mine" / "sweep.json").exists()  # what is refused is not written down
