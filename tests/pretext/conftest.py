import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch

from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.data.store import prepare

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
DATA = ROOT / os.environ.get("DRGRADE_TEST_DATA", "../shared/data")


class EverySecond(IDRiD):
    """Half of IDRiD."""

    def read(self):
        table = super().read()
        return dataclasses.replace(table, manifest=table.manifest.iloc[::2])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stores(session_folder):
    """``stores("demo")``: prepared photographs at 64 px, once for all workers; every second one of IDRiD."""
    folder = session_folder / "pretext"
    prepared = {}

    def store(name):
        if name not in prepared:
            if name == "demo":
                source = Demo(folder / "demo", count=240, size=128, seed=1, workers=1)
            elif not (DATA / "idrid").is_dir():
                pytest.skip(f"IDRiD is not in {DATA}")
            else:
                source = EverySecond(DATA / "idrid")
            prepared[name] = prepare(source, folder / "stores", image_size=64, workers=1)
        return prepared[name]

    return store
