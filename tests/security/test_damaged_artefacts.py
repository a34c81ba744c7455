"""Readers of artefacts refuse damaged files with an error of one line, or read them."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_artefacts import artefacts

KINDS = (
    *("run", "card", "report", "publish", "photographs", "resume"),
    *("published", "encoder", "store", "job", "rows", "sweep"),
)


@pytest.fixture(scope="session")
def made(finished_run, photographs, tmp_path_factory):
    return artefacts(finished_run(), photographs, tmp_path_factory.mktemp("artefacts"))


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_an_artefact_that_is_a_pipe_is_not_opened(made, kind):
    opened = [name for name in sorted(set(made[kind].files)) if made[kind].opens_pipe(name)]
    assert opened == []


@pytest.mark.parametrize(
    ("kind", "name", "place", "value"),
    [
        ("photographs", "config.yaml", "photographs.split.seed", 0.5),
        ("resume", "config.yaml", "data.labelled", 0.5),
        ("publish", "config.yaml", "optimizer.lr", math.nan),
        ("publish", "config.yaml", "optimizer", None),
        ("publish", "config.yaml", "grading.task", [1]),
        ("photographs", "config.yaml", "photographs.split.file", [None] * 1000),
        ("photographs", "config.yaml", "photographs.split.file", "x" * 300),
        ("publish", "calibration.json", "photographs", 0),
        ("publish", "metrics.json", "checkpoint", f"{'last' * 100}.ckpt"),
        ("card", "provenance.json", "encoder", "x" * 5000),
        ("card", "provenance.json", "encoder", "a\0b"),
        ("sweep", "sweep.json", "cells.0.name", "x" * 300),
        ("sweep", "cell/config.yaml", "logger.project", ["x"]),
        ("job", "prediction.json", "job.settings", "x" * 100_000),
        ("job", "prediction.json", "job.inputs", ["x"] * 100_000),
    ],
)
def test_value_that_does_not_fit_is_refused(made, kind, name, place, value):
    assert made[kind].read_changed(name, place, value) == "refused"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_artefact_is_read_or_refused(made, kind, seed):
    made[kind].attack(random.Random(seed))
