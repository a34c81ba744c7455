"""Signals at random moments: to each process of a DDP run, and SIGKILL to a sweep of four cells."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.campaign
LIMIT = 300
"""Seconds after which a process counts as hanging; on an idle machine all are gone within 30 s."""


def do_not_ignore_signals():
    """Undo what this process has inherited: a shell lets background commands ignore SIGINT, nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def started(command, log):
    """Start a command in a process group of its own, which is killed at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=do_not_ignore_signals,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def at_work(folder):
    """Return the processes that name a folder in their command, as (id, parent); zombies name nothing."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 2) for line in listed.stdout.splitlines() if str(folder) in line]
    return [(int(pid), int(parent)) for pid, parent, args in lines if "drgrade" in args or "train.py" in args]


def wait_until_gone(folder):
    """Return the seconds until no process names a folder, or None after ``LIMIT`` seconds."""
    began = time.monotonic()
    while at_work(folder):
        if time.monotonic() - began > LIMIT:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


def status(folder):
    file = folder / "metrics.json"
    return json.loads(file.read_text())["status"] if file.is_file() else None


def last_epoch(log):
    return max(map(int, re.findall(r"^epoch (\d+)/", log.read_text(errors="replace"), re.M)), default=0)


@pytest.fixture
def outputs(request):
    """A folder on another file system than the temporary files; on theirs if the parameter is False."""
    second, memory = getattr(request, "param", True), Path("/dev/shm")
    if second and not os.access(memory, os.W_OK):
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory if second else None) as folder:
        yield Path(folder)


def test_signals_to_each_process_of_a_run(scale, rng, command, outputs):
    folder, log = outputs / "run", outputs / "log"
    settings = (
        "+experiment=rotation_100pct",
        "init=random",
        "trainer=ddp_cpu",
        "scale.published_epochs=10000",
    )
    places = (f"paths.run={folder}", f"hydra.run.dir={folder}", f"paths.outputs={outputs}", "resume=auto")
    kinds = [(number, rank) for number in ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL") for rank in (0, 1)]
    slowest, epochs, problems = 0.0, 0, []
    chosen = kinds * (scale // 2) or rng.sample(kinds, k=4)
    for name, rank in chosen:
        number = getattr(signal, name)
        before = log.stat().st_size if log.is_file() else 0
        with started(command(*settings, *places), log) as process:
            began = time.monotonic()
            if rng.random() < 0.7:  # or before it trains
                while b"\nepoch " not in log.read_bytes()[before:] and time.monotonic() - began < 120:
                    time.sleep(0.1)
            time.sleep(rng.uniform(0.5, 8))
            moment = time.monotonic() - began
            others = [pid for pid, parent in at_work(folder) if parent == process.pid]
            target = others[0] if rank and others else process.pid
            os.kill(target, number)
            seconds = wait_until_gone(folder)
            code = None if seconds is None else process.wait(timeout=LIMIT)
        printed = log.read_bytes()[before:].decode(errors="replace")
        attempt = f"{name} to process {int(target != process.pid)} after {moment:.1f} s"
        if seconds is None:
            problems.append(f"{attempt}: not gone after {LIMIT} s")
        slowest = max(slowest, seconds or LIMIT)
        if "Traceback" in printed:
            problems.append(f"{attempt}: a traceback")
        expected = {-number} if name == "SIGKILL" else {128 + number, -number}
        if code not in (expected if target == process.pid else {*expected, 1}):
            problems.append(f"{attempt}: exit status {code}")
        if code == 128 + number and status(folder) != "interrupted":
            problems.append(f"{attempt}: status {status(folder)}")
        if last_epoch(log) < epochs:
            problems.append(f"{attempt}: epochs are lost")
        epochs = last_epoch(log)
    print(
        f"signals to processes of a DDP run: {len(chosen)} tried, {len(chosen) - len(problems)} survived; "
        f"all gone after at most {slowest:.1f} s; {epochs} epochs trained, none lost"
    )
    assert not problems, "\n".join([*problems, log.read_text(errors="replace")[-3000:]])


@pytest.mark.parametrize(
    "outputs", [False, True], indirect=True, ids=["one-file-system", "second-file-system"]
)
def test_sweep_is_killed_again_and_again(scale, rng, command, outputs):
    log = outputs / "log"
    axes = ("label_fraction=0.5,1.0", "seed=0,1", "fold=0", "init=random", "hydra.launcher.n_jobs=2")
    length = ("scale.published_epochs=12", f"paths.outputs={outputs}", "hydra.sweeper.report=false", "-m")
    sweep = command("+experiment=rotation_table", *axes, *length)
    slowest, problems, tries = 0.0, [], -(-5 * scale // 2)
    for _ in range(tries):
        with started(sweep, log) as process:
            time.sleep(moment := rng.uniform(1, 15))
            process.kill()
        seconds = wait_until_gone(outputs) if rng.random() < 0.5 else 0.0  # or repeat it at once
        if seconds is None:
            problems.append(f"killed after {moment:.1f} s: cells are not gone after {LIMIT} s")
        slowest = max(slowest, seconds or 0.0)
    with started(sweep, log) as process:
        assert process.wait(timeout=1800) == 0, log.read_text(errors="replace")[-3000:]
    cells = list((outputs / "sweeps").glob("*/init-*"))
    problems += [f"{cell.name}: {status(cell)}" for cell in cells if status(cell) != "finished"]
    logs = [log, *(cell / "output.log" for cell in cells)]
    problems += [f"a traceback in {file}" for file in logs if "Traceback" in file.read_text(errors="replace")]
    print(
        f"SIGKILL of a sweep of four cells in {outputs}: {tries} tried, {len(cells)} of 4 cells finished; "
        f"cells gone after at most {slowest:.1f} s"
    )
    assert len(cells) == 4
    assert not problems, "\n".join(problems)
