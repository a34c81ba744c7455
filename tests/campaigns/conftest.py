"""Settings of the campaigns: ``SCALE`` multiplies the numbers of trials, ``SEED`` repeats a campaign."""

import os
import random
import secrets

import pytest


@pytest.fixture(scope="session")
def scale() -> int:
    """Return SCALE: 1 by default, 10 for the numbers of docs/reliability.md."""
    return int(os.environ.get("SCALE", "1"))


@pytest.fixture
def rng(request) -> random.Random:
    """Return a generator seeded by SEED, or by a random seed that is printed."""
    seed = int(os.environ.get("SEED") or secrets.randbelow(2**32))
    print(f"\n{request.node.name}: SEED={seed}")
    return random.Random(seed)
