"""Commands of sweeps, in this process where possible."""

import json
import subprocess

import pytest

from drgrade.cli.train import main


@pytest.fixture
def call_here(call_main):
    """``call_here(command, status=0)``: run a command in this process, and return its output."""

    def run(command, status=0):
        code, out, err = call_main(main, *command[1:])
        assert code == status, out + err
        assert "Traceback" not in out + err
        return out + err

    return run


@pytest.fixture
def call(tmp_path):
    """``call(command, status=0)``: run a command in a process of its own, and return its output."""

    def run(command, status=0):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def metrics():
    """``metrics(folder)``: the content of a run's ``metrics.json``."""
    return lambda folder: json.loads((folder / "metrics.json").read_text())
