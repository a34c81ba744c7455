"""Tests of folders that are created completely or not at all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from source_layouts import files

from drgrade.data.sources.base import build_once
from drgrade.errors import DataError


def folders(path):
    return sorted(child.name for child in path.iterdir() if child.is_dir())


def test_concurrent_callers_build_the_folder_once(tmp_path):
    together, calls = threading.Barrier(4), []

    def fill(folder):
        calls.append(folder)
        files(folder, "first")
        time.sleep(0.05)
        files(folder, "last")

    def ask(_):
        together.wait()
        built = build_once(tmp_path / "new/target", fill)
        return built, (tmp_path / "new/target/last").exists()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert sorted(built for built, _ in answers) == [False, False, False, True]
    assert all(complete for _, complete in answers)
    assert len(calls) == 1
    assert folders(tmp_path / "new") == ["target"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_interrupted_build_leaves_nothing(tmp_path, error):
    def fill(folder):
        files(folder, "first")
        raise error

    with pytest.raises(error):
        build_once(tmp_path / "target", fill)
    assert folders(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    files(tmp_path, ".target-abc/first", ".other-abc/first", "target-abc/first")
    build_once(tmp_path / "target", lambda folder: files(folder, "all"))
    assert folders(tmp_path) == [".other-abc", "target", "target-abc"]


def test_unwritable_folder_is_a_data_error(tmp_path):
    def fill(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"target cannot be written: .*No space left on device"):
        build_once(tmp_path / "target", fill)


def test_existing_folder_is_neither_locked_nor_changed(tmp_path):
    files(tmp_path, "target/old")
    assert not build_once(tmp_path / "target", lambda folder: pytest.fail("built again"))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
