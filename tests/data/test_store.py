import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_photographs import disc_photograph, labelled_folder, save, write_labels

from drgrade.data import building
from drgrade.data.crops import Crop, make_crops
from drgrade.data.sources.folder import Folder
from drgrade.data.store import Store, prepare
from drgrade.errors import DataError

SIZE = 48


@pytest.fixture
def root(tmp_path):
    return labelled_folder(tmp_path / "photos")


def make(root, folder, **options):
    return prepare(Folder(root), folder, image_size=SIZE, **options)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_store_holds_crops_labels_and_geometry(root, tmp_path):
    store = make(root, tmp_path / "stores")
    assert store.images.shape == (6, SIZE, SIZE, 3)
    assert store.images.dtype == np.uint8
    assert isinstance(store.images, np.memmap)
    assert (len(store), store.image_size, store.name) == (6, SIZE, "folder")
    assert store.manifest["image_id"].tolist() == [f"p{i}" for i in range(6)]
    assert store.manifest["grade"].tolist() == [0, 1, 2, 3, 4, 0]
    first = store.manifest.iloc[0]
    assert (first["width"], first["height"]) == (160, 120)
    assert [first["circle_x"], first["circle_y"], first["circle_r"]] == pytest.approx([80, 60, 54], abs=1)
    assert 0.95 < first["clear"] <= 1
    assert store.images[0, SIZE // 2, SIZE // 2, 0] > 80
    assert store.images[0, 0, 0].max() < 5


def test_the_images_are_read_only(root, tmp_path):
    store = make(root, tmp_path / "stores")
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_the_folder_says_how_it_was_made(root, tmp_path):
    store = make(root, tmp_path / "stores")
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "images.npy",
        "manifest.csv",
        "problems.csv",
        "store.json",
    ]
    assert store.folder.name == f"folder-{SIZE}px-{store.info['key'][:12]}"
    assert json.loads((store.folder / "store.json").read_text())["photographs"] == 6
    assert store.info["sha256"] == store.sha256
    assert {"drgrade", "numpy", "opencv", "pillow"} <= set(store.info["versions"])


def test_manifest_types_and_odd_ids_survive(tmp_path):
    for name in ("001", "NA", "1e5"):
        save(tmp_path / f"{name}.png")
    write_labels(tmp_path / "labels.csv", "001,0", "NA,", "1e5,4")
    store = make(tmp_path, tmp_path / "stores")
    assert store.manifest["image_id"].tolist() == ["001", "1e5", "NA"]
    assert store.manifest["grade"].tolist()[:2] == [0, 4]
    assert store.manifest["grade"].isna().tolist() == [False, False, True]
    expected = Folder(tmp_path).read().manifest.dtypes
    assert store.manifest.dtypes[expected.index].astype(str).tolist() == expected.astype(str).tolist()


def test_a_prepared_store_is_opened_not_made_again(root, tmp_path, capsys, monkeypatch):
    first = make(root, tmp_path / "stores")
    capsys.readouterr()
    monkeypatch.setattr(building, "make_crops", None)
    second = make(root, tmp_path / "stores")
    assert second.folder == first.folder
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"using the prepared store {first.folder} (6 photographs)\n"


def test_changed_files_rows_or_settings_make_another_store(root, tmp_path):
    stores = tmp_path / "stores"
    folders = {make(root, stores).folder}
    folders.add(make(root, stores, max_pixels=10**6).folder)
    folders.add(prepare(Folder(root), stores, image_size=32).folder)
    os.utime(root / "p0.png", (1, 1))
    folders.add(make(root, stores).folder)
    write_labels(root / "labels.csv", *(f"p{i},1" for i in range(6)))
    folders.add(make(root, stores).folder)
    write_labels(root / "labels.csv", *(f"p{i},1" for i in range(6)), "gone,1")
    folders.add(make(root, stores).folder)
    assert len(folders) == 6


def test_the_hash_is_of_pixels_and_labels_not_of_places_and_times(root, tmp_path):
    first = make(root, tmp_path / "stores")
    elsewhere = tmp_path / "else where"
    shutil.copytree(root, elsewhere)
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    second = make(elsewhere, tmp_path / "other")
    assert first.folder.name != second.folder.name
    assert first.sha256 == second.sha256
    write_labels(elsewhere / "labels.csv", *(f"p{i},1" for i in range(6)))
    assert make(elsewhere, tmp_path / "other").sha256 != first.sha256
    save(root / "p0.png", disc_photograph(brightness=99))
    assert make(root, tmp_path / "stores").sha256 != first.sha256


def test_worker_processes_give_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.data.crops._FEW", 1)
    root = labelled_folder(tmp_path / "photos", 12)
    (root / "p3.png").write_bytes(b"")
    one = make(root, tmp_path / "one", workers=1)
    two = make(root, tmp_path / "two", workers=2)
    assert one.sha256 == two.sha256
    assert len(one) == 11
    pd.testing.assert_frame_equal(one.manifest, two.manifest)


def _die(path: Path) -> Crop:
    os._exit(9)


def test_a_killed_worker_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.data.crops._FEW", 1)
    with pytest.raises(DataError, match=r"killed .*data\.workers=N"):
        list(make_crops(_die, [tmp_path] * 4, 2))


def test_an_error_half_way_leaves_nothing(root, tmp_path, monkeypatch):
    def fail_at_third(maker, paths, workers):
        for i, path in enumerate(paths):
            if i == 3:
                raise RuntimeError("no more")
            yield maker(path)

    with monkeypatch.context() as patch:
        patch.setattr(building, "make_crops", fail_at_third)
        with pytest.raises(RuntimeError, match="no more"):
            make(root, tmp_path / "stores")
    assert visible(tmp_path / "stores") == []
    assert len(make(root, tmp_path / "stores")) == 6


SCRIPT = """
import sys, time
from pathlib import Path
from drgrade.data import building
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

def slow(maker, paths, workers):
    for path in paths:
        time.sleep(float(sys.argv[3]))
        yield maker(path)

building.make_crops = slow
store = prepare(Folder(sys.argv[1]), Path(sys.argv[2]), image_size=48)
print(store.sha256)
"""


def start(root, folder, seconds):
    command = [sys.executable, "-c", SCRIPT, str(root), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_one_prepares_and_the_others_wait(root, tmp_path):
    running = [start(root, tmp_path / "stores", 0.2) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum("prepared 6 photographs" in err for _, err in results) == 1
    assert sum("using the prepared store" in err for _, err in results) == 2
    assert len(visible(tmp_path / "stores")) == 1


def test_a_killed_run_leaves_nothing_that_looks_like_a_store(root, tmp_path):
    stores = tmp_path / "stores"
    process = start(root, stores, 30)
    deadline = time.monotonic() + 30
    while not list(stores.glob(".*.unfinished/images.npy")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = visible(stores)
    assert leftover.startswith(".")
    with pytest.raises(DataError, match="not a prepared store"):
        Store.open(stores / leftover)
    os.utime(root / "p0.png", (1, 1))  # even another store's preparation clears it away
    store = make(root, stores)
    assert visible(stores) == [store.folder.name]


def test_a_run_in_progress_is_not_cleared_away(root, tmp_path):
    stores = tmp_path / "stores"
    process = start(root, stores, 0.5)
    deadline = time.monotonic() + 30
    while not list(stores.glob(".*.unfinished")) and time.monotonic() < deadline:
        time.sleep(0.02)
    other = labelled_folder(tmp_path / "other", 2)
    make(other, stores)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(visible(stores)) == 2


def test_no_worker_outlives_a_killed_run(tmp_path):
    root = labelled_folder(tmp_path / "photos", 30)
    script = (
        SCRIPT.replace("building.make_crops = slow", "")
        .replace(
            "store = ",
            "from drgrade.data import crops\nimport multiprocessing, os, signal\n"
            "def kill(text):\n"
            "    if text.startswith('preparing'): return\n"
            "building.say = kill\n"
            "original = building._geometry\n"
            "def geometry(crop):\n"
            "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "building._geometry = geometry\n"
            "store = ",
        )
        .replace("image_size=48", "image_size=48, workers=2")
    )
    command = [sys.executable, "-c", script, str(root), str(tmp_path / "stores"), "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    workers = [int(pid) for pid in result.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_photograph_smaller_than_the_store_is_enlarged(tmp_path):
    save(tmp_path / "a.png", disc_photograph((40, 30)))
    write_labels(tmp_path / "labels.csv", "a,1")
    assert prepare(Folder(tmp_path), tmp_path / "s", image_size=224).images[0, 112, 112].max() > 80


def test_a_small_disc_in_a_large_jpeg_is_not_decoded_below_its_size(tmp_path):
    pixels = disc_photograph((1600, 1600), radius=260)
    pixels[::4] //= 3  # fine lines that only full resolution shows
    save(tmp_path / "a.jpg", pixels, quality=95)
    write_labels(tmp_path / "labels.csv", "a,1")
    store = prepare(Folder(tmp_path), tmp_path / "s", image_size=512)
    assert store.images[0, 256 - 40 : 256 + 40, 256, 0].astype(float).std() > 20


def test_what_is_no_store_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="not a prepared store"):
        Store.open(tmp_path)
    store = make(root, tmp_path / "stores")
    images = store.folder / "images.npy"
    content = images.read_bytes()
    images.write_bytes(content[:-10])
    with pytest.raises(DataError, match="damaged store"):
        Store.open(store.folder)
    images.write_bytes(content)
    info = store.info | {"format": 99}
    (store.folder / "store.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="format 99"):
        Store.open(store.folder)


def test_the_folder_of_stores_must_be_writable(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder of stores"):
        make(root, tmp_path / "file" / "stores")


def test_a_size_that_makes_no_sense_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="image_size=0"):
        prepare(Folder(root), tmp_path / "stores", image_size=0)


def test_preparation_does_not_load_torch(root, tmp_path):
    code = (
        "import sys, drgrade.data.store; sys.exit(bool({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
