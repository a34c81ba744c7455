"""Sweeps on Ray's cluster of this machine."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import NO_REPORT, SLOW, assert_complete, metrics, reaching_tests, wait_for

pytest.importorskip("ray")


@pytest.fixture
def sweep(command):
    """``sweep("a=1,2")``: the command of a tiny sweep whose cells are tasks of Ray."""

    def make(*more):
        launcher = ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", NO_REPORT)
        return command("init=random", "label_fraction=0.5,1.0", *launcher, *more, "-m")

    return make


def cell(tmp_path, fraction):
    return next((tmp_path / "sweeps").glob(f"*/*label_fraction-{fraction}_*"))


def ray_processes():
    """List the running processes of Ray with their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if line.startswith("ray::") or "/ray/core/src/ray/" in line:
            found.append((int(path.parent.name), line))
    return found


def wait_until_ended(before, seconds=30):
    """Wait for Ray's processes, which end some seconds after the sweep."""
    end = time.monotonic() + seconds
    while left := [each for each in ray_processes() if each not in before]:
        assert time.monotonic() < end, left
        time.sleep(0.5)


def test_each_cell_of_two_processes_runs_once_and_ray_ends(call, sweep, tmp_path):
    before = ray_processes()
    call(sweep("trainer=ddp_cpu"), tmp_path)
    for fraction in ("0.5", "1.0"):
        assert_complete(cell(tmp_path, fraction), processes=2)
        assert metrics(cell(tmp_path, fraction))["label_fraction"] == float(fraction)
        assert (cell(tmp_path, fraction) / "train.log").read_text().count("finished:") == 1
    wait_until_ended(before)


def test_killed_cell_is_listed_and_resumes(call, sweep, tmp_path):
    command = sweep("hydra.launcher.ray.remote.max_retries=0", "scale.published_epochs=5", SLOW)
    before = ray_processes()
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=reaching_tests(), **pipe)
    try:
        # Both have started before one is killed, so it does not matter which.
        wait_for(lambda: len(list((tmp_path / "sweeps").glob("*/*/checkpoints/last.ckpt"))) == 2, process)
        workers = [pid for pid, line in ray_processes() if "_run_job" in line]
        os.kill(workers[0], signal.SIGKILL)
        output = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert "1 of 2 cells are not finished" in output
    assert "2 cells, 1 finished" in call(command, tmp_path)
    for fraction in ("0.5", "1.0"):
        assert_complete(cell(tmp_path, fraction))
        assert (cell(tmp_path, fraction) / "train.log").read_text().count("epoch 1/5") == 1
    wait_until_ended(before)
