"""Training photographs are found by content, also re-encoded, and with their groups."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from drgrade.data.photographs import Photographs
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.folder import Folder
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.splits.split import groups_of
from drgrade.data.store import prepare
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation import overlap
from drgrade.evaluation.overlap import exclude_overlap

SIZE = 32


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Twelve synthetic training photographs of a run, in its store."""
    root = tmp_path_factory.mktemp("training")
    demo = Demo(root / "drawn", count=12, size=256, seed=3, workers=1)
    store = prepare(demo, root / "stores", image_size=SIZE, workers=1)
    return SimpleNamespace(demo=demo, store=store, stores=root / "stores")


@pytest.fixture
def member(training, tmp_path):
    """``member(ROWS)`` returns a run that was trained on these photographs; nothing else of it is read."""

    def make(rows):
        folder = tmp_path / "run"
        folder.mkdir()
        hashes = training.store.manifest["file_sha256"].iloc[rows]
        (folder / "seen.txt").write_text("".join(f"{each}\n" for each in hashes))
        config = OmegaConf.create({"photographs": {"folder": str(training.stores)}})
        return SimpleNamespace(folder=folder, config=config, record={})

    return make


@pytest.fixture
def clinic(training, tmp_path):
    """``clinic({"3.png": CHANGE or None}, patients)`` returns some of the twelve, by their numbers."""

    def make(files, patients=None):
        root = tmp_path / "clinic"
        root.mkdir()
        for name, change in files.items():
            number = int(Path(name).stem.split("-")[0])
            source = training.demo.root / training.store.manifest["path"].iloc[number]
            if change is None:
                (root / name).with_suffix(source.suffix).write_bytes(source.read_bytes())
            else:
                cv2.imwrite(str(root / name), change(cv2.imread(str(source))))
        table = pd.DataFrame({"image": [Path(name).stem for name in files], "grade": 1})
        table["patient"] = patients or table["image"]
        table.to_csv(root / "labels.csv", index=False)
        source = Folder(root, csv="labels.csv", patient_column="patient", name="clinic")
        photographs = Photographs(source, SplitSpec(), tmp_path / "stores", SIZE, workers=1)
        manifest = photographs.manifest
        return photographs.assigned(manifest.assign(group=groups_of(manifest), subset="test"))

    return make


def drop(photographs, run, **more):
    kept, facts = exclude_overlap(
        photographs, [run], **{"drop": True, "force": False, "search": True, "own_run": True, **more}
    )
    tested = kept.split[kept.split["subset"] == "test"]
    return set(tested["image_id"]), facts


def reencode(image):
    """Reduce and brighten an image; it is then written with losses."""
    small = cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    return np.clip(small * 1.05 + 2, 0, 255).astype(np.uint8)


def test_reencoded_copies_are_found_in_the_stores_of_the_run(clinic, member):
    photographs = clinic({"0.png": None, "1-copy.jpg": reencode, "8.png": None, "9.jpg": reencode})
    left, facts = drop(photographs, member([0, 1, 2]))
    assert left == {"8", "9"}
    assert facts == {"overlap": 2, "overlap_identical": 1, "overlap_near": 1, "overlap_dropped": 2}


def test_the_result_of_the_search_is_cached(clinic, member, monkeypatch):
    photographs, run = clinic({"1-copy.jpg": reencode, "8.png": None}), member([0, 1])
    first = drop(photographs, run)

    def search(*_, **__):
        raise AssertionError("searched again")

    monkeypatch.setattr(overlap, "find_duplicates", search)
    assert drop(photographs, run) == first


def test_without_a_search_only_identical_files_are_found(clinic, member):
    left, facts = drop(
        clinic({"0.png": None, "1-copy.jpg": reencode, "8.png": None}), member([0, 1]), search=False
    )
    assert left == {"1-copy", "8"}
    assert facts["overlap_near"] == 0


def test_other_photographs_of_the_patient_are_dropped(clinic, member):
    photographs = clinic({"0.png": None, "7.png": None, "8.png": None}, patients=["a", "a", "b"])
    left, facts = drop(photographs, member([0]))
    assert left == {"8"}
    assert (facts["overlap"], facts["overlap_identical"]) == (2, 1)


def test_a_patient_with_a_training_photograph_is_refused(clinic, member):
    """Even if that photograph itself is not tested."""
    photographs = clinic({"0.png": None, "7.png": None, "8.png": None}, patients=["a", "a", "b"])
    split = photographs.split
    only = photographs.assigned(split.assign(subset=["excluded", "test", "test"]))
    with pytest.raises(ConfigError, match=r"1 of the 2 photographs .*\(1 of the same patient or copies\)"):
        drop(only, member([0]), drop=False)


def test_training_photographs_missing_from_the_stores_are_logged(clinic, member, training, tmp_path, caplog):
    run = member([0, 1])
    run.config.photographs.folder = str(tmp_path / "gone")
    left, _ = drop(clinic({"0.png": None, "1-copy.jpg": reencode, "8.png": None}), run)
    assert left == {"1-copy", "8"}
    assert "1 of 1 training photographs are no longer in a store" in caplog.text


def test_an_empty_test_set_is_an_error(clinic, member):
    with pytest.raises(DataError, match="leaves nothing to test on"):
        drop(clinic({"0.png": None, "1.png": None}), member([0, 1]))
