"""Mutated artefacts through every reader: no traceback, and nothing that a config names is run."""

import os
import subprocess
from collections import Counter

import pytest
from mutated_artefacts import artefacts

pytestmark = pytest.mark.campaign

EACH = 200
"""Artefacts for SCALE=1."""


def test_mutated_artefacts_are_read_or_refused(finished_run, photographs, tmp_path, scale, rng, monkeypatch):
    made = artefacts(finished_run(), photographs, tmp_path)
    ran = []
    for module, name in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *args, name=name, **settings: ran.append(name))
    counts, faults = Counter(), []
    for _ in range(EACH * scale):
        kind = rng.choice(sorted(made))
        try:
            counts[made[kind].attack(rng)[1]] += 1
        except AssertionError as error:
            faults.append(f"{kind}: {str(error)[:1500]}")
    print(
        f"mutated artefacts: {EACH * scale} tried, {counts['refused']} refused, {counts['read']} read, "
        f"{len(faults)} ended in a traceback, {len(ran)} ran code"
    )
    assert not faults, "\n\n".join(faults[:20])
    assert not ran
