"""Fixtures of the cluster tests, which run commands in clusters of one machine (``slurm.py``)."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from slurm import cluster, missing_requirement

HERE = Path(__file__).parent
NO_REPORT = "hydra.sweeper.report=false"
SLOW = "+callbacks.slow._target_=slow_epochs.SlowEpochs"
"""Slows a run down, so that it can be interrupted between two epochs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of commands that use the SLURM of this test session."""
    if reason := missing_requirement():
        pytest.skip(reason)
    with cluster() as environment:
        yield environment


@pytest.fixture(scope="session")
def call() -> Callable[..., str]:
    """``call(command, folder, environment, status=0)``: run it, return the output; None: any but 0."""

    def run(
        command: list[str], folder: Path, environment: dict[str, str] | None = None, status: int | None = 0
    ) -> str:
        done = subprocess.run(
            command,
            cwd=folder,
            env=reaching_tests(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status or (status is None and done.returncode), done.stdout
        return done.stdout

    return run


def reaching_tests(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which runs can import the callbacks of these tests."""
    environment = dict(environment or os.environ)
    paths = [str(HERE), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def wait_for(found: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait until ``found()`` is true, while a process runs."""
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def metrics(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())


def assert_complete(folder: Path, processes: int = 1) -> None:
    """Check that a run has one set of artefacts and tested every photograph once."""
    assert metrics(folder)["status"] == "finished"
    predictions, split = (pd.read_csv(folder / f"{name}.csv") for name in ("predictions", "split"))
    assert sorted(predictions["image_id"]) == sorted(split["image_id"][split["subset"] == "test"])
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((folder / "provenance.json").read_text())["devices"] == processes
