"""Folders that are replaced as a whole, and special files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drgrade.errors import DataError
from drgrade.files import (
    checkpoint_fault,
    file_sha256,
    remove_partial_files,
    replacing_folder,
    restore_folder,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from drgrade.files import replacing_folder

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
rename, count = Path.replace, 0

def replace(self, target):
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = replace
with replacing_folder(folder) as fresh:
    fresh.mkdir()
    (fresh / "model").write_text("new")
os.kill(os.getpid(), signal.SIGKILL)
"""


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as fresh:
        fresh.mkdir()
        (fresh / "model").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("fatal", "left"), [(1, "old"), (2, "old"), (3, "new")])
def test_killed_replacement_of_a_folder_loses_nothing(tmp_path, fatal, left):
    folder = tmp_path / "grader"
    write(folder, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, folder, str(fatal)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.exists() == (fatal != 2)
    restore_folder(folder)
    assert (folder / "model").read_text() == left
    write(folder, "newest")
    assert (folder / "model").read_text() == "newest"
    for path in tmp_path.glob(".grader.*.partial"):
        os.utime(path, (time.time() - 7200,) * 2)
    restore_folder(folder)
    assert names(tmp_path) == ["grader"]


def test_unfinished_files_are_removed_beside_an_unfinished_folder(tmp_path):
    (tmp_path / ".grader.x.partial").mkdir()
    for name in (".features.x.partial", ".other.x.partial", "features"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, "features")
    assert names(tmp_path) == [".grader.x.partial", ".other.x.partial", "features"]
    remove_partial_files(tmp_path)
    assert names(tmp_path) == [".grader.x.partial", "features"]


@pytest.mark.parametrize("number", [1, 2])
def test_failed_replacement_of_a_folder_keeps_the_previous_one(tmp_path, monkeypatch, number):
    folder, rename, calls = tmp_path / "grader", Path.replace, []
    write(folder, "old")

    def replace(self, target):
        calls.append(target)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        write(folder, "new")
    assert (folder / "model").read_text() == "old"
    assert names(tmp_path) == ["grader"]


def test_replaced_link_to_a_folder_leaves_the_folder_behind_it(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "grader").symlink_to(tmp_path / "real")
    write(tmp_path / "grader", "new")
    assert (tmp_path / "real" / "model").read_text() == "old"
    assert (tmp_path / "grader" / "model").read_text() == "new"
    assert names(tmp_path) == ["grader", "real"]


def test_pipe_is_neither_hashed_nor_taken_for_a_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "last.ckpt")
    with pytest.raises(DataError, match="is a pipe, not a file"):
        file_sha256(tmp_path / "last.ckpt")
    assert checkpoint_fault(tmp_path / "last.ckpt") == "a pipe, not a file"
