import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_photographs import disc_photograph, labelled_folder, save, write_labels

from drgrade.data import store_builder
from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.geometry import THUMBNAIL_SIZE
from drgrade.data.image_reader import NO_MEMORY, UnreadablePhotograph
from drgrade.data.sources.folder import Folder
from drgrade.data.store import Store, prepare
from drgrade.data.store_builder import ArrayWriter, StorePlan, StoreWriter
from drgrade.errors import DataError

SIZE = 48


@pytest.fixture
def root(tmp_path):
    return labelled_folder(tmp_path / "photos")


def make(root, folder, **options):
    return prepare(Folder(root), folder, image_size=SIZE, **options)


def visible(folder):
    """Return the names of finished and unfinished stores."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != ".index")


@pytest.fixture
def decoded(monkeypatch):
    """Record the names of the files that this process decodes."""
    names = []
    original = CropMaker.extract

    def spy(maker, path):
        names.append(path.name)
        return original(maker, path)

    monkeypatch.setattr(CropMaker, "extract", spy)
    return names


class Killed(BaseException):
    """Not caught by the code under test, like a SIGKILL."""


@contextmanager
def killed_after(number):
    """Abort preparation without any clean-up after a number of photographs is written."""
    original = StoreWriter.add
    count = 0

    def add(writer, file, crop):
        nonlocal count
        if count == number:
            raise Killed
        count += 1
        original(writer, file, crop)

    def die(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012  (for the caller's block)
        patch.setattr(StoreWriter, "add", add)
        patch.setattr(store_builder, "write_metadata", die)
        patch.setattr(ArrayWriter, "close", lambda writer, complete: None)
        yield


def test_store_has_crops_labels_and_geometry(root, tmp_path):
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
    assert first["stretch"] == 1
    assert first["border"] == pytest.approx(1 - np.pi * 54**2 / (160 * 120), abs=0.03)
    assert first["brightness"] == pytest.approx(disc_photograph(brightness=120).mean(), abs=1)
    content = (root / "p0.png").read_bytes()
    assert (first["file_size"], first["file_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert store.thumbnails.shape == (6, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    assert store.images[0, SIZE // 2, SIZE // 2, 0] > 80
    assert store.images[0, 0, 0].max() < 5


def test_images_are_read_only(root, tmp_path):
    store = make(root, tmp_path / "stores")
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_store_info_records_settings_and_versions(root, tmp_path):
    store = make(root, tmp_path / "stores")
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "files.jsonl",
        "images.npy",
        "manifest.csv",
        "problems.csv",
        "store.json",
        "thumbnails.npy",
    ]
    assert store.folder.name == f"folder-{SIZE}px-{store.info['key'][:12]}"
    assert json.loads((store.folder / "store.json").read_text())["photographs"] == 6
    assert store.info["sha256"] == store.sha256
    assert {"drgrade", "numpy", "opencv", "pillow"} <= set(store.info["versions"])


def test_manifest_types_and_odd_ids_are_kept(tmp_path):
    for name in ("001", "NA", "1e5"):
        save(tmp_path / f"{name}.png")
    write_labels(tmp_path / "labels.csv", "001,0", "NA,", "1e5,4")
    store = make(tmp_path, tmp_path / "stores")
    assert store.manifest["image_id"].tolist() == ["001", "1e5", "NA"]
    assert store.manifest["grade"].tolist()[:2] == [0, 4]
    assert store.manifest["grade"].isna().tolist() == [False, False, True]
    expected = Folder(tmp_path).read().manifest.dtypes
    assert store.manifest.dtypes[expected.index].astype(str).tolist() == expected.astype(str).tolist()


def test_prepared_store_is_reused(root, tmp_path, capsys, monkeypatch):
    first = make(root, tmp_path / "stores")
    capsys.readouterr()
    monkeypatch.setattr(store_builder, "make_crops", None)
    second = make(root, tmp_path / "stores")
    assert second.folder == first.folder
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"using the prepared store {first.folder} (6 photographs)\n"


@pytest.mark.parametrize("bits", [0, 14])
def test_store_of_an_earlier_version_is_used_unless_bits_were_misread(root, tmp_path, decoded, bits):
    if bits:
        deep = disc_photograph()[..., ::-1].astype(np.uint16) << (bits - 8)
        cv2.imwrite(str(root / "p0.png"), deep)
    stores = tmp_path / "stores"
    first = make(root, stores)
    for name in ("files.jsonl", "problems.csv"):
        text = (first.folder / name).read_text()
        (first.folder / name).write_text(text.replace(" (14 bits used)", ""))
    plan = StorePlan(Folder(root), Folder(root).read(), stores, CropMaker(SIZE))
    (stores / ".index" / plan.state).rename(stores / ".index" / plan.earlier_state)
    decoded.clear()
    assert len(make(root, stores)) == 6
    assert decoded == (["p0.png"] if bits else [])


def test_changed_files_rows_or_settings_give_another_store(root, tmp_path):
    stores = tmp_path / "stores"
    folders = {make(root, stores).folder}
    folders.add(make(root, stores, max_pixels=10**6).folder)
    folders.add(make(root, stores, illumination="clahe").folder)
    folders.add(prepare(Folder(root), stores, image_size=32).folder)
    save(root / "p0.png", disc_photograph(brightness=99))
    folders.add(make(root, stores).folder)
    write_labels(root / "labels.csv", *(f"p{i},1" for i in range(6)))
    folders.add(make(root, stores).folder)
    write_labels(root / "labels.csv", *(f"p{i},1" for i in range(6)), "gone,1")
    folders.add(make(root, stores).folder)
    assert len(folders) == 7


def test_only_changed_photographs_are_prepared_again(root, tmp_path, decoded):
    before = make(root, tmp_path / "stores")
    assert len(decoded) == 6
    save(root / "p4.png", disc_photograph(brightness=99))
    save(root / "p6.png", disc_photograph(brightness=88))
    write_labels(root / "labels.csv", *(f"p{i}.png,{i % 5}" for i in range(1, 7)))
    decoded.clear()
    after = make(root, tmp_path / "stores")
    assert decoded == ["p4.png", "p6.png"]
    assert after.manifest["image_id"].tolist() == [f"p{i}" for i in range(1, 7)]
    np.testing.assert_array_equal(after.images[:3], before.images[1:4])
    assert (after.images[3] != before.images[4]).any()
    alone = make(root, tmp_path / "afresh")
    assert alone.sha256 == after.sha256
    np.testing.assert_array_equal(alone.thumbnails, after.thumbnails)
    pd.testing.assert_frame_equal(alone.manifest, after.manifest)


def test_replaced_file_of_equal_size_and_time_is_detected(tmp_path):
    root = tmp_path / "photos"
    for name, brightness in (("a", 120), ("b", 180)):
        Image.fromarray(disc_photograph(brightness=brightness)).save(save(root / f"{name}.bmp"))
    write_labels(root / "labels.csv", "a,1")
    first = make(root, tmp_path / "stores")
    status = (root / "a.bmp").stat()
    (root / "a.bmp").write_bytes((root / "b.bmp").read_bytes())
    os.utime(root / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (root / "a.bmp").stat().st_size == status.st_size
    assert make(root, tmp_path / "stores").sha256 != first.sha256


def test_touched_and_renamed_files_are_not_decoded_again(root, tmp_path, decoded):
    first = make(root, tmp_path / "stores")
    decoded.clear()
    for path in root.iterdir():
        os.utime(path, (1, 1))
    assert make(root, tmp_path / "stores").folder == first.folder
    (root / "p0.png").rename(root / "q0.png")
    write_labels(root / "labels.csv", "q0,0", *(f"p{i}.png,{i % 5}" for i in range(1, 6)))
    renamed = make(root, tmp_path / "stores")
    assert decoded == []
    assert renamed.manifest["image_id"].tolist() == ["p1", "p2", "p3", "p4", "p5", "q0"]
    np.testing.assert_array_equal(renamed.images[5], first.images[0])


def test_stores_with_other_labels_share_pixels(root, tmp_path, decoded):
    (root / "p2.png").write_bytes(b"")
    first = make(root, tmp_path / "stores")
    decoded.clear()
    write_labels(root / "labels.csv", *(f"p{i}.png,4" for i in range(6)))
    second = make(root, tmp_path / "stores")
    assert decoded == []
    assert second.folder != first.folder
    assert (second.folder / "images.npy").samefile(first.folder / "images.npy")
    assert second.manifest["grade"].tolist() == [4] * 5
    assert second.left_out["image_id"].tolist() == ["p2"]
    assert second.sha256 == make(root, tmp_path / "afresh").sha256
    shutil.rmtree(first.folder)
    assert Store.open(second.folder).images[0].max() > 80


def test_hash_depends_on_pixels_and_labels_only(root, tmp_path):
    first = make(root, tmp_path / "stores")
    elsewhere = tmp_path / "else where"
    shutil.copytree(root, elsewhere)
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    second = make(elsewhere, tmp_path / "other")
    assert first.folder.name == second.folder.name
    assert first.sha256 == second.sha256
    write_labels(elsewhere / "labels.csv", *(f"p{i},1" for i in range(6)))
    assert make(elsewhere, tmp_path / "other").sha256 != first.sha256
    save(root / "p0.png", disc_photograph(brightness=99))
    assert make(root, tmp_path / "stores").sha256 != first.sha256


def test_worker_processes_give_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.data.crops.IN_PROCESS_LIMIT", 1)
    root = labelled_folder(tmp_path / "photos", 12)
    (root / "p3.png").write_bytes(b"")
    one = make(root, tmp_path / "one", workers=1)
    two = make(root, tmp_path / "two", workers=2)
    assert one.sha256 == two.sha256
    assert len(one) == 11
    pd.testing.assert_frame_equal(one.manifest, two.manifest)


def _die(path: Path) -> Crop:
    os._exit(9)


def test_killed_worker_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.data.crops.IN_PROCESS_LIMIT", 1)
    with pytest.raises(DataError, match=r"killed .*data\.workers=N"):
        list(make_crops(_die, [tmp_path] * 4, 2))


@pytest.mark.parametrize("number", range(7))
def test_killed_build_resumes(root, tmp_path, decoded, number):
    (root / "p1.png").write_bytes(b"")
    with killed_after(number):
        make(root, tmp_path / "stores")
    decoded.clear()
    store = make(root, tmp_path / "stores")
    names = ["p0.png", "p1.png", "p2.png", "p3.png", "p4.png", "p5.png"]
    assert decoded == names[number:]
    whole = make(root, tmp_path / "at once")
    assert store.folder.name == whole.folder.name
    assert store.sha256 == whole.sha256
    for name in ("images.npy", "thumbnails.npy", "manifest.csv", "problems.csv"):
        assert (store.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert visible(tmp_path / "stores") == [store.folder.name]


def test_build_resumes_after_several_kills(root, tmp_path, decoded):
    for _ in range(3):
        with killed_after(2):
            make(root, tmp_path / "stores")
        assert len(visible(tmp_path / "stores")) == 1
    assert make(root, tmp_path / "stores").sha256 == make(root, tmp_path / "at once").sha256
    resumed = decoded[: -len(["p0", "p1", "p2", "p3", "p4", "p5"])]
    assert resumed == [
        f"p{i}.png" for i in (0, 1, 2, 2, 3, 4, 4, 5)
    ]  # what was decoded but not written, twice


def test_unfinished_crops_are_used_after_photographs_changed(root, tmp_path, decoded):
    with killed_after(4):
        make(root, tmp_path / "stores")
    save(root / "p1.png", disc_photograph(brightness=99))
    decoded.clear()
    with killed_after(3):
        make(root, tmp_path / "stores")
    assert decoded == ["p1.png"]
    assert len(visible(tmp_path / "stores")) == 2
    store = make(root, tmp_path / "stores")
    assert decoded == ["p1.png", "p4.png", "p5.png"]
    assert visible(tmp_path / "stores") == [store.folder.name]
    assert store.sha256 == make(root, tmp_path / "at once").sha256


def test_unfinished_store_with_shared_arrays_is_not_written_to(root, tmp_path):
    """Its arrays may be hard links to those of a finished store."""
    (root / "p1.png").write_bytes(b"")
    first = make(root, tmp_path / "stores")
    before = (first.folder / "images.npy").read_bytes()
    write_labels(root / "labels.csv", *(f"p{i}.png,4" for i in range(6)))
    with pytest.raises(DataError, match="strict"):
        make(root, tmp_path / "stores", strict=True)
    assert unfinished(tmp_path / "stores").joinpath("images.npy").samefile(first.folder / "images.npy")
    save(root / "z.png", disc_photograph(brightness=77))
    write_labels(root / "labels.csv", *(f"p{i}.png,4" for i in range(6)), "z,0")
    second = make(root, tmp_path / "stores")
    assert len(second) == 6
    assert (first.folder / "images.npy").read_bytes() == before
    assert len(Store.open(first.folder)) == 5
    assert second.sha256 == make(root, tmp_path / "afresh").sha256


def test_transient_failure_is_tried_again(root, tmp_path, monkeypatch):
    original = CropMaker.extract

    def out_of_memory(maker, path):
        if path.name == "p3.png":
            raise UnreadablePhotograph(NO_MEMORY)
        return original(maker, path)

    with monkeypatch.context() as patch:
        patch.setattr(CropMaker, "extract", out_of_memory)
        first = make(root, tmp_path / "stores")
    assert first.left_out["reason"].tolist() == [NO_MEMORY]
    second = make(root, tmp_path / "stores")
    assert len(second) == 6
    assert second.folder != first.folder


@pytest.mark.parametrize("torn", ["\0" * 40 + "\n", "[1,2]\n", "null\n"])
def test_damaged_record_file_loses_only_later_records(root, tmp_path, decoded, torn):
    with killed_after(3):
        make(root, tmp_path / "stores")
    with (unfinished(tmp_path / "stores") / "files.jsonl").open("a") as journal:
        journal.write(torn)
    decoded.clear()
    store = make(root, tmp_path / "stores")
    assert decoded == ["p3.png", "p4.png", "p5.png"]
    (store.folder / "files.jsonl").write_text(torn)
    write_labels(root / "labels.csv", *(f"p{i}.png,4" for i in range(6)))
    assert len(make(root, tmp_path / "stores")) == 6


def test_two_copies_of_a_data_set_can_be_prepared_at_once(root, tmp_path, monkeypatch):
    """The lock depends on the folder, the store on the content."""
    stores = tmp_path / "stores"
    other = tmp_path / "other"
    shutil.copytree(root, other)
    original = Path.rename

    def overtaken(path, target):
        monkeypatch.setattr(Path, "rename", original)
        make(other, stores)
        return original(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    assert len(make(root, stores)) == 6
    assert len(visible(stores)) == 1


def unfinished(stores):
    (folder,) = stores.glob(".*.unfinished-*")
    return folder


def test_torn_record_is_prepared_again(root, tmp_path, decoded):
    with killed_after(4):
        make(root, tmp_path / "stores")
    files = unfinished(tmp_path / "stores") / "files.jsonl"
    files.write_text(files.read_text()[:-20])
    decoded.clear()
    store = make(root, tmp_path / "stores")
    assert decoded == ["p3.png", "p4.png", "p5.png"]
    assert store.sha256 == make(root, tmp_path / "at once").sha256


def test_lost_pixels_are_prepared_again(root, tmp_path, decoded):
    with killed_after(4):
        make(root, tmp_path / "stores")
    with (unfinished(tmp_path / "stores") / "images.npy").open("r+b") as file:
        file.seek(-SIZE * SIZE * 3, os.SEEK_END)
        file.write(bytes(SIZE * SIZE * 3))
    decoded.clear()
    store = make(root, tmp_path / "stores")
    assert decoded == ["p3.png", "p4.png", "p5.png"]
    assert store.sha256 == make(root, tmp_path / "at once").sha256


def test_full_disk_is_reported_and_the_build_resumes(root, tmp_path, monkeypatch, decoded):
    original = ArrayWriter.append

    def append(writer, values):
        if writer.count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(writer, values)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", append)
        with pytest.raises(DataError, match=r"No space left.*are kept.*paths\.stores"):
            make(root, tmp_path / "stores")
    decoded.clear()
    assert len(make(root, tmp_path / "stores")) == 6
    assert decoded == ["p3.png", "p4.png", "p5.png"]


def test_build_after_strict_error_decodes_only_the_repaired_file(root, tmp_path, decoded):
    content = (root / "p1.png").read_bytes()
    (root / "p1.png").write_bytes(content[:60])
    with pytest.raises(DataError, match="strict"):
        make(root, tmp_path / "stores", strict=True)
    with pytest.raises(DataError, match="not a prepared store"):
        Store.open(unfinished(tmp_path / "stores"))
    (root / "p1.png").write_bytes(content)
    decoded.clear()
    assert len(make(root, tmp_path / "stores", strict=True)) == 6
    assert decoded == ["p1.png"]


SCRIPT = """
import sys, time
from pathlib import Path
from drgrade.data import store_builder
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

def slow(maker, paths, workers):
    for path in paths:
        time.sleep(float(sys.argv[3]))
        yield maker(path)

store_builder.make_crops = slow
store = prepare(Folder(sys.argv[1]), Path(sys.argv[2]), image_size=48)
print(store.sha256)
"""


def start(root, folder, seconds):
    command = [sys.executable, "-c", SCRIPT, str(root), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_of_several_processes_prepares_and_the_others_wait(root, tmp_path):
    running = [start(root, tmp_path / "stores", 0.2) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum("prepared 6 photographs" in err for _, err in results) == 1
    assert sum("using the prepared store" in err for _, err in results) == 2
    assert len(visible(tmp_path / "stores")) == 1


def test_killed_run_leaves_no_finished_store(root, tmp_path):
    stores = tmp_path / "stores"
    process = start(root, stores, 30)
    deadline = time.monotonic() + 30
    while not list(stores.glob(".*.unfinished-*/images.npy")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = visible(stores)
    assert leftover.startswith(".")
    with pytest.raises(DataError, match="not a prepared store"):
        Store.open(stores / leftover)
    store = make(root, stores)
    assert visible(stores) == [store.folder.name]


def test_build_in_progress_is_not_removed(root, tmp_path):
    stores = tmp_path / "stores"
    process = start(root, stores, 0.5)
    deadline = time.monotonic() + 30
    while not list(stores.glob(".*.unfinished-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    other = labelled_folder(tmp_path / "other", 2)
    make(other, stores)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(visible(stores)) == 2


def test_workers_end_with_a_killed_run(tmp_path):
    root = labelled_folder(tmp_path / "photos", 30)
    script = (
        SCRIPT.replace("store_builder.make_crops = slow", "")
        .replace(
            "store = ",
            "from drgrade.data import crops\nimport multiprocessing, os, signal\n"
            "def add(writer, file, crop):\n"
            "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "store_builder.StoreWriter.add = add\n"
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


def test_small_photograph_is_enlarged(tmp_path):
    save(tmp_path / "a.png", disc_photograph((40, 30)))
    write_labels(tmp_path / "labels.csv", "a,1")
    assert prepare(Folder(tmp_path), tmp_path / "s", image_size=224).images[0, 112, 112].max() > 80


def test_small_disc_in_a_large_jpeg_is_decoded_at_sufficient_size(tmp_path):
    pixels = disc_photograph((1600, 1600), radius=260)
    pixels[::4] //= 3  # fine lines that only full resolution shows
    save(tmp_path / "a.jpg", pixels, quality=95)
    write_labels(tmp_path / "labels.csv", "a,1")
    store = prepare(Folder(tmp_path), tmp_path / "s", image_size=512)
    assert store.images[0, 256 - 40 : 256 + 40, 256, 0].astype(float).std() > 20


def test_invalid_stores_are_refused(root, tmp_path):
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


def test_folder_of_stores_must_be_writable(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to the folder of stores"):
        make(root, tmp_path / "file" / "stores")


def test_invalid_image_size_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="image_size=0"):
        prepare(Folder(root), tmp_path / "stores", image_size=0)


def test_preparation_does_not_load_torch(root, tmp_path):
    code = (
        "import sys, drgrade.data.store; sys.exit(bool({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
