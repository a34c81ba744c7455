"""Sweeps and runs on a real SLURM: jobs, requeueing, killing, several tasks."""

import json
import re
import signal
import subprocess

import pandas as pd
import pytest
from conftest import NO_REPORT, SLOW, assert_complete, metrics, reaching_tests, wait_for

from drgrade.training.run import train

SETUP = "hydra.launcher.setup=['export SLURM_KILL_BAD_EXIT=1','export MASTER_ADDR=127.0.0.1']"
"""The names of the two nodes cannot be resolved."""


@pytest.fixture
def sweep(command):
    """``sweep("a=1,2")``: the command of a tiny sweep whose cells are SLURM jobs."""

    def make(*more):
        launcher = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", SETUP, NO_REPORT)
        return command("init=random", "head=softmax", *launcher, *more, "-m")

    return make


@pytest.fixture
def begin(slurm, tmp_path):
    """``begin(command)``: start a command, which is killed at the end of the test."""
    begun = []

    def start(command):
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        begun.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=reaching_tests(slurm), preexec_fn=heed_interrupts, **pipe
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
    subprocess.run(["scancel", "--user=root"], env=slurm, check=False)


def heed_interrupts():
    """Undo that a shell starts background commands with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def cell(tmp_path, fraction="1.0"):
    return next((tmp_path / "sweeps").glob(f"*/*label_fraction-{fraction}_*"))


def epochs(folder):
    """Return the epochs in the log of a run, in order."""
    return [int(epoch) for epoch in re.findall(r"^epoch (\d+)/", (folder / "train.log").read_text(), re.M)]


def has_checkpoint(tmp_path, fraction="1.0"):
    return lambda: list((tmp_path / "sweeps").glob(f"*/*label_fraction-{fraction}_*/checkpoints/last.ckpt"))


def jobs(tmp_path):
    (path,) = (tmp_path / "sweeps").glob("*/.submitit/jobs.json")
    return json.loads(path.read_text())


def assert_same_result(folder, expected):
    """Compare the metrics of two runs of the same cell."""
    found = metrics(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), name


def test_jobs_give_the_results_of_local_cells(call, sweep, slurm, tmp_path, compose):
    call(sweep("label_fraction=0.5,1.0"), tmp_path, slurm)
    for fraction in ("0.5", "1.0"):
        expected = train(
            compose("init=random", "head=softmax", f"label_fraction={fraction}", run=f"local_{fraction}")
        )
        assert_complete(cell(tmp_path, fraction))
        assert_same_result(cell(tmp_path, fraction), expected)


def test_preempted_job_is_requeued_and_resumes(begin, sweep, slurm, tmp_path, compose):
    long = ("scale.published_epochs=6", "protocol.frozen_epochs=1")
    process = begin(sweep(*long, "logger=csv", SLOW))
    wait_for(has_checkpoint(tmp_path), process)
    (job,) = jobs(tmp_path).values()
    subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    found = cell(tmp_path)
    log = (found / "train.log").read_text()
    assert f"Requeued job {job}" in log
    before, after = (trained_epochs(found, attempt) for attempt in (0, 1))
    assert before[0] == 0
    assert after[0] > 0  # not from the start
    assert after[-1] == 5
    assert sorted({*before, *after}) == [0, 1, 2, 3, 4, 5]
    assert len(before) + len(after) <= 7  # but for the one that was cut short, none was trained twice
    expected = train(compose("init=random", "head=softmax", *long))
    assert_complete(found)
    assert_same_result(found, expected)


def trained_epochs(folder, attempt):
    """Return the epochs in the curves of one attempt."""
    curves = pd.read_csv(folder / "csv" / f"version_{attempt}" / "metrics.csv")
    return curves.loc[curves["train/loss"].notna(), "epoch"].astype(int).drop_duplicates().tolist()


def test_cancelled_job_is_listed_and_resumes(begin, call, sweep, slurm, tmp_path):
    # submitit ignores SIGTERM, so SLURM kills the job KillWait (5 s) later: its epochs must take longer.
    command = sweep("label_fraction=0.5,1.0", "scale.published_epochs=6", SLOW, "+callbacks.slow.seconds=3")
    process = begin(command)
    wait_for(has_checkpoint(tmp_path, "0.5"), process)
    killed = cell(tmp_path, "0.5")
    subprocess.run(["scancel", jobs(tmp_path)[killed.name]], env=slurm, check=True)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1, output
    table = output[output.index("1 of 2 cells are not finished") :]
    assert killed.name in table
    assert "interrupted" in table or "unfinished" in table
    assert_complete(cell(tmp_path, "1.0"))
    assert "2 cells, 1 finished" in call(command, tmp_path, slurm)
    assert_complete(killed)
    assert epochs(killed).count(1) == 1
    assert max(epochs(killed)) == 6


def test_interrupted_command_joins_its_jobs(begin, call, sweep, slurm, tmp_path):
    command = sweep("scale.published_epochs=6", SLOW)
    process = begin(command)
    wait_for(has_checkpoint(tmp_path), process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "the jobs stay in the queue" in output
    before = jobs(tmp_path)
    assert f"job {next(iter(before.values()))} of an earlier command" in call(command, tmp_path, slurm)
    assert jobs(tmp_path) == before
    assert_complete(cell(tmp_path))
    assert epochs(cell(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_error_of_a_job_is_listed(call, sweep, slurm, tmp_path):
    output = call(sweep("init=/nowhere,random"), tmp_path, slurm, status=1)
    table = output[output.index("1 of 2 cells are not finished") :]
    assert "failed" in table
    assert "no such file or folder" in table
    assert "Traceback" not in output
    states = subprocess.run(
        ["squeue", "--states=all", "--array", "--noheader", "--format=%i %T"],
        env=slurm, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    ended = dict(line.split() for line in states)
    assert {ended[job] for job in jobs(tmp_path).values()} == {"FAILED", "COMPLETED"}


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 2), (2, 1)])
def test_tasks_of_a_job_are_ranks_of_one_run(call, sweep, slurm, tmp_path, nodes, tasks):
    places = (f"hydra.launcher.nodes={nodes}", f"hydra.launcher.tasks_per_node={tasks}")
    trainer = ("trainer=ddp_cpu", f"trainer.num_nodes={nodes}", f"trainer.devices={tasks}")
    call(sweep(*places, *trainer, "init=ssl", "label_fraction=0.5,1.0"), tmp_path, slurm)
    for fraction in ("0.5", "1.0"):
        assert_complete(cell(tmp_path, fraction), processes=2)
        assert (cell(tmp_path, fraction) / "train.log").read_text().count("finished:") == 1
    logs = [(cell(tmp_path, fraction) / "train.log").read_text() for fraction in ("0.5", "1.0")]
    assert sum(log.count("encoder: not found for these settings; pre-training") for log in logs) == 1
    assert len(list((tmp_path / "encoders").glob("*/encoder.safetensors"))) == 1


def test_job_of_one_task_starts_ddp_processes(call, sweep, slurm, tmp_path):
    call(sweep("trainer=ddp_cpu", "hydra.launcher.cpus_per_task=2"), tmp_path, slurm)
    assert_complete(cell(tmp_path), processes=2)


def test_srun_on_two_nodes_makes_one_run_in_one_folder(call, command, slurm, tmp_path):
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    environment = {**slurm, "MASTER_ADDR": "127.0.0.1"}
    settings = ("init=random", "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2")
    call([*srun, *command(*settings)], tmp_path, environment)
    (folder,) = (tmp_path / "runs" / "grading").iterdir()
    assert_complete(folder, processes=2)


def test_srun_refuses_tasks_that_would_run_twice(call, command, slurm, tmp_path):
    srun = ["srun", "--ntasks=2", "--ntasks-per-node=2", "--nodes=1", "--kill-on-bad-exit=1"]
    slurm = {**slurm, "MASTER_ADDR": "127.0.0.1"}
    output = call([*srun, *command("init=random")], tmp_path, slurm, status=None)
    assert "SLURM has started 2 processes, but the trainer is configured for one" in output
    output = call([*srun, *command("init=random", "-m")], tmp_path, slurm, status=None)
    assert "a sweep is started once" in output
