"""A small finished sweep, made up once."""

from pathlib import Path

import pytest
from synthetic import write_runs


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep of two methods, two fractions and three folds, all finished; the test may break it."""
    folder = tmp_path / "study"
    write_runs(folder)
    return folder
