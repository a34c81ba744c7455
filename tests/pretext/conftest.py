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


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    prepared = {}

    def store(name):
        if name not in prepared:
            if name == "demo":
                source = Demo(folder / "demo", count=240, size=128, seed=1)
            elif not (DATA / "idrid").is_dir():
                pytest.skip(f"IDRiD is not in {DATA}")
            else:
                source = IDRiD(DATA / "idrid")
            prepared[name] = prepare(source, folder / "stores", image_size=64)
        return prepared[name]

    return store
