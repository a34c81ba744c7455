"""Photographs that a run has learnt from are found by content, saved anew or not, and with relatives."""

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
from drgrade.evaluation.overlap import exclude_overlap

SIZE = 32


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Twelve drawn photographs that a run was trained on, in its store."""
    root = tmp_path_factory.mktemp("learnt")
    demo = Demo(root / "drawn", count=12, size=256, seed=3, workers=1)
    store = prepare(demo, root / "stores", image_size=SIZE, workers=1)
    return SimpleNamespace(demo=demo, store=store, stores=root / "stores")


@pytest.fixture
def member(learnt, tmp_path):
    """``member(ROWS)``: a run that has learnt from these photographs; nothing else of it is looked at."""

    def make(rows):
        folder = tmp_path / "run"
        folder.mkdir()
        hashes = learnt.store.manifest["file_sha256"].iloc[rows]
        (folder / "seen.txt").write_text("".join(f"{each}\n" for each in hashes))
        config = OmegaConf.create({"photographs": {"folder": str(learnt.stores)}})
        return SimpleNamespace(folder=folder, config=config, record={})

    return make


@pytest.fixture
def clinic(learnt, tmp_path):
    """``clinic({"3.png": CHANGE or None}, patients)``: photographs of the twelve, by their numbers."""

    def make(files, patients=None):
        root = tmp_path / "clinic"
        root.mkdir()
        for name, change in files.items():
            number = int(Path(name).stem.split("-")[0])
            source = learnt.demo.root / learnt.store.manifest["path"].iloc[number]
            if change is None:
                (root / name).with_suffix(source.suffix).write_bytes(source.read_bytes())
            else:
                cv2.imwrite(str(root / name), change(cv2.imread(str(source))))
        table = pd.DataFrame({"image": [Path(name).stem for name in files], "grade": 1})
        table["patient"] = patients or table["image"]
        table.to_csv(root / "labels.csv", index=False)
        source = Folder(root, csv="labels.csv", patient_column="patient", name="clinic")
        found = Photographs(source, SplitSpec(), tmp_path / "stores", SIZE, workers=1)
        manifest = found.manifest
        return found.assigned(manifest.assign(group=groups_of(manifest), subset="test"))

    return make


def drop(photographs, run, **more):
    kept, facts = exclude_overlap(
        photographs, [run], **{"drop": True, "force": False, "search": True, **more}
    )
    tested = kept.split[kept.split["subset"] == "test"]
    return set(tested["image_id"]), facts


def anew(image):
    """Smaller, brighter, and written with losses."""
    small = cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    return np.clip(small * 1.05 + 2, 0, 255).astype(np.uint8)


def test_photographs_saved_anew_are_found_in_the_stores_of_the_run(clinic, member):
    photographs = clinic({"0.png": None, "1-copy.jpg": anew, "8.png": None, "9.jpg": anew})
    left, facts = drop(photographs, member([0, 1, 2]))
    assert left == {"8", "9"}
    assert facts == {"overlap": 2, "overlap_identical": 1, "overlap_near": 1, "overlap_dropped": 2}


def test_what_was_found_is_kept_and_found_again(clinic, member, monkeypatch):
    photographs, run = clinic({"1-copy.jpg": anew, "8.png": None}), member([0, 1])
    first = drop(photographs, run)
    from drgrade.evaluation import overlap

    def searched(*_, **__):
        raise AssertionError("searched again")

    monkeypatch.setattr(overlap, "find_duplicates", searched)
    assert drop(photographs, run) == first


def test_without_a_search_only_the_same_files_are_found(clinic, member):
    left, facts = drop(
        clinic({"0.png": None, "1-copy.jpg": anew, "8.png": None}), member([0, 1]), search=False
    )
    assert left == {"1-copy", "8"}
    assert facts["overlap_near"] == 0


def test_the_other_photographs_of_a_patient_are_left_out_too(clinic, member):
    photographs = clinic({"0.png": None, "7.png": None, "8.png": None}, patients=["a", "a", "b"])
    left, facts = drop(photographs, member([0]))
    assert left == {"8"}
    assert (facts["overlap"], facts["overlap_identical"]) == (2, 1)


def test_a_patient_whose_other_photograph_was_learnt_from_is_refused(clinic, member):
    """Also where that photograph itself is not to be tested on."""
    photographs = clinic({"0.png": None, "7.png": None, "8.png": None}, patients=["a", "a", "b"])
    split = photographs.split
    only = photographs.assigned(split.assign(subset=["excluded", "test", "test"]))
    with pytest.raises(ConfigError, match=r"1 of the 2 photographs .*\(1 of the same patient or copies\)"):
        drop(only, member([0]), drop=False)


def test_photographs_that_are_in_no_store_any_more_are_said(clinic, member, learnt, tmp_path, caplog):
    run = member([0, 1])
    run.config.photographs.folder = str(tmp_path / "gone")
    left, _ = drop(clinic({"0.png": None, "1-copy.jpg": anew, "8.png": None}), run)
    assert left == {"1-copy", "8"}
    assert "1 of 1 training photographs are no longer in a store" in caplog.text


def test_nothing_left_to_test_on_is_an_error(clinic, member):
    with pytest.raises(DataError, match="leaves nothing to test on"):
        drop(clinic({"0.png": None, "1.png": None}), member([0, 1]))
