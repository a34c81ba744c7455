"""Fixtures of the report tests."""

from pathlib import Path

import pytest
from synthetic import write_runs


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Write a finished sweep of two methods, two fractions and three folds; tests may damage it."""
    folder = tmp_path / "study"
    write_runs(folder)
    return folder
