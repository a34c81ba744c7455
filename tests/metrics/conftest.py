import pytest

from drgrade.metrics.functional import undefined_value


@pytest.fixture(autouse=True)
def _no_warning_so_far():
    """Every test starts in a process that has not warned yet."""
    undefined_value.cache_clear()
