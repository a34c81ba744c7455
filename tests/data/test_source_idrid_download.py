"""Tests of the download of IDRiD, with a small copy in the format of Hugging Face."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from source_layouts import files, rows

from drgrade.data.sources.idrid import PART, PUBLISHED, REPOSITORY, IDRiD
from drgrade.errors import DataError

REPO_FILES = {
    "train": "train-00000-of-00001-d81b05cdbfbe95cd",
    "test": "test-00000-of-00001-3eaaa0286c6f240e",
}


def parquet(folder, split, counts, named=True):
    """Rows in the order of grades, as in the copy; numbers of photographs are in reverse order."""
    grades = np.repeat(np.arange(5), counts)
    images = [
        {"bytes": f"{split}{n}".encode(), "path": f"IDRiD_{len(grades) - n:03d}.jpg" if named else None}
        for n in range(len(grades))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"image": images, "label": grades.astype("int64")})
    frame.to_parquet(folder / f"{REPO_FILES[split]}.parquet")
    return grades


@pytest.fixture
def hub(monkeypatch):
    """A repository on Hugging Face; ``fetched`` lists the target folders of downloads."""
    pytest.importorskip("pyarrow")

    state = SimpleNamespace(named=True, counts=PUBLISHED, error=None, fetched=[])

    def snapshot_download(repo_id, *, repo_type, allow_patterns, local_dir, token):
        assert (repo_id, repo_type, allow_patterns, token) == (
            REPOSITORY,
            "dataset",
            ["data/*.parquet"],
            False,
        )
        state.fetched.append(Path(local_dir))
        if state.error:
            raise state.error
        for split in REPO_FILES:
            parquet(Path(local_dir) / "data", split, state.counts[split], state.named)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_download_has_the_official_layout(hub, tmp_path):
    source = IDRiD(tmp_path / "idrid")
    source.download()
    table = source.read()
    assert table.problems == ()
    assert source.unlisted() == []
    counts = table.manifest.groupby(["split", "grade"]).size()
    assert {split: counts[split].tolist() for split in PUBLISHED} == PUBLISHED
    first = table.manifest.set_index("image_id").loc["train/IDRiD_413"]
    assert first["grade"] == 0
    assert (source.root / first["path"]).read_bytes() == b"train0"
    assert sorted(path.name for path in source.root.iterdir() if not path.name.endswith(".lock")) == [PART]


def test_existing_data_set_is_not_downloaded_again(hub, tmp_path, capsys):
    source = IDRiD(tmp_path)
    source.download()
    source.download()
    assert len(hub.fetched) == 1
    assert "exists already" in capsys.readouterr().err


def test_missing_official_names_are_replaced_by_row_numbers(hub, tmp_path):
    hub.named = False
    source = IDRiD(tmp_path)
    source.download()
    assert rows(source.read(), "image_id", "grade")[-1] == ("train/row_413", 4)


def test_changed_copy_is_refused_and_leaves_no_part(hub, tmp_path):
    hub.counts = PUBLISHED | {"test": [34, 5, 32, 19, 12]}
    with pytest.raises(DataError, match=r"has changed: its test set has \[34, 5, 32, 19, 12\]") as error:
        IDRiD(tmp_path).download()
    assert "IEEE DataPort" in str(error.value)
    assert not (tmp_path / PART).exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".download"]
    hub.counts = PUBLISHED
    IDRiD(tmp_path).download()
    assert len(IDRiD(tmp_path).read().manifest) == 516


def test_network_error_explains_the_manual_download(hub, tmp_path):
    hub.error = ConnectionError("Name or service not known\nsecond line")
    with pytest.raises(DataError, match="cannot be downloaded from Hugging Face") as error:
        IDRiD(tmp_path).download()
    assert "(ConnectionError: Name or service not known)" in str(error.value)
    assert "10.21227/H25W98" in str(error.value)
    assert not (tmp_path / PART).exists()


def test_part_of_a_data_set_is_not_overwritten(hub, tmp_path):
    files(tmp_path, f"{PART}/1. Original Images/a. Training Set/IDRiD_001.jpg")
    with pytest.raises(DataError, match=r"contains part of IDRiD: complete it, or delete.*does not exist"):
        IDRiD(tmp_path).download()
    assert hub.fetched == []


def test_unwritable_root_is_a_data_error(hub, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        IDRiD(tmp_path / "file").download()


def test_download_without_pyarrow_names_the_package(hub, tmp_path, monkeypatch):
    huggingface_hub.snapshot_download(
        REPOSITORY,
        repo_type="dataset",
        allow_patterns=["data/*.parquet"],
        local_dir=tmp_path / "x",
        token=False,
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "x"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install 'drgrade\[datasets\]'"):
        IDRiD(tmp_path / "idrid").download()


def test_missing_idrid_mentions_the_download(tmp_path):
    with pytest.raises(DataError, match="or download=true to download it"):
        IDRiD(tmp_path).read()


def test_photographs_without_a_row_are_unlisted(hub, tmp_path):
    source = IDRiD(tmp_path)
    source.download()
    new = f"{PART}/1. Original Images/b. Testing Set/IDRiD_104.jpg"
    files(tmp_path, new, "elsewhere.jpg")
    assert source.unlisted() == [new]
