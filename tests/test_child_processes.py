"""Signals interrupt a command, and child processes end with their parent."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from drgrade.processes import interruptible, run_child

COMMAND = """
import sys, time
from drgrade.cli.command import run
from drgrade.settings import PrepareSettings
sys.argv[1:] = ["data=demo", "hydra.run.dir=."]
run(lambda cfg: (print("ready", flush=True), time.sleep(60)), PrepareSettings)
"""
PARENT = """
import sys, time
from drgrade.processes import start
start([sys.executable, "-c", {child!r}], sys.stdout.buffer)
time.sleep(60)
"""
CHILD = """
import os, sys, time
sys.platform = {platform!r}
from drgrade.processes import end_with_parent
end_with_parent()
assert "DRGRADE_PARENT" not in os.environ
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def default_handlers():
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begin(program, folder):
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_command_with_its_exit_status(number, tmp_path):
    process = begin(COMMAND, tmp_path)
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_child_ends_with_a_killed_parent(platform, tmp_path):
    parent = begin(PARENT.format(child=CHILD.format(platform=platform)), tmp_path)
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    parent.communicate(timeout=30)  # returns when the child has closed the output, too


def test_child_of_an_ended_parent_ends_at_once(tmp_path):
    environment = {**os.environ, "DRGRADE_PARENT": f"1:{int(signal.SIGTERM)}"}
    program = CHILD.format(platform=sys.platform)
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGTERM


def test_signal_to_a_waiting_process_ends_its_child():
    began = time.monotonic()
    program = f"import os, time; os.kill({os.getpid()}, {int(signal.SIGTERM)}); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt), interruptible():
        run_child([sys.executable, "-c", program])
    assert time.monotonic() - began < 30


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_forked_worker_has_no_handlers_of_its_parent():
    with interruptible(), ProcessPoolExecutor(1, get_context("fork")) as pool:
        assert pool.submit(handlers).result() == [signal.SIG_IGN, signal.SIG_DFL, signal.SIG_DFL]


def test_ignored_signals_and_handlers_of_others_stay():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, print)
    try:
        with interruptible():
            assert handlers()[1:] == [print, signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
