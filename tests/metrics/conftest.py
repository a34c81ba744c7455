import pytest

from drgrade.metrics import undefined


@pytest.fixture(autouse=True)
def warned(monkeypatch):
    """Every test starts in a process that has not warned yet."""
    names = set()
    monkeypatch.setattr(undefined, "_warned", names)
    return names
