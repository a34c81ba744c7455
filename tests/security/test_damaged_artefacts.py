"""Readers of artefacts refuse damaged files with an error of one line, or read them."""

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


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_artefact_is_read_or_refused(made, kind, seed):
    made[kind].attack(random.Random(seed))
